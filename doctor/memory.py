"""The memory that a run takes, in sentences."""

from memory.available import GIB
from memory.estimate import Estimate
from memory.setup import Setup


def describe_estimate(result: Estimate, setup: Setup) -> str:
    """An estimate in a few lines, all sizes in the unit of the first."""
    unit, name_of_unit = (GIB, "GiB") if result.gpu_peak > GIB // 10 else (2**20, "MiB")

    def listed(sizes):
        return ", ".join(f"{name} {size / unit:.2f}" for name, size in sizes)

    kind = "GPU" if setup.on_gpu else "RAM"
    lines = [
        f"{kind} of a rank: {result.gpu_peak / unit:.2f} {name_of_unit} at most, in tensors",
        "  then: " + listed(sorted(result.parts.items(), key=lambda part: -part[1])),
        "  fullest moments: " + listed(result.moments.items()),
    ]
    if result.host:
        offloaded_size = sum(result.host.values()) / unit
        lines.append(
            f"offloaded to RAM, of a rank: {offloaded_size:.2f} {name_of_unit} ({listed(result.host.items())})"
        )
    if result.save_host:
        lines.append(f"RAM of rank 0 while it saves: {result.save_host / unit:.2f} {name_of_unit} more")
    return "\n".join(lines)


def describe_setup(setup: Setup) -> str:
    """What an estimate is of, in a line."""
    offload = ", optimiser offloaded" if setup.offload_optimizer else ""
    offload += ", weights offloaded" if setup.offload_param else ""
    kind = "GPU" if setup.on_gpu else "CPU"
    batch, samples = setup.batch, "1 sample" if setup.batch.samples == 1 else f"{setup.batch.samples:,} samples"
    return (
        f"memory, estimated for {setup.ranks} {kind} ranks, {setup.precision}, ZeRO-{setup.stage}{offload}, "
        f"{setup.recomputed} layers recomputed, a micro-batch of at most {samples} with {batch.tokens:,} tokens, "
        f"{batch.supervised:,} of them supervised"
    )


def describe_suggestion(found, gpu_memory: float, memory: int, ranks: int) -> str:
    """The flags that fit, or how far the smallest configuration is from fitting.

    Args:
        gpu_memory: GiB of a card. memory: bytes of it that tensors may take.
    """
    peak = found.estimate.gpu_peak / GIB
    where = f"{ranks} × {gpu_memory:g} GiB (--gpu_memory)"
    if found.fits:
        host = found.estimate.host_peak * ranks / GIB
        ram = f" and {host:.1f} GiB of RAM for all" if host > 0.05 else ""
        return f"fits {where}, {peak:.1f} GiB each{ram}: {found.flags()}"
    return (
        f"nothing fits {where}: of a card {memory / GIB:.1f} GiB are for tensors, the smallest "
        f"configuration takes {peak:.1f} GiB ({found.flags()}); lower --max_len, or take more or larger cards"
    )
