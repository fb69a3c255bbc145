"""Memory available for a rank's tensors."""

from pathlib import Path

import psutil

GIB = 2**30
# Not counted by formulas, and not by torch.cuda.max_memory_allocated: CUDA's context, NCCL's buffers, fragments.
RESERVED_BYTES, RESERVED_SHARE = 1 * GIB, 0.03
UNLIMITED = 1 << 60  # cgroups v1 report a number near 2^63 if there is no limit


def usable(gpu_bytes: int) -> int:
    """Bytes of a GPU's memory that are usable for tensors."""
    return max(int(gpu_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES, 0)


def memory_of_rank(local_ranks: int, gpu_memory: float | None = None) -> int:
    """Bytes available for this rank's tensors: of its GPU, or its share of this machine's RAM.

    Args:
        local_ranks: ranks on this machine.
        gpu_memory: GiB of a GPU that need not exist.
    """
    if gpu_memory is not None:
        return usable(int(gpu_memory * GIB))
    import torch  # takes seconds, and the page needs only what is below

    if torch.cuda.is_available():
        return usable(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return free_ram() // local_ranks


def free_ram(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM still available on this machine, or in this container."""
    in_groups = [free_in_group(*group) for group in memory_groups(proc, cgroups)]
    return min([psutil.virtual_memory().available, *in_groups])


def total_ram(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM of this machine, or that this container may use."""
    limits = [limit_of(directory, limit_file) for directory, limit_file, _ in memory_groups(proc, cgroups)]
    return min([psutil.virtual_memory().total, *limits])


def memory_groups(proc: Path, cgroups: Path) -> list[tuple[Path, str, str]]:
    """(directory, file of its limit, file of its usage) of this process's control groups.

    The limits of a group and all its parents apply; in a container the file system's root is the container's group.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    groups = []
    for line in lines:  # hierarchy:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        directory = root / path.lstrip("/")
        groups += [(group, *files) for group in (directory, *directory.parents) if group.is_relative_to(root)]
    return groups


def limit_of(directory: Path, limit_file: str) -> int:
    """A control group's limit in bytes; `UNLIMITED` if it has none, or is not there."""
    try:
        limit = (directory / limit_file).read_text().strip()
    except OSError:
        return UNLIMITED
    return UNLIMITED if limit == "max" else int(limit)


def free_in_group(directory: Path, limit_file: str, usage_file: str) -> int:
    """Bytes still available in a control group; reclaimable file pages count as free."""
    limit = limit_of(directory, limit_file)
    try:
        used = int((directory / usage_file).read_text())
        statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except OSError:  # no such group here, or no limit on it
        return UNLIMITED
    if limit == UNLIMITED:
        return UNLIMITED
    pages = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return max(limit - used + pages, 0)
