"""Describe a memory estimate in sentences."""

from collections.abc import Mapping
from operator import itemgetter

from memory.available import GIB
from memory.estimate import Estimate
from memory.setup import Setup
from memory.suggestions import Suggestion
from texts import counted

MIB = 2**20


def describe_setup(setup: Setup) -> str:
    """One line about the run of an estimate."""
    offloaded = ", optimizer offloaded" if setup.offload_optimizer else ""
    offloaded += ", weights offloaded" if setup.offload_param else ""
    batch = setup.batch
    return (
        f"memory, estimated for {counted(setup.ranks, 'GPU rank' if setup.on_gpu else 'CPU rank')}, {setup.precision}, "
        f"ZeRO-{setup.stage}{offloaded}, {counted(setup.recomputed, 'layer')} recomputed; largest micro-batch: "
        f"{counted(batch.samples, 'sample')}, {counted(batch.tokens, 'token')}, {batch.supervised:,} supervised"
    )


def describe_estimate(result: Estimate, setup: Setup) -> str:
    """An estimate in a few lines, all sizes in the unit of the first."""
    unit, name = (GIB, "GiB") if result.gpu_peak > GIB // 10 else (MIB, "MiB")

    def listed(sizes: Mapping[str, int]) -> str:
        return ", ".join(f"{part} {size / unit:.2f}" for part, size in sizes.items())

    largest_first = dict(sorted(result.parts.items(), key=itemgetter(1), reverse=True))
    lines = [
        f"Peak tensor memory per {'GPU' if setup.on_gpu else 'rank'}: {result.gpu_peak / unit:.2f} {name}",
        f"  at the peak: {listed(largest_first)}",
        f"  peak of each phase: {listed(result.moments)}",
    ]
    if result.host:
        total = sum(result.host.values()) / unit
        lines.append(f"Offloaded to RAM per rank: {total:.2f} {name} ({listed(result.host)})")
    if result.save_host:
        lines.append(f"Additional RAM of rank 0 while saving: {result.save_host / unit:.2f} {name}")
    return "\n".join(lines)


def describe_suggestion(suggestion: Suggestion, gpu_memory: float, memory: int, ranks: int) -> str:
    """The flags that fit, or the memory that the smallest configuration needs.

    Args:
        gpu_memory: GiB of one GPU. memory: usable bytes of it.
    """
    peak = suggestion.estimate.gpu_peak / GIB
    where = f"{ranks} × {gpu_memory:g} GiB (--gpu_memory)"
    if suggestion.fits:
        host = suggestion.estimate.host_peak * ranks / GIB
        ram = f", {host:.1f} GiB of RAM in total" if host > 0.05 else ""
        return f"fits on {where}, {peak:.1f} GiB per GPU{ram}: {suggestion.flags()}"
    return (
        f"nothing fits on {where}: {memory / GIB:.1f} GiB per GPU are usable, the smallest configuration needs "
        f"{peak:.1f} GiB ({suggestion.flags()}); lower --max_len, or use more or larger GPUs"
    )
