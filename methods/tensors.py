"""What methods share: a checkpoint's tensors put into a model, how merging changes a base."""

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


@dataclass(frozen=True, eq=False)
class SavedTensors:
    """The tensors of a checkpoint under their official names; each is memory-mapped when it is asked for.

    files: name -> the file that holds it.
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
        """The `Fold.change` that puts a checkpoint's tensor in the place of the base's."""
        return self[name] if name in self.files else tensor


def read_saved(directory: Path, stem: str) -> SavedTensors:
    """What `write_shards` wrote.

    Raises:
        UserError: nothing of that name is there, or a file is cut short.
    """
    return SavedTensors(directory, tensor_files(directory, stem))


def check_fit(model: torch.nn.Module, saved: SavedTensors) -> None:
    """Raise UserError unless a checkpoint holds finite tensors named and shaped as `model` has them (on meta, too)."""
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
    """Raise UserError if a checkpoint's tensor holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} in {directory} holds values that are not finite: use an earlier checkpoint.")


def copy_into(model: torch.nn.Module, saved: SavedTensors) -> None:
    """Copy tensors that passed `check_fit` into the parameters of the same names."""
    parameters = dict(model.named_parameters())
    for name, tensor in saved.items():
        parameters[name].data.copy_(tensor)


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
