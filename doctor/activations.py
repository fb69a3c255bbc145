"""Bytes that one pass through the models of modes/ keeps for backward, from shapes alone.

Read off the models (modes/glm/modeling.py, modes/glm2/modeling.py), attention, prefix and loss; docs/memory.md has the
formulas. Shapes: T tokens of the micro-batch, which lie end to end in one row (with an embedding prefix), S samples, h
hidden, n heads, g key/value heads, d head size, f feed-forward size, p prefix, m supervised positions, v vocabulary, e
bytes of a value.
"""

import re
from dataclasses import dataclass

from modes.loss import CHUNK

LAYER = re.compile(r"\blayers\.(\d+)\.")


@dataclass(frozen=True)
class Sizes:
    """A model's numbers, from its config.

    gated: SwiGLU and RMSNorm (ChatGLM2, ChatGLM3) rather than GELU and LayerNorm (ChatGLM).
    prefix: key/value prefix of every layer, in positions. prefix_rows: positions in front of a sample's embeddings.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    gated: bool
    prefix: int = 0
    prefix_rows: int = 0


def read_sizes(config, *, gated: bool) -> Sizes:
    """The numbers of a model's config, under the names that transformers gives them.

    Args:
        gated: False for ChatGLM-6B.
    """
    everywhere = config.prefix_layers == "all"
    positions = config.pre_seq_len or 0
    return Sizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        gated=gated,
        prefix=positions if everywhere else 0,
        prefix_rows=0 if everywhere else positions,
    )


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch.

    tokens, samples: in it; no token is padding, and none stands for several samples (--share_prompts).
    supervised: positions that count in the loss.
    squares: the samples' squared lengths, summed. answers: their lengths times their supervised positions, summed.
    """

    tokens: int
    samples: int
    supervised: int
    squares: int
    answers: int


@dataclass(frozen=True)
class Layer:
    """What one block keeps for backward, and what backward adds to it at its fullest, in bytes.

    saved: kept from forward to the block's backward (without its input, which the block below has as output).
    extra: what is there besides `saved` and the incoming gradient when the block's backward is at its fullest, between
        the feed-forward part's projections.
    gone: what is no longer there of `saved` when the first of these, of which backward comes last, has its gradient.
    """

    saved: int
    extra: int
    gone: int


def size_of(shape) -> int:
    """Values in a shape."""
    product = 1
    for length in shape:
        product *= length
    return product


def trained_parts(parameters) -> dict[int, tuple[set[str], dict[str, int]]]:
    """Of each block with a trained tensor: the trained modules by their last name, and the LoRA rank on each.

    Args:
        parameters: (name, shape, trained) of the whole model.
    """
    blocks: dict[int, tuple[set[str], dict[str, int]]] = {}
    for name, shape, trained in parameters:
        found = LAYER.search(name)
        if not trained or found is None:
            continue
        full, lora = blocks.setdefault(int(found[1]), (set(), {}))
        module, _, rest = name[found.end() :].partition(".lora_A.")
        if rest:
            lora[module.rsplit(".", 1)[-1]] = shape[0]
        elif ".lora_" not in name:
            full.add(name[found.end() :].rsplit(".", 2)[-2] + (".bias" if name.endswith(".bias") else ""))
    return blocks


def mask_values(sizes: Sizes, batch: Batch) -> int:
    """Queries times keys of the masks: of ChatGLM's answers, or, with a key/value prefix, of all tokens."""
    prefix = sizes.prefix + sizes.prefix_rows
    if not sizes.gated:
        return batch.answers + prefix * batch.supervised
    return batch.squares + prefix * batch.tokens if sizes.prefix else 0


def block(
    sizes: Sizes, batch: Batch, *, trained: tuple[set[str], dict[str, int]], below: bool, lora_dropout: bool,
    value_bytes: int, on_gpu: bool, keeps_inputs: bool,
) -> Layer:  # fmt: skip
    """One block in the graph.

    Args:
        trained: the block's of `trained_parts`.
        below: whether something below the block is trained, so that gradients pass through its input.
        lora_dropout: whether the LoRA branches drop inputs.
        value_bytes: e.
        on_gpu: GPU kernels keep less: RMSNorm is one kernel, and a dropout mask one byte a value.
        keeps_inputs: frozen projections keep their inputs too (DeepSpeed's linear function under ZeRO-3).
    """
    full, lora = trained
    e, tokens = value_bytes, batch.tokens + batch.samples * sizes.prefix_rows
    width, keys = sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim

    def norm(name, gradient):
        if not (gradient or name in full):
            return 0
        if sizes.gated and not on_gpu:  # written out in float32: the input, its scale, and what the weight multiplies
            return tokens * ((4 * sizes.hidden + 4) * gradient + 4 * sizes.hidden * (name in full))
        return tokens * (e * sizes.hidden + (4 if sizes.gated else 2 * (4 if on_gpu else e)))

    def linear(name, inputs, *, kept=False):
        """`inputs` values a token, unless they are kept anyway (`kept`)."""
        total = 0
        if name in full or keeps_inputs or (name in lora and not lora_dropout):
            total += 0 if kept else tokens * e * inputs
        if name in lora:
            total += tokens * e * lora[name]
            if lora_dropout:
                total += tokens * inputs * (e + (1 if on_gpu else e))
        return total

    # attention
    saved = norm("input_layernorm", below)
    in_attention = (
        below or sizes.prefix > 0 or bool({"input_layernorm", "query_key_value", "query_key_value.bias"} & full)
    )
    in_attention = in_attention or "query_key_value" in lora
    saved += linear("query_key_value", sizes.hidden)
    if in_attention:
        # queries stay a view of what was rotated (glm rotates queries and keys apart); keys and values are copied
        kept = tokens * (width + keys if sizes.gated else width)
        kept += 2 * (tokens + batch.samples * sizes.prefix) * keys
        saved += e * (kept + tokens * width) + 4 * tokens * sizes.heads
        # the boolean masks as values, made anew in each layer; one per group with grouped heads on GPUs
        saved += e * mask_values(sizes, batch) * (sizes.groups if sizes.gated and on_gpu else 1)
    saved += linear("dense", width)  # the samples' outputs, put together

    # feed-forward
    gradient = in_attention or bool({"dense", "dense.bias"} & full) or "dense" in lora
    saved += norm("post_attention_layernorm", gradient)
    saved += linear("dense_h_to_4h", sizes.hidden)
    activated = sizes.ffn * tokens * e
    saved += (3 if sizes.gated else 1) * activated
    last = linear("dense_4h_to_h", sizes.ffn)
    saved += last
    # gated: three gradients of f where gate and value part; else two around GELU; what the last projection kept is gone
    extra = (3 if sizes.gated else 2) * activated - last
    # and then the gradient of what the first projection made, for what was saved of it and of the activation
    return Layer(saved=saved, extra=max(extra, 0), gone=(activated if sizes.gated else 0) + last)


def shared(sizes: Sizes, batch: Batch, *, value_bytes: int) -> int:
    """What all layers share: rotary tables and the boolean masks; and the ids, labels and positions."""
    tokens, positions = batch.tokens + batch.samples * sizes.prefix_rows, 1 if sizes.gated else 2
    tables = 2 * positions * tokens * sizes.head_dim // 4
    return tables * value_bytes + mask_values(sizes, batch) + 8 * (2 + positions) * batch.tokens


def prefix_encoder(sizes: Sizes, batch: Batch, *, value_bytes: int, on_gpu: bool) -> int:
    """What dropout keeps of a key/value prefix, and the prefix itself."""
    values = 2 * sizes.layers * sizes.groups * sizes.head_dim * sizes.prefix
    return values * value_bytes + batch.samples * values * (1 if on_gpu else value_bytes)


@dataclass(frozen=True)
class Head:
    """The output layer and the loss: what backward needs, and the fullest moment of forward and backward, in bytes."""

    saved: int
    forward: int
    backward: int


def head(sizes: Sizes, batch: Batch, *, trained: bool, keeps_inputs: bool, value_bytes: int) -> Head:
    """Logits exist for supervised positions only: a float32 copy, its log-softmax, and two gradients of that size.

    More than CHUNK positions are taken so many at a time, and again in backward.

    Args:
        trained: whether the output layer is.
        keeps_inputs: as in `block`.
    """
    e, logits = value_bytes, min(batch.supervised, CHUNK) * sizes.vocab
    hidden = batch.supervised * sizes.hidden * e
    forward = logits * (e + (4 if e < 4 else 0)) + batch.tokens * sizes.hidden * e
    if batch.supervised <= CHUNK:
        kept = hidden if trained or keeps_inputs else 0
        return Head(saved=4 * logits + kept, forward=forward + hidden - kept, backward=8 * logits)
    # the gradient of a trained output layer is there as a sum and as the next chunk's
    gradients = 2 * sizes.vocab * sizes.hidden * e if trained else 0
    return Head(saved=hidden, forward=forward + 4 * logits, backward=hidden + max(12 * logits, e * logits + gradients))
