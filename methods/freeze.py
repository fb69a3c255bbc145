"""Freeze: train the layers that --freeze_module_name lists, leave all others as they are.

(The 2023 documentation said that the flag lists what is frozen; its code trained what it listed, and so does this.)
"""

from pathlib import Path

from errors import UserError
from methods.tensors import Fold, check_fit, copy_into, replace_from
from shards import tensor_files, write_shards

OPTIONS = ("freeze_module_name",)
STEM = "trained"


def configure(config, *, freeze_module_name: list[str]) -> None:
    """Nothing to set."""


def check(model, *, freeze_module_name: list[str]) -> None:
    """Raise UserError for a name that is part of no parameter's name."""
    names = [name for name, _ in model.named_parameters()]
    unmatched = [part for part in freeze_module_name if not any(part in name for name in names)]
    if unmatched:
        outside = sorted({name.rsplit(".", 1)[0] for name in names if ".layers." not in name})
        raise UserError(
            f"--freeze_module_name {','.join(unmatched)} matches no parameter of this model: choose from layers.0. to "
            f"layers.{len(model.blocks) - 1}. and {', '.join(outside)}."
        )


def prepare(model, *, freeze_module_name: list[str]):
    """Train every parameter whose name contains one of `freeze_module_name`, and no other."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in freeze_module_name))
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
