"""Freeze: train the layers that --freeze_module_name lists, or the last --freeze_last_n, leave all others as they are.

(The 2023 documentation said that the flag lists what is frozen; its code trained what it listed, and so does this.)
"""

from pathlib import Path

from errors import UserError
from methods.tensors import Fold, check_fit, copy_into, replace_from, tied_names
from shards import tensor_files, write_shards

OPTIONS = ("freeze_module_name", "freeze_last_n")
STEM = "trained"


def configure(config, **_) -> None:
    """Nothing to set."""


def check(model, *, freeze_module_name: list[str], freeze_last_n: int | None = None) -> None:
    """Raise UserError for a name that is part of no parameter's name, or more layers than there are."""
    if freeze_last_n is not None:
        if freeze_last_n > len(model.blocks):
            raise UserError(f"--freeze_last_n {freeze_last_n}: this model has {len(model.blocks)} layers, give fewer.")
        return
    names = [name for name, _ in model.named_parameters()] + list(tied_names(model))
    unmatched = [part for part in freeze_module_name if not any(part in name for name in names)]
    if unmatched:
        outside = sorted({name.rsplit(".", 1)[0] for name in names if ".layers." not in name})
        raise UserError(
            f"--freeze_module_name {','.join(unmatched)} matches no parameter of this model: choose from layers.0. to "
            f"layers.{len(model.blocks) - 1}. and {', '.join(outside)}."
        )


def prepare(model, *, freeze_module_name: list[str], freeze_last_n: int | None = None):
    """Train the parameters whose names contain one of `freeze_module_name`, or the last N layers, and no other."""
    parts = freeze_module_name
    if freeze_last_n is not None:
        parts = [f"layers.{i}." for i in range(len(model.blocks) - freeze_last_n, len(model.blocks))]
    also = {source: target for target, source in tied_names(model).items()}  # ChatGLM-6B's head is its embedding
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name or part in also.get(name, "") for part in parts))
    return model


def save(directory: Path, model, tensors) -> None:
    """Write trained*.safetensors under the official names."""
    write_shards(tensors, directory, STEM)


def fits(model, directory: Path) -> None:
    """Raise UserError unless the checkpoint's tensors are the model's."""
    check_fit(model, directory, STEM)


def load(model, directory: Path):
    """Put the trained tensors in the place of the base's."""
    copy_into(model, directory, STEM)
    return model


def fold(directory: Path, **_) -> Fold:
    """The trained tensors replace the base's."""
    return Fold(change=replace_from(directory, STEM), names=frozenset(tensor_files(directory, STEM)))
