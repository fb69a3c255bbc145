"""Compare options, base and data over all ranks before the first step; a difference is an error.

Paths may differ between machines, so the contents are compared instead.
"""

import hashlib
import json
from pathlib import Path

import deepspeed
import torch

from data.formats import Columns
from data.sources import find_sources
from modes import MODES
from modes.directory import Base, fingerprint
from parallel.agreement import agree
from training.command import Command
from training.places import record_files

RECORDS = ("train_path", "dev_path", "probe_path", "replay_path")
# must be given on all ranks or on none; the values may differ
PATHS = (*RECORDS, "model_name_or_path", "output_dir", "data_cache_dir", "dataset_dir", "ds_file", "init_adapter")
OWN = ("local_rank", "dataloader_num_workers")  # may differ per rank or machine


def agree_on_command(command: Command) -> None:
    """Compare options, DeepSpeed files and versions; collective.

    Raises:
        UserError: they differ.
    """
    options, ds = command.options, command.ds
    facts: dict[str, object] = {"torch": torch.__version__, "deepspeed": deepspeed.__version__}
    for name, value in options.flat().items():
        if name in PATHS:
            facts[f"--{name}"] = "given" if value else "not given"
        elif name == "resume_from_checkpoint":
            facts[f"--{name}"] = value if value in ("auto", "none") else "a directory"
        elif name not in OWN:
            facts[f"--{name}"] = value
    for name, paths in record_files(options).items():
        facts[f"the number of files of --{name}"] = len(find_sources(paths, None, "", Columns()))
    listed = find_sources(None, options.data.dataset, options.data.dataset_dir, Columns())
    facts["the number of files of --dataset"] = len(listed)
    facts["--mode"] = command.base.mode
    facts["--precision"] = ds.precision  # follows from the GPU
    facts |= flat(ds.config, "--ds_file ")
    agree(facts, "start all ranks with the same flags, DeepSpeed file and versions; only paths may differ")


def flat(config: dict, prefix: str) -> dict[str, object]:
    """Nested sections by dotted names, without paths."""
    values: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        elif not key.endswith("path"):
            values[f"{prefix}{key}"] = value
    return values


def agree_on_base(base: Base) -> None:
    """Compare the base directories; collective.

    Raises:
        UserError: they differ.
    """
    vocabulary = base.path / MODES[base.mode].tokenizer_class.vocab_files_names["vocab_file"]
    facts = {
        "the fingerprint of --model_name_or_path": fingerprint(base)[:16],
        "its config.json": digest(json.dumps(base.config, sort_keys=True).encode()),
        f"its {vocabulary.name}": digest(vocabulary.read_bytes()),
    }
    agree(facts, "copy one base directory to every machine")


def agree_on_start(init_adapter: str | None) -> None:
    """Compare the weight files of --init_adapter, if it is given; collective.

    Raises:
        UserError: they differ.
    """
    if init_adapter is None:
        return
    directory = Path(init_adapter)
    contents = hashlib.sha256()
    for file in sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")]):
        contents.update(digest(file.read_bytes()).encode())
    agree({"the content of --init_adapter": contents.hexdigest()[:16]}, "copy one adapter to every machine")


def digest(content: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 hash."""
    return hashlib.sha256(content).hexdigest()[:16]
