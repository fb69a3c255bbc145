"""Directories and files below the root, for picking."""

import contextlib
import os
from pathlib import Path
from typing import Any

from checkpoints.record import RECORD_FILE
from runs.errors import Outside, Refused
from runs.places import Root
from runs.states import is_run

DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xlsx", ".txt", ".gz")


def kind_of(path: Path) -> str:
    """What a directory or file is, by the names in it: run, checkpoint, model, directory, data or file."""
    if path.is_file():
        return "data" if path.name.lower().endswith(DATA_ENDINGS) else "file"
    has = set(os.listdir(path)) if os.access(path, os.R_OK | os.X_OK) else set()
    if is_run(has):
        return "run"
    if has & {RECORD_FILE, "adapter_config.json"}:
        return "checkpoint"
    return "model" if "config.json" in has else "directory"


def list_directory(root: Root, directory: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """(its visible entries that lie below the root, directories first; how many are left out, being more than `most`).

    Raises:
        Outside: it may not be read.
    """
    try:
        with os.scandir(directory) as found:
            visible = [(not is_directory(entry), entry.name.lower(), entry.name) for entry in found]
    except OSError as error:
        raise Outside(f"{root.name(directory)} cannot be read ({error.strerror}): choose another one.") from None
    names = [name for _, _, name in sorted(visible) if not name.startswith(".")]
    entries = []
    for path in (directory / name for name in names[:most]):
        with contextlib.suppress(Refused, OSError):  # a link that leads outside or nowhere is not offered
            real = root.below(str(path))
            entry = {"name": path.name, "path": root.name(path), "kind": kind_of(real)}
            entries.append(entry if real.is_dir() else {**entry, "bytes": real.stat().st_size})
    return entries, len(names[most:])


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a directory, or a link to one."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
