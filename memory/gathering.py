"""Simulate which weights ZeRO-3 has gathered in each phase; in values, to multiply by the bytes per value.

DeepSpeed prefetches weights, as long as at most `max_live_parameters` are requested or gathered. A request of about
`prefetch_bucket_size` values arrives in one flat buffer. Its first use copies all of it into parameters, and the buffer
is freed after its last parameter has been used. Weights that backward needs stay until backward has passed their block.
"""

from dataclasses import dataclass
from itertools import accumulate

from memory.activations import Sizes
from memory.setup import Setup
from parameters import LAYER, Parameter, block_of


@dataclass(frozen=True)
class Gathered:
    """start: before the first block. forward: (blocks that have run, values).

    backward: during each block, and, as the last item, during the loss.
    """

    start: int
    forward: list[tuple[int, int]]
    backward: list[int]


def persistent_values(parameters: list[Parameter], setup: Setup) -> int:
    """Values of the small parameters, which always stay gathered."""
    small = (parameter.size for parameter in parameters if parameter.size <= setup.persistence_threshold)
    return sum(small) if setup.gathers else 0


def gather(parameters: list[Parameter], sizes: Sizes, setup: Setup, *, lowest: int, embedding_again: bool) -> Gathered:
    """Simulate a step's forward, without the parameters that always stay gathered.

    Args:
        parameters: in the order of their use in forward.
        lowest: the lowest block of the graph.
        embedding_again: whether backward, or the output layer, reads the embedding.
    """
    if not setup.gathers:
        return Gathered(0, [], [0] * (sizes.layers + 1))
    moved = [
        (parameter.name, parameter.size) for parameter in parameters if parameter.size > setup.persistence_threshold
    ]
    values, largest = sum(size for _, size in moved), max((size for _, size in moved), default=0)
    limit = max(setup.max_live_parameters - persistent_values(parameters, setup), 0)
    largest_total = min(values, limit + largest)
    if setup.ranks == 1:  # nothing to gather: offloaded weights are copied
        return Gathered(0, [], [largest_total] * (sizes.layers + 1))

    forward, blocks, used, kept, bucket = [], 0, 0, 0, 0
    read_again = [0] * (sizes.layers + 1)  # values that backward needs, of each block and of the output layer
    for i, (name, size) in enumerate(moved):
        layer = LAYER.search(name)
        blocks = int(layer[1]) + 1 if layer else blocks
        again = embedding_again if "word_embeddings." in name else layer is None or int(layer[1]) >= lowest
        bucket += size
        block = block_of(name)
        read_again[sizes.layers if block is None else block] += size * again
        if bucket >= setup.prefetch_bucket_size or i == len(moved) - 1:
            flat = min(values - used, max(limit - kept, bucket))
            forward.append((blocks, kept + bucket + flat))
            used, kept, bucket = used + bucket, min(sum(read_again), limit), 0
    # gloo, used on CPUs, keeps its own copy while it receives
    start = largest_total if setup.on_gpu else 2 * largest_total
    return Gathered(start, forward, [min(values, largest_total) for values in accumulate(read_again)])
