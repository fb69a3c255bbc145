"""All: train every parameter. A checkpoint is a complete model directory in the official layout."""

from pathlib import Path

from methods.tensors import Fold, check_fit, replace_from
from shards import tensor_files, write_shards

OPTIONS = ()
STEM = "model"


def configure(config) -> None:
    """Nothing to set."""


def check(model) -> None:
    """Everything fits."""


def prepare(model):
    """Train everything."""
    return model.requires_grad_(True)


def save(directory: Path, model, tensors) -> None:
    """Write model*.safetensors under the official names."""
    write_shards(tensors, directory, STEM)


def fits(model, directory: Path) -> None:
    """Raise UserError unless the checkpoint's tensors are the model's."""
    check_fit(model, directory, STEM)


def load(model, directory: Path):
    """Nothing to add: the checkpoint itself is what the model was loaded from."""
    return model


def fold(directory: Path, **_) -> Fold:
    """Every tensor replaces the base's."""
    return Fold(change=replace_from(directory, STEM), names=frozenset(tensor_files(directory, STEM)))
