"""Shared functions of methods: loading a checkpoint's tensors, merging them into a base."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.zero.utils import is_zero_param
from transformers import PreTrainedModel

from errors import UserError
from shards import read_tensor, tensor_files


@dataclass(frozen=True)
class Fold:
    """The change that merging makes to a base.

    change: (official name, base tensor) -> the tensor to write.
    names: the base tensors that `change` modifies; merging fails if the base lacks one.
    added: tensors that the base lacks.
    config: keys to set in config.json.
    """

    change: Callable[[str, torch.Tensor], torch.Tensor]
    names: frozenset[str]
    added: dict[str, torch.Tensor] = field(default_factory=dict)
    config: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SavedTensors:
    """The tensors of a checkpoint by official name, each memory-mapped on access.

    files: name -> its file.
    """

    directory: Path
    files: dict[str, Path]

    def __getitem__(self, name: str) -> torch.Tensor:
        return read_tensor(self.files, name)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every (name, tensor)."""
        for name in self.files:
            yield name, self[name]

    def replace(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The `Fold.change` that replaces the base's tensor with the checkpoint's."""
        return self[name] if name in self.files else tensor


def read_saved(directory: Path, stem: str) -> SavedTensors:
    """Read the files of `write_shards`.

    Raises:
        UserError: there is no file of that name, or one is truncated.
    """
    return SavedTensors(directory, tensor_files(directory, stem))


def check_fit(model: torch.nn.Module, saved: SavedTensors) -> None:
    """Raise UserError unless a checkpoint's tensors are finite and match `model`, which may be on meta."""
    parameters, directory = dict(model.named_parameters()), saved.directory
    for name, tensor in saved.items():
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
    """Raise UserError if a checkpoint's tensor contains NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} in {directory} has values that are not finite: use an earlier checkpoint.")


def copy_into(model: torch.nn.Module, saved: SavedTensors) -> None:
    """Copy tensors that passed `check_fit` into the parameters of the same names."""
    parameters = dict(model.named_parameters())
    for name, tensor in saved.items():
        parameters[name].data.copy_(tensor)


def tied_names(model: PreTrainedModel | type[PreTrainedModel]) -> dict[str, str]:
    """Official name of a tied tensor -> the other name (ChatGLM-6B's head is its embedding)."""
    return model._tied_weights_keys or {}


def saved_name(name: str) -> str:
    """An adapter parameter's name in files: without the adapter's name."""
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def unchanged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The `Fold.change` of a method that does not change the base's tensors."""
    return tensor


def in_whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager:
    """A context where parameters partitioned by ZeRO-3 are whole on every rank; afterwards rank 0's values are kept."""
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=is_zero_param(parameters[0]))
