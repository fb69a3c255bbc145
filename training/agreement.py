"""Compare options, base and data over all ranks before the first step; a difference is an error.

Paths may differ between machines, so the contents are compared instead.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import deepspeed
import torch

from data.formats import Columns
from data.sources import find_sources
from errors import UserError
from modes import MODES
from modes.directory import Base, fingerprint
from training import ranks
from training.command import Command
from training.places import record_files

SHOWN = 3  # differences that an error names
RECORDS = ("train_path", "dev_path", "probe_path", "replay_path")
# must be given on all ranks or on none; the values may differ
PATHS = (*RECORDS, "model_name_or_path", "output_dir", "data_cache_dir", "dataset_dir", "ds_file", "init_adapter")
OWN = ("local_rank", "dataloader_num_workers")  # may differ per rank or machine


def agree(facts: Mapping[str, object], remedy: str) -> None:
    """Compare facts over all ranks; collective.

    Args:
        facts: short values by their name in the error.
        remedy: how to make them equal.

    Raises:
        UserError: what differs and where; the same on every rank.
    """
    everyone = ranks.gathered(facts)
    names = list(dict.fromkeys(name for theirs in everyone for name in theirs))
    different = [name for name in names if any(theirs.get(name) != everyone[0].get(name) for theirs in everyone)]
    if different:
        clauses = [describe(name, [theirs.get(name) for theirs in everyone]) for name in different[:SHOWN]]
        more = f"; {len(different) - SHOWN} more differ" if len(different) > SHOWN else ""
        raise UserError(f"the ranks differ: {'; '.join(clauses)}{more}: {remedy}.")


def describe(name: str, values: list) -> str:
    """ "--max_len is 256 on rank 0 and 1 (host a), 128 on rank 2 (host b)"; `values` are in rank order."""
    texts = [json.dumps(value, default=str) for value in values]
    parts = []
    for text in dict.fromkeys(texts):
        members = [peer for peer, its_text in zip(ranks.peers(), texts, strict=True) if its_text == text]
        numbers = " and ".join(str(peer.rank) for peer in members)
        hosts = " and ".join(dict.fromkeys(peer.host for peer in members))
        parts.append(f"{text.strip(chr(34))} on rank {numbers} ({hosts})")
    return f"{name} is {', '.join(parts)}"


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
