"""Merge a checkpoint of any method into its base, or take a base as it is: the tensors of a complete model.

`write_whole` writes them; the formats are in export/.

Runs on the CPU, one tensor at a time, and holds at most one shard in memory.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from checkpoints.read import CheckpointInfo, check_base, check_fit, notes_on_base, read_checkpoint
from checkpoints.record import MERGED_FILE, make_record, read_record
from errors import UserError
from files import whole_directory, write_json, write_problem
from methods import METHODS
from methods.tensors import Fold, unchanged
from modes import MODES
from modes.directory import Base, fingerprint, iterate_shards, quantization_bit, read_base
from shards import DTYPES
from texts import one_line


@dataclass(frozen=True)
class Merge:
    """A checked checkpoint and base, and the change that merging makes to the base.

    checkpoint: the base itself, if nothing is merged. output_dir: directory of the result.
    dtype: of the merged weights; None: of each tensor in the base. notes: sentences to print before merging.
    """

    base: Base
    checkpoint: CheckpointInfo
    output_dir: Path
    fold: Fold
    dtype: torch.dtype | None
    notes: list[str]


def prepare_merge(
    ori_model_dir: Path,
    model_dir: Path | None,
    output_dir: Path,
    *,
    mode: str | None = None,
    precision: str = "auto",
    force: bool = False,
) -> Merge:
    """Read and check the base and the checkpoint; nothing is written.

    Args:
        model_dir: of the checkpoint; None for the base alone.
        mode: generation of the base, if its files do not show it.
        precision: of the merged weights; "auto": that of the checkpoint's run, or of the base without such a run.
        force: merge into a base that the checkpoint was not trained on.

    Raises:
        UserError: the inputs do not match, or the output would overwrite files.
    """
    if model_dir is None:
        return prepare_base(ori_model_dir, output_dir, mode, precision)
    if not model_dir.is_dir():
        raise UserError(f"--model_dir {model_dir} is not a directory: give the directory of a checkpoint.")
    checkpoint = read_checkpoint(model_dir)
    base = read_base(ori_model_dir, mode, recorded=checkpoint.mode)
    check_output(output_dir, {"--model_dir": model_dir, "--ori_model_dir": base.path})
    check_not_quantized(base)
    check_base(base, checkpoint, force)
    names = check_fit(base, checkpoint)
    fold = checkpoint.method.fold(checkpoint.saved)
    check_mergeable(fold, names, model_dir)
    if precision == "auto" and checkpoint.record is not None:
        precision = checkpoint.record["precision"]
    return Merge(base, checkpoint, output_dir, fold, DTYPES.get(precision), notes_on_base(base, checkpoint))


def prepare_base(ori_model_dir: Path, output_dir: Path, mode: str | None, precision: str) -> Merge:
    """A base, or a merged directory, without a checkpoint; see `prepare_merge`."""
    record = read_record(ori_model_dir, MERGED_FILE) or read_record(ori_model_dir)
    base = read_base(ori_model_dir, mode, recorded=record["mode"] if record else None)
    check_output(output_dir, {"--ori_model_dir": base.path})
    if quantization_bit(base):
        raise UserError(f"{base.path} is quantized already: give the half-precision model as --ori_model_dir.")
    whole = CheckpointInfo(base.path, METHODS["all"](), record, None)
    notes = [base.note] if base.note else []
    return Merge(base, whole, output_dir, Fold(unchanged, frozenset()), DTYPES.get(precision), notes)


def write_whole(merge: Merge, write_files: Callable[[Path], int], export: dict | None = None) -> int:
    """Write the directory of a merge atomically, with its record.

    Args:
        write_files: writes everything else into a directory; returns the bytes of the weights, as this function does.
        export: the flags that describe the format, for the record.

    Raises:
        UserError: the disk is full, or the base lacks a tensor that the checkpoint changes.
    """
    try:
        with whole_directory(merge.output_dir) as temporary:
            size = write_files(temporary)
            write_json(temporary / MERGED_FILE, {**merged_record(merge), **({"export": export} if export else {})})
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(
            f"{merge.output_dir} cannot be written ({reason}): free some space or choose another."
        ) from error
    return size


def merged_config(merge: Merge) -> dict:
    """The keys that merging changes in config.json."""
    changes = dict(merge.fold.config)
    if merge.dtype is not None:
        changes["torch_dtype"] = str(merge.dtype).removeprefix("torch.")
    return changes


def check_not_quantized(base: Base) -> None:
    """Refuse an official quantized release: merged weights would be quantized, but the trained ones were not."""
    bits = quantization_bit(base)
    if bits:
        raise UserError(
            f"{base.path} is quantized to {bits} bits, so nothing can be merged into it: give the half-precision base "
            "as --ori_model_dir, with --force, because its weights differ."
        )


def check_output(output_dir: Path, inputs: dict[str, Path]) -> None:
    """Refuse to write into one of the inputs (by flag), or an existing directory."""
    for flag, directory in inputs.items():
        if output_dir.resolve() == directory.resolve() or directory.resolve() in output_dir.resolve().parents:
            raise UserError(f"--output_dir {output_dir} is inside {flag}: choose another directory.")
    if os.path.exists(output_dir) and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"--output_dir {output_dir} exists already: remove it or choose another.")
    problem = write_problem(output_dir)
    if problem:
        raise UserError(f"--output_dir {output_dir} {problem}.")


def check_mergeable(fold: Fold, names: set[str], model_dir: Path) -> None:
    """Refuse a checkpoint that changes a tensor that the base lacks, such as the bias of a layer without one."""
    absent = sorted(fold.names - names)
    if absent:
        raise UserError(
            f"{model_dir} changes {absent[0]}, which the base does not have, and cannot be merged: use it with "
            "predict.py as --model_path instead."
        )


def merged_record(merge: Merge) -> dict:
    """The content of merged_from.json: the checkpoint's record, if it has one, and the base."""
    base, record = merge.base, merge.checkpoint.record
    if record is None:
        names = {dtype: name for name, dtype in DTYPES.items()}
        precision = names[merge.dtype] if merge.dtype else str(base.config.get("torch_dtype") or "auto")
        record = make_record(
            mode=base.mode, train_type="lora" if merge.checkpoint.saved else "none", method={}, base_path=base.path,
            fingerprint="", template=MODES[base.mode].template, options={}, precision=precision,
        )  # fmt: skip
    kept = {key: value for key, value in record.items() if key != "files"}
    into = {"path": str(base.path.resolve()), "fingerprint": fingerprint(base)}
    return {**kept, "base": into, "checkpoint": str(merge.checkpoint.path.resolve())}


def merged_tensors(merge: Merge) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every (name, tensor) of the merged model, in the base's order.

    Raises:
        UserError: a tensor that the checkpoint changes is not in the base.
    """
    base, fold, dtype = merge.base, merge.fold, merge.dtype
    tied: dict[str, str] = MODES[base.mode].model_class._tied_weights_keys or {}
    unused = {tied.get(name, name) for name in fold.names}
    for _, tensors in iterate_shards(base):
        for name, tensor in tqdm(tensors.items(), desc="merging", unit="tensor", leave=False, disable=None):
            if name.endswith("inv_freq"):  # a table that the official code computes itself
                yield name, tensor
                continue
            source = tied.get(name, name)
            unused.discard(source)
            yield name, fold.change(source, tensor).to(dtype or tensor.dtype)
    if unused:
        raise UserError(
            f"the base has no {sorted(unused)[0]}, which the checkpoint changes: give the base it was trained on."
        )
    for name, tensor in fold.added.items():
        yield name, tensor.to(dtype or tensor.dtype)
