"""The models below a root: bases, merged models and checkpoints, and the base of each checkpoint."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from checkpoints.output_names import find_checkpoints
from checkpoints.record import RECORD_FILE
from runs.browsing import kind_of
from runs.errors import Refused
from runs.places import Root
from runs.reading import read, stamp
from runs.states import walk

WEIGHTS = (".safetensors", ".bin")  # endings of files


def find_models(root: Root) -> Iterator[dict[str, str]]:
    """{path, kind, base} of each: kind "model" or "checkpoint"; base as in `links_of`."""
    for directory, names in walk(root.path):
        checkpoints = [directory / name for name in find_checkpoints(directory)]
        for path in [directory, *checkpoints] if is_model(names) else checkpoints:
            if (kind := kind_of(path)) in ("model", "checkpoint"):
                yield {"path": root.name(path), "kind": kind, "base": base_of(root, path)}


def is_model(names: set[str]) -> bool:
    """Whether a directory with these names has a config and weights."""
    return bool(names & {"config.json", "adapter_config.json"}) and any(name.endswith(WEIGHTS) for name in names)


def links_of(root: Root, directory: Path) -> dict[str, Any]:
    """{checkpoint, base} of a run, as paths below the root: the best checkpoint, else the newest, and what it was
    trained on. "" where there is none, or it lies outside of the root.
    """
    names = find_checkpoints(directory)
    if not names:
        return {"checkpoint": "", "base": ""}
    checkpoint = directory / ("best" if "best" in names else names[-1])
    return {"checkpoint": root.name(checkpoint), "base": base_of(root, checkpoint)}


def base_of(root: Root, checkpoint: Path) -> str:
    """The base that a checkpoint recorded, as a path below the root, or ""."""
    record = checkpoint / RECORD_FILE
    try:
        base = root.below(recorded_base(record, stamp(record)))
    except Refused:
        return ""
    return root.name(base) if base.is_dir() else ""


@lru_cache(maxsize=1000)
def recorded_base(path: Path, _stamp: tuple[int, int]) -> object:
    """The absolute path of the base in a checkpoint.json; None without one."""
    base = read(path).get("base")
    text = base.get("path") if isinstance(base, dict) else None
    return text if isinstance(text, str) and os.path.isabs(text) else None
