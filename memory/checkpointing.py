"""Choose the number of layers to recompute in backward: as few as possible, because each costs a forward pass."""

from dataclasses import replace

from memory.activations import Sizes
from memory.available import GIB
from memory.estimate import Estimate, estimate
from memory.setup import Setup
from memory.step import blocks_in_graph
from parameters import Parameter

# Fraction of the usable memory, because the estimate may be wrong: on GPUs it has not been compared with a run, and on
# CPUs Python and its libraries need memory, too.
SAFE_SHARE = 0.8


def layers_to_recompute(parameters: list[Parameter], sizes: Sizes, setup: Setup, limit: int) -> tuple[int, Estimate]:
    """The smallest number of recomputed layers whose peak stays within a limit, and its estimate.

    If no number does, it is all layers, or fewer if their peak is lower. Backward starts with the uppermost layers, so
    recomputing these saves nothing.

    Args:
        parameters: of the prepared model.
        setup: of the run; its `recomputed` is not used.
        limit: bytes per rank.
    """

    estimates = []
    for count in range(blocks_in_graph(parameters, sizes) + 1):
        estimates.append(estimate(parameters, sizes, replace(setup, recomputed=count)))
        if bytes_of_rank(estimates[-1], setup) <= limit:
            return count, estimates[-1]
    peaks = [bytes_of_rank(result, setup) for result in estimates]
    count = len(peaks) - 1 if peaks[-1] == min(peaks) else peaks.index(min(peaks))
    return count, estimates[count]


def bytes_of_rank(result: Estimate, setup: Setup) -> int:
    """The peak on the accelerator; on a CPU including offloaded tensors."""
    return result.gpu_peak + (0 if setup.on_gpu else sum(result.host.values()))


def choose_layers(
    asked: int | str, parameters: list[Parameter], sizes: Sizes, setup: Setup, memory: int
) -> tuple[int, str]:
    """(number of recomputed layers, reason).

    Args:
        asked: "auto" or a number.
        memory: usable bytes per rank, the smallest of all ranks.
    """
    every = blocks_in_graph(parameters, sizes)
    if isinstance(asked, int):
        return min(asked, every), f"--checkpoint_layers {asked}"
    budget = int(SAFE_SHARE * memory)
    count, result = layers_to_recompute(parameters, sizes, setup, budget)
    peak = bytes_of_rank(result, setup)
    return count, (
        f"--checkpoint_layers auto: estimated peak {peak / GIB:.2f} GiB per {'GPU' if setup.on_gpu else 'rank'}, "
        f"{'' if peak <= budget else 'over the '}budget {budget / GIB:.2f} GiB ({SAFE_SHARE:.0%} of usable memory)"
    )
