"""Check the free disk space before a write; if a write fails, end all ranks together."""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from parallel.ranks import fail_together, is_main


def free_bytes(directory: Path) -> int:
    """Free bytes on the disk of a directory, which need not exist yet."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def space_problem(directory: Path, needed: int, content: str) -> str | None:
    """An error if fewer than `needed` bytes are free there.

    Args:
        content: what is written, such as "a checkpoint", for the error.
    """
    free = free_bytes(directory)
    if free >= needed:
        return None
    return (
        f"{directory} has {free / 1e9:,.2f} GB free and {content} needs {needed / 1e9:,.2f} GB: free some space there, "
        "or give another --output_dir."
    )


def check_space(output_dir: Path, needed: int, content: str) -> None:
    """Raise UserError on every rank if rank 0, the writer, has fewer than `needed` bytes; see `space_problem`."""
    fail_together(space_problem(output_dir, needed, content) if is_main() else None)


def write_or_stop(output_dir: Path, needed: int, content: str, write: Callable[[], object]) -> None:
    """Write something on all ranks; if the disk is too full, or fills up meanwhile, all ranks end with an error.

    Args:
        needed: bytes to write.
        write: collective; files that it replaces stay intact if it fails.

    Raises:
        UserError: on every rank.
    """
    check_space(output_dir, needed, content)
    problem = None
    try:
        write()
    except (OSError, SafetensorError) as error:
        problem = (
            f"{content} could not be written to {output_dir} ({error}): free some space and repeat the same command."
        )
    fail_together(problem)
