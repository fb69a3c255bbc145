"""Directories and files below the root, for picking."""

import contextlib
import os
from collections.abc import Iterator
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


def list_directory(root: Root, directory: Path) -> Iterator[dict[str, Any]]:
    """Its visible entries that lie below the root, directories first."""
    try:
        entries = sorted(directory.iterdir(), key=lambda path: (not path.is_dir(), path.name.lower()))
    except OSError as error:
        raise Outside(f"{root.name(directory)} cannot be read ({error.strerror}): choose another one.") from None
    for path in entries:
        if path.name.startswith("."):
            continue
        with contextlib.suppress(Refused, OSError):  # a link that leads outside or nowhere is not offered
            real = root.below(str(path))
            entry = {"name": path.name, "path": root.name(path), "kind": kind_of(real)}
            yield entry if real.is_dir() else {**entry, "bytes": real.stat().st_size}
