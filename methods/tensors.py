"""What methods share: a checkpoint's tensors put into a model, how merging changes a base."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.zero.utils import is_zero_param
from transformers import PreTrainedModel

from errors import UserError
from shards import read_tensor, read_tensors, tensor_files


@dataclass(frozen=True)
class Fold:
    """How merging changes a base.

    change: (official name, base tensor) -> the tensor to write.
    names: the base tensors that `change` alters; merging fails if the base lacks one.
    added: tensors that the base does not have.
    config: keys to set in config.json.
    """

    change: Callable[[str, torch.Tensor], torch.Tensor]
    names: frozenset[str]
    added: dict[str, torch.Tensor] = field(default_factory=dict)
    config: dict = field(default_factory=dict)


def check_fit(model: torch.nn.Module, directory: Path, stem: str) -> None:
    """Raise UserError unless a checkpoint holds finite tensors named and shaped as `model` has them (on meta, too)."""
    parameters = dict(model.named_parameters())
    for name, tensor in read_tensors(directory, stem):
        if name not in parameters:
            raise UserError(
                f"{directory} holds {name}, which the base does not have: it belongs to another base, give that one."
            )
        if parameters[name].shape != tensor.shape:
            raise UserError(
                f"{name} has shape {list(tensor.shape)} in {directory} and {list(parameters[name].shape)} in the base "
                "model: it belongs to another base, give that one."
            )
        check_finite(name, tensor, directory)


def check_finite(name: str, tensor: torch.Tensor, directory: Path) -> None:
    """Raise UserError if a checkpoint's tensor holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} in {directory} holds values that are not finite: use an earlier checkpoint.")


def copy_into(model: torch.nn.Module, directory: Path, stem: str) -> None:
    """Copy a checkpoint's tensors into the parameters of the same names.

    Raises:
        UserError: a name or a shape that the model does not have, or a value that is not finite.
    """
    check_fit(model, directory, stem)
    parameters = dict(model.named_parameters())
    for name, tensor in read_tensors(directory, stem):
        parameters[name].data.copy_(tensor)


def replace_from(directory: Path, stem: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """The `Fold.change` that puts a checkpoint's tensor in the place of the base's."""
    files = tensor_files(directory, stem)
    return lambda name, tensor: read_tensor(files, name) if name in files else tensor


def tied_names(model: PreTrainedModel | type[PreTrainedModel]) -> dict[str, str]:
    """Official name of a tensor that is another one -> the name of that one (ChatGLM-6B's head is its embedding)."""
    return model._tied_weights_keys or {}


def saved_name(name: str) -> str:
    """What a file calls the parameter of an adapter: without the adapter's name."""
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def unchanged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The `Fold.change` of a method that leaves the base's tensors as they are."""
    return tensor


def in_whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager:
    """Within it, parameters that ZeRO-3 partitions are whole on every rank; afterwards rank 0's values are kept."""
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=is_zero_param(parameters[0]))
