"""Simulate a training step in order: a rank's memory at the moments that may be the peak."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memory.activations import (
    Block,
    Layer,
    Sizes,
    TrainedModules,
    head,
    passing,
    prefix_encoder,
    prefix_values,
    row_tokens,
    shared,
    trained_modules,
)
from memory.gathering import gather
from memory.gradients import Gradients, largest_fragment, largest_part, norm_bytes, optimizer_groups
from memory.setup import Batch, Setup
from parameters import LAYER, Parameter, lowest_trained


@dataclass(frozen=True)
class Trained:
    """The locations of the trained parameters.

    output: the output layer's weight. lora_output: its LoRA branch.
    tied: the embedding is trained, and tied to the output layer.
    """

    names: list[str]
    prefix: bool
    embedding: bool
    output: bool
    lora_output: bool
    tied: bool


def find_trained(parameters: list[Parameter], sizes: Sizes) -> Trained:
    """Find them by name."""
    names = [parameter.name for parameter in parameters if parameter.trained]
    embedding = any("word_embeddings." in name for name in names)
    heads = [name for name in names if "output_layer." in name or "lm_head." in name]
    output = any(".lora_" not in name for name in heads)
    return Trained(
        names=names,
        prefix=any("prefix_encoder." in name for name in names),
        embedding=embedding,
        output=output,
        lora_output=len(heads) > 0 and not output,
        tied=embedding and not output and not sizes.gated,
    )


@dataclass(frozen=True)
class Graph:
    """Bytes that backward needs.

    layers: by number; None is outside of the graph. recomputed: numbers of layers that keep only their input.
    below: ids, labels, tables, the prefix. norm: of the final norm. row: one tensor of hidden states; last_row: the
    output of the last block. passing: of a block that keeps nothing, while it runs. start: the input of the first block
    and the prefix for all, which exist until the end of forward. head: of the output layer and the loss.
    """

    layers: list[Layer | None]
    recomputed: set[int]
    below: int
    norm: int
    row: int
    last_row: int
    passing: int
    start: int
    head: int

    def kept(self, i: int) -> int:
        """Bytes that block i keeps from its forward to its backward."""
        layer = self.layers[i]
        return 0 if layer is None else self.row if i in self.recomputed else layer.saved

    def running(self, i: int) -> int:
        """Peak memory while block i runs forward."""
        layer = self.layers[i]
        if layer is None or i in self.recomputed:
            return self.up_to(i) + self.start + self.row + self.passing
        return self.up_to(i) + self.start + layer.running

    def up_to(self, blocks: int) -> int:
        """Kept bytes after this many blocks have run."""
        return self.below + sum(self.kept(i) for i in range(blocks))


def build_graph(parameters: list[Parameter], sizes: Sizes, setup: Setup, trained: Trained) -> Graph:
    """Bytes that each part of the model keeps; blocks below the lowest trained tensor keep nothing."""
    e, batch = setup.value_bytes, setup.batch
    tokens = row_tokens(sizes, batch)
    row, last_row = tokens * sizes.hidden * e, batch.supervised * sizes.hidden * e
    layers: list[Layer | None] = []
    below = trained.embedding or (trained.prefix and sizes.prefix_rows > 0)
    modules = trained_modules(parameters)
    for i in range(sizes.layers):
        in_block = modules.get(i, TrainedModules())
        if below or in_block.whole or in_block.lora or (trained.prefix and sizes.prefix):
            layers.append(Block(sizes, setup, in_block, below, last=i == sizes.layers - 1).layer())
            below = True
        else:
            layers.append(None)

    final, norm = any("final_layernorm." in name for name in trained.names), 0
    if below or final:
        norm = last_row if setup.on_gpu or not sizes.gated else 2 * last_row * (4 // e) // (1 if final else 2)
    common, start = shared(sizes, batch, value_bytes=e), row
    if trained.prefix and sizes.prefix:
        common += prefix_encoder(sizes, batch, value_bytes=e, on_gpu=setup.on_gpu)
        start += batch.samples * prefix_values(sizes) * e
    end = sizes.layers - blocks_in_graph(parameters, sizes) + setup.recomputed  # the lowest ones, see checkpoint_blocks
    return Graph(
        layers=layers,
        recomputed={i for i, layer in enumerate(layers) if layer and i < end},
        below=common,
        norm=norm,
        row=row,
        last_row=last_row,
        passing=passing(sizes, batch, value_bytes=e),
        start=start,
        head=head(sizes, batch, trained=trained.output or trained.tied, lora=trained.lora_output, value_bytes=e),
    )


def follow_step(parameters: list[Parameter], sizes: Sizes, setup: Setup) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (phase, memory in addition to that between steps), in the order of a step.

    Phases are gather, forward, loss, backward and optimizer; the memory is in bytes of activations, logits, gradients,
    buffers and gathered weights.
    """
    e, trained = setup.value_bytes, find_trained(parameters, sizes)
    graph = build_graph(parameters, sizes, setup, trained)
    groups = optimizer_groups(parameters, setup.ranks)
    gradients = Gradients(setup, groups)

    lowest = next((i for i, layer in enumerate(graph.layers) if layer), sizes.layers)
    tied = not any("output_layer." in parameter.name or "lm_head." in parameter.name for parameter in parameters)
    gathered = gather(parameters, sizes, setup, lowest=lowest, embedding_again=trained.embedding or tied)
    sums = gradients.bytes()
    if gathered.start:
        yield "gather", {"gathered": gathered.start * e, "gradients": sums}
    for blocks, values in gathered.forward:
        yield "forward", {"activations": graph.up_to(blocks) + graph.row, "gathered": values * e, "gradients": sums}

    peak = max(graph.running(i) for i in range(sizes.layers))
    kept = gathered.backward[-1] * e
    yield "forward", {"activations": peak, "gathered": kept, "gradients": sums}
    activations = graph.up_to(sizes.layers) + graph.norm
    yield "loss", {"activations": activations, "logits": graph.head, "gathered": kept, "gradients": sums}
    for i, active in follow_backward(parameters, graph, gradients, trained):
        now = {"gradients": gradients.bytes(), "buffers": gradients.bucket_bytes()}
        yield "backward", {"activations": active, "gathered": gathered.backward[i] * e, **now}
    yield "optimizer", {"gradients": optimizer_extra(setup, groups)}


@dataclass
class Arrivals:
    """Values of the trained parameters in the order of backward.

    top: after the last block. blocks: of each block, those of the feed-forward part's last projection, of its first,
    and the rest. bottom: the embedding and a prefix.
    """

    top: list[int]
    blocks: list[tuple[list[int], list[int], list[int]]]
    bottom: list[int]


def order_of_gradients(parameters: list[Parameter], layers: int) -> Arrivals:
    """Sort the parameters by name."""
    order = Arrivals([], [([], [], []) for _ in range(layers)], [])
    for parameter in parameters:
        if not parameter.trained:
            continue
        name, layer = parameter.name, LAYER.search(parameter.name)
        if layer:
            part = 0 if "dense_4h_to_h." in name else 1 if "dense_h_to_4h." in name else 2
            order.blocks[int(layer[1])][part].append(parameter.size)
        else:
            (order.bottom if "prefix_" in name or "word_embeddings." in name else order.top).append(parameter.size)
    return order


def follow_backward(
    parameters: list[Parameter], graph: Graph, gradients: Gradients, trained: Trained
) -> Iterator[tuple[int, int]]:
    """Add the gradients in order; yields (block, bytes of activations) at each moment that may be the peak."""
    layers = len(graph.layers)
    left, order = graph.up_to(layers), order_of_gradients(parameters, layers)
    if trained.tied:  # the output layer's gradient waits for the embedding's
        gradients.waiting += sum(
            parameter.size for parameter in parameters if parameter.trained and "word_embeddings." in parameter.name
        )
    for values in order.top:
        gradients.add(values)
        yield layers, left + graph.last_row  # the gradient of the hidden states
    for i in reversed(range(layers)):
        layer = graph.layers[i]
        if layer is None:
            break
        recomputed = layer.saved if i in graph.recomputed else 0
        row = graph.last_row if i == layers - 1 else graph.row
        down, up, rest = order.blocks[i]
        nothing: list[int] = []
        for arriving, change in (
            (down, row + layer.extra),
            (up, row - layer.gone),
            (nothing, graph.row + layer.attending),
        ):
            for values in arriving:
                gradients.add(values)
                yield i, left + recomputed + change
            yield i, left + recomputed + change
        for values in rest:
            gradients.add(values)
        left -= graph.kept(i)
    left += graph.row
    for values in order.bottom:
        gradients.waiting += values
        yield 0, left
        gradients.waiting -= values * (2 if trained.tied else 1)
        gradients.add(values)
        yield 0, left
    for _ in gradients.finish():
        yield 0, 0


def optimizer_extra(setup: Setup, groups: list[list[int]]) -> int:
    """Additional bytes of gradients while the optimizer updates one group at a time.

    Before that it computes the norm of one gradient at a time, in float64.

    Args:
        groups: of `optimizer_groups`.
    """
    e, largest = setup.value_bytes, max(map(sum, groups), default=0) // setup.ranks
    if setup.offload_optimizer:
        return 0
    if setup.stage == 3:
        largest_parameter = max((size for sizes in groups for size in sizes), default=0) // setup.ranks
        sub_group = min(largest, setup.sub_group_size + largest_parameter)  # part of a group
        return max(4 * sub_group, norm_bytes(largest_parameter, setup))
    # a flat copy, and its float32 copy
    flat = 4 * largest if e == 4 else (e + 4) * largest
    norm = norm_bytes(largest_fragment(groups, setup.ranks), setup)
    return largest_part(groups, setup.ranks) * e + max(flat, norm)


def blocks_in_graph(parameters: list[Parameter], sizes: Sizes) -> int:
    """Number of blocks that backward reaches, the only ones that can be recomputed."""
    lowest = lowest_trained(parameters)
    return 0 if lowest is None else sizes.layers - lowest


def largest_batch(lengths, supervised, rows: int, row_length: int | None = None) -> Batch:
    """The maximum of each size over all micro-batches of any epoch, rank and seed.

    Args:
        lengths, supervised: int [n], tokens and supervised tokens of each sample.
        rows: samples in a micro-batch; with `row_length`, packed rows of this many tokens (--packing).
    """
    lengths, supervised = np.asarray(lengths, np.int64), np.asarray(supervised, np.int64)

    def most(weights):
        if row_length is None:
            return int(np.sort(weights)[-rows:].sum())
        order = np.argsort(-weights / lengths)  # the largest weight per token first, until the rows are full
        end = 1 + np.searchsorted(np.cumsum(lengths[order]), rows * row_length)
        return int(weights[order[:end]].sum())

    tokens = most(lengths)
    return Batch(
        tokens=tokens if row_length is None else min(tokens, rows * row_length),
        samples=most(np.ones_like(lengths)),
        supervised=most(supervised),
        squares=most(lengths**2),
        answers=most(lengths * supervised),
    )
