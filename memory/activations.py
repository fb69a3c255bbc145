"""Bytes that one pass through the models of modes/ keeps for backward, from shapes alone.

Read off the models (modes/glm/modeling.py, modes/glm2/modeling.py), attention, prefix and loss; docs/memory.md has the
formulas. Shapes: T tokens of the micro-batch, which lie end to end in one row (with an embedding prefix), S samples, h
hidden, n heads, g key/value heads, d head size, f feed-forward size, p prefix, m supervised positions, v vocabulary, e
bytes of a value. In the last block only the m positions go through what stands behind attention.
"""

from dataclasses import dataclass, field

from memory.setup import Batch, Setup
from modes.loss import CHUNK
from parameters import LAYER, Parameter


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
class Layer:
    """What one block keeps for backward, and what forward and backward add to it at their peaks, in bytes.

    running: what is there of the block, kept or not, at the peak of its forward.
    saved: kept from forward to the block's backward (without its input, which the block below has as output).
    extra: what is there besides `saved` and the incoming gradient at the peak of the block's backward, between the
        feed-forward part's projections.
    gone: what is no longer there of `saved` when the first of these, of which backward comes last, has its gradient.
    attending: what is there besides `saved` and the gradient of the block's input when backward comes through
        attention; below 0 but where few tokens went through the feed-forward part.
    """

    running: int
    saved: int
    extra: int
    gone: int
    attending: int


@dataclass
class TrainedModules:
    """What is trained in one block, by the last part of a module's name.

    whole: modules whose weight is trained, and "NAME.bias" of those whose bias is. lora: ranks of LoRA branches.
    """

    whole: set[str] = field(default_factory=set)
    lora: dict[str, int] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether one of these modules is trained, or has a branch that is."""
        return any(name in self.whole or name in self.lora for name in names)


def trained_modules(parameters: list[Parameter]) -> dict[int, TrainedModules]:
    """What is trained in each block that has a trained parameter.

    Args:
        parameters: of the whole model.
    """
    blocks: dict[int, TrainedModules] = {}
    for parameter in parameters:
        name, found = parameter.name, LAYER.search(parameter.name)
        if not parameter.trained or found is None:
            continue
        modules = blocks.setdefault(int(found[1]), TrainedModules())
        module, _, rest = name[found.end() :].partition(".lora_A.")
        if rest:
            modules.lora[module.rsplit(".", 1)[-1]] = parameter.shape[0]
        elif ".lora_" not in name:
            module = name[found.end() :].rsplit(".", 2)[-2]
            modules.whole.add(f"{module}.bias" if name.endswith(".bias") else module)
    return blocks


def row_tokens(sizes: Sizes, batch: Batch) -> int:
    """T: tokens of the row, with the positions that stand in front of each sample's embeddings."""
    return batch.tokens + batch.samples * sizes.prefix_rows


def mask_values(sizes: Sizes, batch: Batch) -> int:
    """Queries times keys of the masks: of ChatGLM's answers, or, with a key/value prefix, of all tokens."""
    prefix = sizes.prefix + sizes.prefix_rows
    if not sizes.gated:
        return batch.answers + prefix * batch.supervised
    return batch.squares + prefix * batch.tokens if sizes.prefix else 0


def passing(sizes: Sizes, batch: Batch, *, value_bytes: int) -> int:
    """Peak bytes of a block that keeps nothing: out of the graph, or to be recomputed."""
    width, keys = sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim
    # normalised; as projected, as rotated, what comes out of attention, once more together
    attention = sizes.hidden + 2 * (width + 2 * keys) + 2 * width
    feed_forward = (4 if sizes.gated else 2) * sizes.ffn + beside(sizes) * sizes.hidden
    return row_tokens(sizes, batch) * value_bytes * max(attention, feed_forward)


def beside(sizes: Sizes) -> int:
    """Tensors of hidden states that a block's forward still holds while its feed-forward part runs."""
    return 4 if sizes.gated else 2


@dataclass(frozen=True)
class Block:
    """One block that backward runs through, and the run that it is a part of.

    GPU kernels keep less: RMSNorm is one kernel, and a dropout mask takes one byte per value. Under ZeRO-3 frozen
    projections keep their inputs, too (DeepSpeed's linear function).

    below: whether something below the block is trained, so that gradients pass through its input.
    last: whether it is the uppermost one, where only the supervised positions go through what follows attention.
    """

    sizes: Sizes
    setup: Setup
    trained: TrainedModules
    below: bool
    last: bool

    def norm(self, name: str, tokens: int, needs_gradient: bool) -> int:
        """Bytes that a norm keeps."""
        hidden, e, is_trained = self.sizes.hidden, self.setup.value_bytes, name in self.trained.whole
        if not (needs_gradient or is_trained):
            return 0
        if self.sizes.gated and not self.setup.on_gpu:
            # written out in float32: the input, its scale, and what the weight multiplies
            return tokens * ((4 * hidden + 4) * needs_gradient + 4 * hidden * is_trained)
        return tokens * (e * hidden + (4 if self.sizes.gated else 2 * (4 if self.setup.on_gpu else e)))

    def linear(self, name: str, tokens: int, inputs: int) -> int:
        """Bytes that a projection of `inputs` values per token keeps."""
        e, dropout = self.setup.value_bytes, self.setup.lora_dropout
        rank, total = self.trained.lora.get(name), 0
        if name in self.trained.whole or self.setup.stage == 3 or (rank and not dropout):
            total += tokens * e * inputs
        if rank:
            total += tokens * e * rank
            if dropout:
                total += tokens * inputs * (e + (1 if self.setup.on_gpu else e))
        return total

    @property
    def through_attention(self) -> bool:
        """Whether backward runs through attention."""
        trained_before = self.trained.has("input_layernorm", "query_key_value", "query_key_value.bias")
        return self.below or self.sizes.prefix > 0 or trained_before

    def attention(self) -> int:
        """Bytes that attention itself keeps: queries, keys, values, masks, its output and the log-sums."""
        sizes, batch = self.sizes, self.setup.batch
        row, width, keys = row_tokens(sizes, batch), sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim
        # queries and keys as they were rotated (by glm apart) and values; behind a prefix keys are copied once more
        kept = row * (width + keys) + (row + batch.samples * sizes.prefix) * keys
        if sizes.prefix:
            kept += batch.samples * sizes.prefix * keys + (row * keys if sizes.gated else 0)
        # the boolean masks as values, made anew in each layer; one per group with grouped heads on GPUs
        kept += mask_values(sizes, batch) * (sizes.groups if sizes.gated and self.setup.on_gpu else 1)
        if self.setup.on_gpu and not sizes.gated:
            # --attn_implementation varlen has no masks, and keys and values of both calls
            prompts = batch.tokens - batch.supervised
            both = prompts + batch.tokens + 2 * batch.samples * (sizes.prefix + sizes.prefix_rows)
            kept = max(kept, row * width + 2 * both * keys)
        return self.setup.value_bytes * (kept + row * width) + 4 * row * sizes.heads

    def layer(self) -> Layer:
        """What the block keeps, and its peaks."""
        sizes, batch, e = self.sizes, self.setup.batch, self.setup.value_bytes
        row, width, keys = row_tokens(sizes, batch), sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim

        saved = self.norm("input_layernorm", row, self.below) + self.linear("query_key_value", row, sizes.hidden)
        projected, gradients = row * e * (width + 2 * keys), 0
        # of a LoRA branch: its output, that scaled, and the sum
        running = saved + (3 if "query_key_value" in self.trained.lora else 1) * projected
        if self.through_attention:
            saved += self.attention()
            gradients = row * e * (2 * width + 2 * keys)  # of attention's output, queries, keys and values
        running = max(running, saved + projected + row * e * width)  # the samples' outputs are put together

        behind = batch.supervised if self.last else row
        needs_gradient = self.through_attention or self.trained.has("dense", "dense.bias")
        activated = sizes.ffn * behind * e
        last = self.linear("dense_4h_to_h", behind, sizes.ffn)
        later = (
            self.linear("dense", behind, width)  # the samples' outputs, put together
            + self.norm("post_attention_layernorm", behind, needs_gradient)
            + self.linear("dense_h_to_4h", behind, sizes.hidden)
            + (3 if sizes.gated else 1) * activated
            + last
        )
        hidden = behind * e * sizes.hidden
        running = max(running + row * e * sizes.hidden, saved + later + activated + beside(sizes) * hidden)
        # gated: three gradients of f where gate and value part; else two around GELU; what the last projection kept
        # is gone; then the gradient of what the first projection made, for what was saved of it and of the activation
        extra = (3 if sizes.gated else 2) * activated - last
        return Layer(
            running=running,
            saved=saved + later,
            extra=max(extra, 0),
            gone=(activated if sizes.gated else 0) + last,
            attending=gradients - later,
        )


def shared(sizes: Sizes, batch: Batch, *, value_bytes: int) -> int:
    """What all layers share: rotary tables and the boolean masks; and the ids, labels and positions."""
    positions = 1 if sizes.gated else 2
    tables = 2 * row_tokens(sizes, batch) * (sizes.head_dim // 4 if sizes.gated else sizes.head_dim)
    return tables * value_bytes + mask_values(sizes, batch) + 8 * (2 + positions) * batch.tokens


def prefix_values(sizes: Sizes) -> int:
    """Values of a key/value prefix of all layers."""
    return 2 * sizes.layers * sizes.groups * sizes.head_dim * sizes.prefix


def prefix_encoder(sizes: Sizes, batch: Batch, *, value_bytes: int, on_gpu: bool) -> int:
    """What dropout keeps of a key/value prefix, and the prefix itself."""
    return prefix_values(sizes) * (value_bytes + batch.samples * (1 if on_gpu else value_bytes))


def head(sizes: Sizes, batch: Batch, *, trained: bool, lora: bool, value_bytes: int) -> int:
    """Peak bytes of the output layer and the loss, which is in forward.

    Hidden states and their gradient, the gradient of the weight, and the logits of CHUNK supervised positions: in
    float32, from and to the precision of the run.

    Args:
        trained: whether the output layer is.
        lora: whether it has a LoRA branch. All logits then exist at once: those of the base, of the branch, that scaled
            and the sum; or, in backward, in float32 their log-softmax and two gradients.
    """
    e, hidden = value_bytes, batch.supervised * sizes.hidden * value_bytes
    if lora:
        return hidden + batch.supervised * sizes.vocab * max(4 * e, 12)
    logits = min(batch.supervised, CHUNK) * sizes.vocab
    return 2 * hidden + (sizes.vocab * sizes.hidden * e if trained else 0) + logits * (e + 4 if e < 4 else 4)
