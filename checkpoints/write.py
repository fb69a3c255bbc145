"""Write checkpoints atomically, and delete the oldest.

output_dir/epoch-E-step-S/
    checkpoint.json     see checkpoints/record.py
    ...                 the method's files (an adapter, a prefix encoder, trained tensors, or the full model)
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from checkpoints.record import RECORD_FILE, run_of
from files import remove_whole, whole_directory, write_json

BEST = "best"  # the checkpoint of the best evaluation


def save_checkpoint(
    directory: Path,
    tensors: Iterator,
    save: Callable[[Path, Iterator], None],
    record: dict,
    is_main: bool,
    record_file: str = RECORD_FILE,
) -> None:
    """Write one checkpoint. Every rank calls it; rank 0 writes.

    Args:
        tensors: (name, CPU tensor) pairs; iterating may be collective, so every rank reads all of them.
        save: writes the method's files into a directory.

    Raises:
        OSError or SafetensorError: on rank 0, if the disk is full or not writable; an existing checkpoint of that name
            stays unchanged.
    """
    failure = None
    if is_main:
        try:
            with whole_directory(directory) as temporary:
                save(temporary, tensors)
                sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir()) if path.is_file()}
                write_json(temporary / record_file, {**record, "files": sizes})
        except (OSError, SafetensorError) as error:
            failure = error
    for _ in tensors:  # iterate on the other ranks, and to the end after a failure
        pass
    if failure is not None:
        raise failure


def step_of(directory: Path) -> int:
    """The optimizer step in a checkpoint's name; -1 for any other name."""
    match = re.fullmatch(r"epoch-\d+-step-(\d+)", directory.name)
    return int(match[1]) if match else -1


def remove_old(saved: list[Path], limit: int | None) -> list[Path]:
    """Delete this run's checkpoints except the `limit` most recent; returns the remaining ones.

    Args:
        saved: the checkpoints of this process, oldest first. Those before a resume count, too: directories next to the
            newest, up to its step, with a record of the same run.
    """
    if limit is None:
        return saved
    newest = saved[-1]
    run = run_of(newest)
    before = [
        path
        for path in newest.parent.iterdir()
        if 0 <= step_of(path) <= step_of(newest) and path not in saved and run and run_of(path) == run
    ]
    existing = sorted((path for path in [*before, *saved] if path.is_dir()), key=step_of)
    for directory in existing[:-limit]:
        remove_whole(directory)
    return existing[-limit:]
