"""Bytes that one pass through the models of modes/ keeps for backward, from shapes only.

The formulas follow the models (modes/glm/modeling.py, modes/glm2/modeling.py), attention, prefix and loss; see
docs/memory.md. Shapes: T tokens of the micro-batch, concatenated in one row (with an embedding prefix), S samples, h
hidden, n heads, g key/value heads, d head size, f feed-forward size, p prefix, m supervised positions, v vocabulary, e
bytes of a value. In the last block only the m positions pass the modules after attention.
"""

from dataclasses import dataclass, field

from memory.setup import Batch, Setup
from modes.loss import CHUNK
from parameters import LAYER, Parameter


@dataclass(frozen=True)
class Sizes:
    """A model's sizes, from its config.

    gated: SwiGLU and RMSNorm (ChatGLM2, ChatGLM3) rather than GELU and LayerNorm (ChatGLM).
    prefix: key/value prefix of every layer, in positions. prefix_rows: positions before a sample's embeddings.
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
    """The sizes in a model's config, by transformers' names.

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
    """Bytes that one block keeps for backward, and that forward and backward need at their peaks.

    running: memory of the block, kept or not, at the peak of its forward.
    saved: kept from forward to the block's backward (without its input, which is the output of the block below).
    extra: memory besides `saved` and the incoming gradient at the peak of the block's backward, between the projections
        of the feed-forward part.
    gone: the part of `saved` that is freed when the first of these projections, the last in backward, has its gradient.
    attending: memory besides `saved` and the gradient of the block's input during attention's backward; negative
        unless few tokens pass the feed-forward part.
    """

    running: int
    saved: int
    extra: int
    gone: int
    attending: int


@dataclass
class TrainedModules:
    """The trained modules of one block, by the last part of their names.

    whole: modules with a trained weight, and "NAME.bias" of those with a trained bias. lora: ranks of LoRA branches.
    """

    whole: set[str] = field(default_factory=set)
    lora: dict[str, int] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether one of these modules, or its LoRA branch, is trained."""
        return any(name in self.whole or name in self.lora for name in names)


def trained_modules(parameters: list[Parameter]) -> dict[int, TrainedModules]:
    """The trained modules of each block with a trained parameter.

    Args:
        parameters: of the whole model.
    """
    blocks: dict[int, TrainedModules] = {}
    for parameter in parameters:
        name, match = parameter.name, LAYER.search(parameter.name)
        if not parameter.trained or match is None:
            continue
        modules = blocks.setdefault(int(match[1]), TrainedModules())
        module, _, rest = name[match.end() :].partition(".lora_A.")
        if rest:
            modules.lora[module.rsplit(".", 1)[-1]] = parameter.shape[0]
        elif ".lora_" not in name:
            module = name[match.end() :].rsplit(".", 2)[-2]
            modules.whole.add(f"{module}.bias" if name.endswith(".bias") else module)
    return blocks


def row_tokens(sizes: Sizes, batch: Batch) -> int:
    """T: tokens of the row, including the positions before each sample's embeddings."""
    return batch.tokens + batch.samples * sizes.prefix_rows


def mask_values(sizes: Sizes, batch: Batch) -> int:
    """Queries times keys of the masks: of ChatGLM's answers, or, with a key/value prefix, of all tokens."""
    prefix = sizes.prefix + sizes.prefix_rows
    if not sizes.gated:
        return batch.answers + prefix * batch.supervised
    return batch.squares + prefix * batch.tokens if sizes.prefix else 0


def passing(sizes: Sizes, batch: Batch, *, value_bytes: int) -> int:
    """Peak bytes of a block that keeps nothing: outside of the graph, or recomputed."""
    width, keys = sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim
    # normalized; projected; rotated; output of attention, and its concatenated copy
    attention = sizes.hidden + 2 * (width + 2 * keys) + 2 * width
    feed_forward = (4 if sizes.gated else 2) * sizes.ffn + beside(sizes) * sizes.hidden
    return row_tokens(sizes, batch) * value_bytes * max(attention, feed_forward)


def beside(sizes: Sizes) -> int:
    """Number of hidden-state tensors that a block's forward holds while its feed-forward part runs."""
    return 4 if sizes.gated else 2


@dataclass(frozen=True)
class Block:
    """One block that backward reaches, and its run.

    GPU kernels keep less: RMSNorm is one kernel, and a dropout mask takes one byte per value. Under ZeRO-3 frozen
    projections keep their inputs, too (DeepSpeed's linear function).

    below: whether a parameter below the block is trained, so that its input needs a gradient.
    last: whether it is the uppermost block, where only supervised positions pass the modules after attention.
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
            # in separate float32 operations: the input, its scale, and the input of the weight
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
        """Whether backward reaches attention."""
        trained_before = self.trained.has("input_layernorm", "query_key_value", "query_key_value.bias")
        return self.below or self.sizes.prefix > 0 or trained_before

    def attention(self) -> int:
        """Bytes that attention itself keeps: queries, keys, values, masks, its output and the log-sums."""
        sizes, batch = self.sizes, self.setup.batch
        row, width, keys = row_tokens(sizes, batch), sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim
        # rotated queries and keys (in glm separate tensors) and values; with a prefix keys are copied once more
        kept = row * (width + keys) + (row + batch.samples * sizes.prefix) * keys
        if sizes.prefix:
            kept += batch.samples * sizes.prefix * keys + (row * keys if sizes.gated else 0)
        # the boolean masks as values, created again in each layer; one per group with grouped heads on GPUs
        kept += mask_values(sizes, batch) * (sizes.groups if sizes.gated and self.setup.on_gpu else 1)
        if self.setup.on_gpu and not sizes.gated:
            # --attn_implementation varlen has no masks, and keys and values of both calls
            prompts = batch.tokens - batch.supervised
            both = prompts + batch.tokens + 2 * batch.samples * (sizes.prefix + sizes.prefix_rows)
            kept = max(kept, row * width + 2 * both * keys)
        return self.setup.value_bytes * (kept + row * width) + 4 * row * sizes.heads

    def layer(self) -> Layer:
        """Bytes that the block keeps, and its peaks."""
        sizes, batch, e = self.sizes, self.setup.batch, self.setup.value_bytes
        row, width, keys = row_tokens(sizes, batch), sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim

        saved = self.norm("input_layernorm", row, self.below) + self.linear("query_key_value", row, sizes.hidden)
        projected, gradients = row * e * (width + 2 * keys), 0
        # of a LoRA branch: its output, that scaled, and the sum
        running = saved + (3 if "query_key_value" in self.trained.lora else 1) * projected
        if self.through_attention:
            saved += self.attention()
            gradients = row * e * (2 * width + 2 * keys)  # of attention's output, queries, keys and values
        running = max(running, saved + projected + row * e * width)  # the samples' outputs are concatenated

        behind = batch.supervised if self.last else row
        needs_gradient = self.through_attention or self.trained.has("dense", "dense.bias")
        activated = sizes.ffn * behind * e
        last = self.linear("dense_4h_to_h", behind, sizes.ffn)
        later = (
            self.linear("dense", behind, width)  # the samples' concatenated outputs
            + self.norm("post_attention_layernorm", behind, needs_gradient)
            + self.linear("dense_h_to_4h", behind, sizes.hidden)
            + (3 if sizes.gated else 1) * activated
            + last
        )
        hidden = behind * e * sizes.hidden
        running = max(running + row * e * sizes.hidden, saved + later + activated + beside(sizes) * hidden)
        # gated: three gradients of f where gate and value split; else two around GELU; tensors of the last projection
        # are freed; then the gradient of the first projection's output replaces its saved tensors and the activation's
        extra = (3 if sizes.gated else 2) * activated - last
        return Layer(
            running=running,
            saved=saved + later,
            extra=max(extra, 0),
            gone=(activated if sizes.gated else 0) + last,
            attending=gradients - later,
        )


def shared(sizes: Sizes, batch: Batch, *, value_bytes: int) -> int:
    """Tensors shared by all layers: rotary tables, boolean masks, ids, labels and positions."""
    positions = 1 if sizes.gated else 2
    tables = 2 * row_tokens(sizes, batch) * (sizes.head_dim // 4 if sizes.gated else sizes.head_dim)
    return tables * value_bytes + mask_values(sizes, batch) + 8 * (2 + positions) * batch.tokens


def prefix_values(sizes: Sizes) -> int:
    """Values of a key/value prefix of all layers."""
    return 2 * sizes.layers * sizes.groups * sizes.head_dim * sizes.prefix


def prefix_encoder(sizes: Sizes, batch: Batch, *, value_bytes: int, on_gpu: bool) -> int:
    """Bytes of a key/value prefix and of its dropout's mask and output."""
    return prefix_values(sizes) * (value_bytes + batch.samples * (1 if on_gpu else value_bytes))


def head(sizes: Sizes, batch: Batch, *, trained: bool, lora: bool, value_bytes: int) -> int:
    """Peak bytes of the output layer and the loss, which is in forward.

    Hidden states and their gradient, the gradient of the weight, and the logits of CHUNK supervised positions, in the
    precision of the run and in float32.

    Args:
        trained: whether the output layer is trained.
        lora: whether it has a LoRA branch. All logits then exist at the same time: of the base, of the branch, scaled,
            and their sum; or, in backward, their log-softmax and two gradients in float32.
    """
    e, hidden = value_bytes, batch.supervised * sizes.hidden * value_bytes
    if lora:
        return hidden + batch.supervised * sizes.vocab * max(4 * e, 12)
    logits = min(batch.supervised, CHUNK) * sizes.vocab
    return 2 * hidden + (sizes.vocab * sizes.hidden * e if trained else 0) + logits * (e + 4 if e < 4 else 4)
