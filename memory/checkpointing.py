"""How many layers are computed again in backward: as few as memory asks for, since each costs a forward pass."""

from dataclasses import replace

from memory.activations import Sizes
from memory.available import GIB
from memory.estimate import Estimate, estimate
from memory.setup import Setup
from memory.step import blocks_in_graph
from parameters import Parameter

AUTO = "auto"
# Of what there is, for an estimate that may be off: on GPUs none has been compared with a run, and on CPUs Python and
# its libraries take some as well.
SAFE_SHARE = 0.8


def layers_to_recompute(parameters: list[Parameter], sizes: Sizes, setup: Setup, limit: int) -> tuple[int, Estimate]:
    """The smallest number of recomputed layers whose peak stays within a limit, and the estimate with it.

    Where no number does: all, or fewer if the peak is lower then (backward begins with the uppermost layers: computing
    these again saves nothing).

    Args:
        parameters: of the prepared model.
        setup: of the run; its `recomputed` does not count.
        limit: bytes of one rank.
    """

    found = []
    for count in range(blocks_in_graph(parameters, sizes) + 1):
        found.append(estimate(parameters, sizes, replace(setup, recomputed=count)))
        if bytes_of_rank(found[-1], setup) <= limit:
            return count, found[-1]
    peaks = [bytes_of_rank(one, setup) for one in found]
    count = len(peaks) - 1 if peaks[-1] == min(peaks) else peaks.index(min(peaks))
    return count, found[count]


def bytes_of_rank(result: Estimate, setup: Setup) -> int:
    """The peak on the accelerator; a CPU holds what is offloaded too."""
    return result.gpu_peak + (0 if setup.on_gpu else sum(result.host.values()))


def choose_layers(
    asked: int | str, parameters: list[Parameter], sizes: Sizes, setup: Setup, memory: int
) -> tuple[int, str]:
    """(layers that a run recomputes, why so many).

    Args:
        asked: "auto" or a number.
        memory: bytes that tensors of one rank may take.
    """
    every = blocks_in_graph(parameters, sizes)
    if asked != AUTO:
        return min(asked, every), f"--checkpoint_layers {asked}"
    limit = int(SAFE_SHARE * memory)
    count, result = layers_to_recompute(parameters, sizes, setup, limit)
    needed = bytes_of_rank(result, setup)
    then = "then" if needed <= limit else "still"
    return count, (
        f"--checkpoint_layers auto: a rank {then} takes {needed / GIB:.2f} GiB by estimate, and may take "
        f"{limit / GIB:.2f} GiB, {SAFE_SHARE:.0%} of what is there for tensors"
    )
