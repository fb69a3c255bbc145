"""Estimate a run's memory per rank from the model's shapes, without reading weights.

    sizes = read_sizes(config, gated=True)
    setup = Setup(precision="bf16", stage=2, ranks=1, batch=largest_batch(lengths, supervised, 1), …)
    result = estimate(parameters_of(model), sizes, setup)
    result.gpu_peak, result.host_peak, result.parts      # bytes

docs/memory.md has the formulas and their validation. In short, with W values in the model, P of them trained, N ranks
and e bytes per value (2 in bf16 and fp16, 4 in fp32), each rank holds between two steps

    weights     W e (ZeRO-3: W e / N)       master copy 4 P / N         Adam's moments 8 P / N

and the phases of a step are simulated in order (memory/step.py); the largest one is the peak.
"""

from dataclasses import dataclass, field

from memory.activations import Sizes
from memory.gathering import persistent_values
from memory.gradients import optimizer_groups
from memory.setup import Setup
from memory.step import follow_step
from parameters import Parameter, trained_values

SHARD_BYTES = 2 * 10**9  # a checkpoint's shard in memory while it is written


@dataclass(frozen=True)
class Estimate:
    """Estimated bytes per rank.

    parts: contents of the accelerator at the peak: weights, optimizer, gradients, buffers, activations, logits, ….
    moments: the peak of each phase of a step on the accelerator: loss, backward, optimizer, save.
    host: offloaded bytes in RAM; save_host: additional bytes of rank 0 while it writes a checkpoint.
    """

    parts: dict[str, int]
    moments: dict[str, int]
    host: dict[str, int] = field(default_factory=dict)
    save_host: int = 0

    @property
    def gpu_peak(self) -> int:
        """Peak on the accelerator."""
        return max(self.moments.values())

    @property
    def host_peak(self) -> int:
        """Offloaded state and, on rank 0, a checkpoint's shard."""
        return sum(self.host.values()) + self.save_host


def estimate(parameters: list[Parameter], sizes: Sizes, setup: Setup) -> Estimate:
    """Estimate the memory per rank at the peaks of a step.

    Args:
        parameters: of the prepared model; tied ones once.
    """
    e, n, stage = setup.value_bytes, setup.ranks, setup.stage
    values = sum(parameter.size for parameter in parameters)
    trained = trained_values(parameters)
    largest = max((parameter.size for parameter in parameters if parameter.trained), default=0)
    held = {"weights": values * e // (n if stage == 3 else 1), "optimizer": 12 * trained // n}
    host = offloaded(parameters, setup, trained, largest)
    for name in held.keys() & host.keys():
        del held[name]
    held["gathered"] = persistent_values(parameters, setup) * e
    held["buffers"] = held_buffers(setup, largest, trained)
    held["gradients"] = trained // n * e if stage == 3 and not setup.offload_optimizer else 0

    moments: dict[str, int] = {}
    parts: dict[str, int] = {}
    for moment, needed in follow_step(parameters, sizes, setup):
        now = {name: held.get(name, 0) + needed.get(name, 0) for name in held | needed}
        total = sum(now.values())
        moments[moment] = max(moments.get(moment, 0), total)
        if total > sum(parts.values()):
            parts = {name: size for name, size in now.items() if size}
    # parameters are gathered one by one, and copied to the host
    moments["save"] = sum(held.values()) + (largest * e if stage == 3 and n > 1 else 0)
    save_host = trained * e if trained * e < SHARD_BYTES else SHARD_BYTES + largest * e
    if not setup.on_gpu:
        moments["save"] += save_host
        save_host = 0
    return Estimate(parts=parts, moments=moments, host=host, save_host=save_host)


def offloaded(parameters: list[Parameter], setup: Setup, trained: int, largest: int) -> dict[str, int]:
    """Bytes in RAM per rank. Blocks are pinned one by one; Adam's moments are never pinned."""
    e, part, host = setup.value_bytes, -(-trained // setup.ranks), {}
    pin = setup.pin_memory and setup.on_gpu
    groups = [-(-sum(sizes) // setup.ranks) for sizes in optimizer_groups(parameters, setup.ranks)]
    sub_groups = []  # values that the optimizer updates at a time
    for values in groups:
        size = min(values, setup.sub_group_size) if setup.stage == 3 else values
        whole, rest = divmod(values, max(size, 1))
        sub_groups += [size] * whole + [rest]

    def blocks(sizes: list[int], value_bytes: int) -> int:
        return sum(pinned(size * value_bytes, setup) if pin else size * value_bytes for size in sizes)

    if setup.offload_param:
        pieces = [(-(-parameter.size // setup.ranks), parameter.trained) for parameter in parameters]
        host["weights"] = blocks([size for size, is_trained in pieces if not is_trained], e)
        if setup.on_gpu:  # pinned in any case: one block for each group
            host["weights"] += sum(pinned(values * e, setup) for values in groups)
        else:
            host["weights"] += sum(groups) * e
        if pin:  # trained partitions were pinned one by one before, and torch keeps these blocks
            host["weights"] += blocks([size for size, is_trained in pieces if is_trained], e)
    if setup.offload_optimizer:
        master = blocks(sub_groups, 4) if setup.stage < 3 else 4 * part
        host["optimizer"] = master + 8 * part
        # float32 gradients, and half-precision staging: in ZeRO-2 weights and the largest gradient, in ZeRO-3 gradients
        host["gradients"] = blocks(sub_groups, 4) + blocks([part] if setup.stage == 3 else groups, e)
        if setup.stage < 3:
            host["gradients"] += blocks([largest], e)
        if setup.accumulation > 1 and setup.stage == 2:  # ZeRO-1 does not offload the sums
            host["gradients"] += blocks([parameter.size for parameter in parameters if parameter.trained], e)
    return host


def pinned(size: int, setup: Setup) -> int:
    """Bytes that torch's pinned allocator uses for one block: the next power of two for a small one."""
    return 1 << (size - 1).bit_length() if 0 < size <= setup.rounded_up_to else size


def held_buffers(setup: Setup, largest: int, trained: int) -> int:
    """Bytes of buffers that exist during the whole run."""
    if not trained:
        return 0
    if setup.stage == 3:
        return setup.reduce_bucket_size * setup.value_bytes
    return largest * setup.value_bytes if setup.offload_optimizer else 0
