"""run.yaml of runs: what the list shows, the options that differ, and the values with which a run is resumed."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from options.config_file import read_config
from options.fields import is_field, is_path, suggestions, values_of
from options.train import TRAIN
from options.values import as_text
from runs.places import REPOSITORY, Root
from runs.reading import tail

SHOWN = {"mode": "mode", "train_type": "train_type", "train_path": "train_path"}


@lru_cache(maxsize=1000)
def read_options(path: Path, _stamp: tuple[int, int]) -> dict[str, str | None]:
    """What the page shows of a run.yaml; reading YAML is slow."""
    try:
        content = yaml.safe_load(tail(path))
    except (yaml.YAMLError, RecursionError, ValueError):
        content = None
    texts = content if isinstance(content, dict) else {}
    return {shown: str(texts[name]) if texts.get(name) else None for shown, name in SHOWN.items()}


def values_again(root: Root, directory: Path) -> dict[str, str]:
    """The values with which a run is resumed: those of its run.yaml, in the directory where it lies now."""
    values = {}
    for name, text in values_of(TRAIN, ["--config", str(directory / "run.yaml")]).items():
        flag = TRAIN.flags[name]
        if is_path(flag) and text not in suggestions(flag):
            text = ",".join(str(REPOSITORY / part) for part in (text.split(",") if flag.several else [text]))
        if is_field(flag):
            values[name] = text
    if any(directory.glob("state/step-*")):
        values["resume_from_checkpoint"] = "auto"
    return {**values, "output_dir": root.name(directory)}


def differing(paths: Sequence[Path | None]) -> list[dict[str, Any]]:
    """{name, values} of each option that has not the same value in all of several run.yaml, in order of --help."""
    files = [read_config(os.fspath(path), TRAIN.name, TRAIN.flags, TRAIN.advice)[0] if path else {} for path in paths]
    columns = {name: [file.get(name, flag.default) for file in files] for name, flag in TRAIN.flags.items()}
    return [
        {"name": name, "values": ["" if value is None else as_text(value) for value in values]}
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    ]
