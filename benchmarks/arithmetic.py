"""Floating-point operations of the matrix products in a training step, counted from shapes.

    shape = read_shape(config, gated=True)
    trained = Trained(lora_dim=8)
    flops_of(shape, [padded(16, 120)], trained, logits=16 * 119)
    flops_of(shape, [end_to_end([(40, -1, 0), (70, 0, 0), (55, 0, 0)])], trained, logits=60)

A product of [m, k] and [k, n] is 2 m k n operations. Counted are the linear layers, attention (scores and their sum
over values; not that torch's fused backward makes the scores once more) and the output layer; norms, activations and
embeddings are not. tests/test_benchmarks.py holds this against torch's own counter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

LAST_LAYERS = 4  # that freeze trains, as the recipes of 2023


@dataclass(frozen=True)
class Trained:
    """What a method trains.

    layers: those whose own weights are trained. output: whether the output layer is.
    lora_dim: rank of LoRA matrices at query_key_value, in all layers; lora_parts: 3 where that is three modules.
    prefix_length: of a P-Tuning encoder with its MLP.
    """

    layers: Sequence[int] = ()
    output: bool = False
    lora_dim: int = 0
    lora_parts: int = 1
    prefix_length: int = 0

    @classmethod
    def by(cls, train_type: str, layers: int, *, lora_dim: int, prefix_length: int, lora_parts: int = 1) -> Self:
        """What a --train_type trains of a model with so many layers."""
        return {
            "freeze": cls(range(max(layers - LAST_LAYERS, 0), layers)),
            "ptuning": cls(prefix_length=prefix_length),
            "lora": cls(lora_dim=lora_dim, lora_parts=lora_parts),
            "all": cls(range(layers), output=True),
        }[train_type]


def read_shape(config, *, gated: bool) -> dict[str, int]:
    """Layers, hidden size, outputs of query_key_value, width of all heads, weights in a layer's matrices, vocabulary,
    weights of a prefix encoder's MLP.

    Args:
        gated: whether the MLP has a gate (ChatGLM2 and ChatGLM3).
    """
    width = config.num_attention_heads * config.head_dim
    qkv = width + 2 * config.num_key_value_heads * config.head_dim
    feed = (3 if gated else 2) * config.hidden_size * config.intermediate_size
    prefix = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "qkv": qkv,
        "width": width,
        "weights": config.hidden_size * (qkv + width) + feed,
        "vocabulary": config.vocab_size,
        "prefix_weights": (prefix if gated else config.hidden_size) * config.hidden_size + prefix * config.hidden_size,
    }


def padded(rows: int, width: int, prefix_length: int = 0, causal: bool = False) -> tuple[int, float]:
    """(tokens, pairs of query and key) of a rectangular batch under a mask: what is masked is computed, too.

    Args:
        causal: there is no mask, and plain causal attention leaves out half of the pairs.
    """
    return rows * width, rows * (width * (width + 1) / 2 if causal else width * (width + prefix_length))


def end_to_end(segments: list[tuple[int, int, int]], prefix_length: int = 0) -> tuple[int, float]:
    """(tokens, pairs of query and key) of samples that lie end to end.

    Args:
        segments: (length, parent, visible), see modes/segments.py. Plain causal attention leaves out half of the
            pairs; behind a parent or a prefix there is a mask, and what it hides is computed.
    """
    pairs = 0.0
    for length, parent, visible in segments:
        before = prefix_length + (segments[parent][0] if parent >= 0 else 0)
        causal = length - visible
        pairs += visible * (before + visible)
        pairs += causal * (before + length) if before + visible else causal * (causal + 1) / 2
    return sum(length for length, _, _ in segments), pairs


def flops_of(
    shape: dict[str, int],
    passes: list[tuple[int, float]],
    trained: Trained,
    *,
    logits: int,
    logits_again: int = 0,
    last: int | None = None,
    embeddings_in_backward: bool = False,
    lowest: int = 0,
    recomputed: int = 0,
) -> int:
    """Operations of forward and backward.

    Args:
        passes: (tokens, pairs) of each forward pass.
        logits: positions that go through the output layer, in all passes; logits_again: recomputed ones.
        last: tokens that go through the last layer's projections behind attention, in all passes; None: all tokens.
        embeddings_in_backward: whether backward runs down to the embeddings.
        lowest: the first layer that backward runs through.
        recomputed: layers whose forward is done twice.
    """
    layers = shape["layers"]
    # Weights of A and B in a layer.
    down, up = shape["hidden"] * trained.lora_dim * trained.lora_parts, shape["qkv"] * trained.lora_dim
    total = 0.0
    for tokens, pairs in passes:
        linear, attention = 2 * tokens * shape["weights"], 2 * 2 * pairs * shape["width"]
        total += (layers + recomputed) * (linear + attention + 2 * tokens * (down + up))
        total += (layers - lowest) * (linear + 2 * attention + 2 * 2 * tokens * (down + up))
        total += len(trained.layers) * linear
        if not embeddings_in_backward and lowest not in trained.layers:  # nothing before its projection is trained
            total -= 2 * tokens * (shape["hidden"] * shape["qkv"] + down)
            total -= attention / 2 if trained.prefix_length else 0  # nor do its queries
    if last is not None:
        skipped = sum(tokens for tokens, _ in passes) - last
        times = (
            2 + (layers - 1 in trained.layers) + (recomputed >= layers - lowest)
        )  # forward, backward, weights, again
        total -= 2 * skipped * (shape["weights"] - shape["hidden"] * shape["qkv"]) * times
    total += 2 * (logits * (2 + trained.output) + logits_again) * shape["hidden"] * shape["vocabulary"]
    if trained.prefix_length:
        total += len(passes) * 3 * 2 * trained.prefix_length * shape["prefix_weights"]
    return round(total)
