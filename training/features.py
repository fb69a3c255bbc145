"""--cache_frozen_features: run the frozen layers once per sample instead of once per epoch.

The output of the layers below the lowest trained one never changes for a sample. Every machine computes it for all
samples, and stores it next to the tokenized data in a file named by a hash of all inputs. A later run with the same
base, data and layers maps the same file.
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from checkpoints.space import free_bytes
from data.collate import arrange, to_device
from data.features import FeatureDataset, describe_features, feature_bytes, is_whole
from data.loading import group_by_length
from errors import UserError
from files import sync
from parallel import launch, ranks
from parallel.zero import evaluating
from parameters import Parameter, block_of, lowest_trained
from shards import DTYPES
from training.datasets import TrainingData


def first_trained_block(parameters: list[Parameter]) -> int:
    """The number of the first trained block.

    Args:
        parameters: of the whole model.

    Raises:
        UserError: no block below it is frozen.
    """
    lowest = lowest_trained(parameters)
    if not lowest:
        below = [parameter.name for parameter in parameters if parameter.trained and block_of(parameter.name) == 0]
        reason = f"{below[0]} is trained" if below else "no layer is trained"
        raise UserError(
            f"--cache_frozen_features has nothing to cache, because {reason}; train only upper layers "
            "(--freeze_last_n), or leave the flag out."
        )
    return lowest


def cache_features(
    engine, data: TrainingData, first_block: int, directory: Path, *, key: list, precision: str, at: Callable
) -> TrainingData:
    """The data with features, which are computed if the cache lacks them; unchanged if `first_block` is 0.

    Every rank must call it.

    Args:
        first_block: the block whose input the features are.
        directory: of the file, on every machine.
        key: what the features depend on besides data, block and precision.
        at: called with the name of the next phase, equally often on every rank.

    Raises:
        UserError: the disk has too little space, or cannot be written.
    """
    if not first_block:
        return data
    key = [*key, data.identity, data.steps.seed, first_block, precision]
    rows = rows_with_features(engine, data, first_block, directory, key=key, dtype=DTYPES[precision], at=at)
    return replace(data, rows=rows, batches=replace(data.batches, first_block=first_block))


def rows_with_features(
    engine, data: TrainingData, first_block: int, directory: Path, *, key: list, dtype: torch.dtype, at: Callable
) -> FeatureDataset:
    """The rows with features; arguments as in `cache_features`, except that `key` has everything they depend on."""
    dataset, hidden_size = data.rows, engine.module.config.hidden_size
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path, size = directory / f"features-{digest[:32]}.bin", feature_bytes(dataset, hidden_size, dtype)

    def open_file(name: Path) -> FeatureDataset:
        return FeatureDataset(dataset, name, hidden_size, dtype)

    missing = ranks.gathered(not is_whole(path, size))
    described = describe_features(int(dataset.lengths.sum()), hidden_size, dtype.itemsize)
    if not any(missing):
        ranks.say(f"features of the {first_block} frozen layers: {described}, cached in {path}")
        return open_file(path)

    ranks.say(f"features of the {first_block} frozen layers: {described}, computed once and cached in {path}")
    # one file per machine, filled by all its ranks, under a name that no other machine or run uses
    unique = ranks.gathered(f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")[ranks.leader()]
    temporary = path.with_suffix(f".{unique}.tmp")
    ranks.work_first(lambda: make_room(temporary, size), launch.local_rank() == 0)
    features = open_file(temporary)
    batches = group_by_length(dataset.lengths, data.steps.per_device_train_batch_size)
    local_ranks = ranks.on_this_machine()
    own_batches = batches[local_ranks.index(ranks.rank()) :: len(local_ranks)]
    rounds = -ranks.smallest(-len(own_batches))  # ZeRO-3 needs all ranks in every pass: some repeat their last one
    own_batches += [batches[-1]] * (rounds - len(own_batches))
    write_features(
        engine.module, engine.device, features, own_batches, first_block=first_block, layout=data.batches.layout,
        share_prompts=data.batches.share_prompts, at=at,
    )  # fmt: skip
    del features
    dist.barrier()
    ranks.work_first(lambda: publish(temporary, path, size), launch.local_rank() == 0)
    return open_file(path)


def publish(temporary: Path, path: Path, size: int) -> None:
    """Rename a finished file. A complete file of that name stays, because other processes may have mapped it."""
    try:
        sync(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, it replaces nothing
        if is_whole(path, size):
            temporary.unlink()
            return
    except OSError:  # a file system without hard links
        pass
    try:
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"--cache_frozen_features cannot write {path} ({error.strerror}): choose another directory with "
            "--data_cache_dir."
        ) from None


def make_room(path: Path, size: int) -> None:
    """Create an empty file of that size."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        free = free_bytes(path.parent)
        if free < size:
            raise UserError(
                f"{path.parent} has {free / 1e9:,.2f} GB free and --cache_frozen_features needs {size / 1e9:,.2f} GB: "
                "free some space there, choose another directory with --data_cache_dir, or leave the flag out."
            )
        with path.open("wb") as file:
            file.truncate(size)
    except OSError as error:
        raise UserError(
            f"--cache_frozen_features cannot write {path} ({error.strerror}): choose another directory with "
            "--data_cache_dir."
        ) from None


def write_features(
    model,
    device: torch.device,
    dataset: FeatureDataset,
    batches: list[list[int]],
    *,
    first_block: int,
    layout: Callable,
    share_prompts: bool,
    at: Callable[[str], None] = lambda mark: None,
) -> None:
    """Compute and write the features of the samples in `batches`.

    Args:
        model: its `transformer` accepts `blocks`. device: its device.
        batches: sample numbers of each forward pass.
    """
    with evaluating(model, device):
        for number, members in enumerate(batches, start=1):
            at(f"features: batch {number} of {len(batches)}")
            samples = [dataset.dataset[i] for i in members]
            pieces, batch = arrange(samples, layout, share_prompts)
            outputs = model.transformer(**to_device(batch, device), blocks=range(first_block))
            segments, hidden = batch["segments"], outputs.last_hidden_state[0].cpu()  # [T, h]
            parts = hidden.split([length for length, _, _ in segments])
            parents = {parent for _, parent, _ in segments}
            for j, ((i, start, _), (_, parent, _)) in enumerate(zip(pieces, segments, strict=True)):
                if j not in parents:
                    row = dataset.of(members[i])
                    row[start:] = parts[j]
                    if parent >= 0:
                        row[:start] = parts[parent]
