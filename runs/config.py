"""run.yaml of runs: what the list shows, the options that differ, and the values with which a run is resumed."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from options.config_file import NULL, read_config
from options.fields import is_field, is_path, suggestions, values_of
from options.train import TRAIN
from options.values import as_text
from runs.errors import Missing, Refused
from runs.places import REPOSITORY, Root
from runs.reading import LARGEST_FILE, encodable, size_of, tail

SHOWN = ("mode", "train_type", "train_path")


@lru_cache(maxsize=1000)
def read_options(path: Path, _stamp: tuple[int, int]) -> dict[str, str | None]:
    """What the page shows of a run.yaml. Reading YAML is slow; without aliases and merged keys, it is never endless."""
    try:
        node = yaml.compose(tail(path), yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        node = None
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    texts = {key.value: encodable(value.value) for key, value in pairs if is_text(key) and is_text(value)}
    return {name: texts.get(name) or None for name in SHOWN}


def is_text(node: yaml.Node) -> bool:
    """Whether a node is a scalar that says something."""
    return isinstance(node, yaml.ScalarNode) and node.tag != NULL


def config_of(root: Root, run: str) -> Path | None:
    """The run.yaml of a run; None without one.

    Raises:
        Refused, Outside: it is too large, or a link that leads outside.
    """
    path = root.file(run, "run.yaml")
    if size_of(path) > LARGEST_FILE:
        raise Refused(f"run.yaml of {run} has over {LARGEST_FILE:,} bytes: it is no file of options.")
    return path


def values_again(root: Root, directory: Path) -> dict[str, str]:
    """The values with which a run is resumed: those of its run.yaml, in the directory where it lies now.

    Raises:
        UserError: it has none, or no valid one.
    """
    path, values = config_of(root, root.name(directory)), {}
    if path is None:
        raise Missing(f"{root.name(directory)} has no run.yaml: start it with the form.", "run")
    for name, text in values_of(TRAIN, ["--config", str(path)]).items():
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
        {"name": name, "values": ["" if value is None else encodable(as_text(value)) for value in values]}
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    ]
