"""Checkpoints are written whole or not at all, and the oldest go.

output_dir/epoch-E-step-S/
    checkpoint.json     see checkpoints/record.py
    ...                 what the method writes (an adapter, a prefix encoder, trained tensors, or the full model)
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from checkpoints.record import MERGED_FILE, RECORD_FILE, run_of
from files import read_json, remove_whole, whole_directory, write_json

BEST = "best"  # the checkpoint of the best evaluation


def copy_beside(files: Iterable[Path], directory: Path, config_changes: dict) -> None:
    """Copy what stands beside a base's weights, and change keys of config.json on the way.

    The records of a base that was itself trained or merged stay behind: they do not describe the new directory.
    """
    for file in files:
        target = directory / file.name
        if file.name in (RECORD_FILE, MERGED_FILE):
            continue
        if file.is_dir():
            shutil.copytree(file, target)
        elif file.name == "config.json":
            write_json(target, {**read_json(file, "download it again"), **config_changes})
        else:
            shutil.copy2(file, target)


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
        tensors: (name, CPU tensor) pairs; reading them may be collective work, so every rank reads all of them.
        save: writes what the method keeps into a directory.

    Raises:
        OSError or SafetensorError: on rank 0, when the disk is full or not writable; the checkpoint of that name is
            then as it was.
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
    for _ in tensors:  # the other ranks' part, and what is left of it after a failure
        pass
    if failure is not None:
        raise failure


def step_of(directory: Path) -> int:
    """The optimiser step in a checkpoint's name; -1 for any other name."""
    match = re.fullmatch(r"epoch-\d+-step-(\d+)", directory.name)
    return int(match[1]) if match else -1


def remove_old(saved: list[Path], limit: int | None) -> list[Path]:
    """Delete the oldest of this run's checkpoints beyond the `limit` newest; returns those that stay.

    Args:
        saved: what this process wrote, oldest first. What the run wrote before it was resumed counts too: the
            directories beside the newest, up to its step, whose record is of the same run.
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
