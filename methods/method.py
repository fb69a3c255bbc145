"""The base class of methods: a frozen dataclass whose fields are flags. Importing it loads neither torch nor peft.

A method module imports these inside functions, because the command line is read before they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from flags import flags_of
from methods.hooks import Hooks

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from methods.start import StartValues
    from methods.tensors import Fold
    from parameters import Parameter

    Tensors = Iterator[tuple[str, torch.Tensor]]

STATE_BYTES = 12  # in a resume state, per trained value: float32 value and two moments


@dataclass(frozen=True)
class Method:
    """A method that trains some of the base's own tensors and writes them under their official names.

    stem: of the weight files in a checkpoint.
    """

    TITLE: ClassVar[str]
    stem: ClassVar[str]

    def conflicts(self, stage: int, ds_file: str) -> list[str]:
        """One sentence for each conflict of the method with a flag or a ZeRO stage."""
        return []

    def quantized_conflicts(self, quantizer: str) -> list[str]:
        """One sentence for each reason why the method cannot train on a quantized base.

        Args:
            quantizer: the flag or base that quantizes it.
        """
        return [
            f"--train_type {self.TITLE} would train quantized weights ({quantizer}): use --train_type lora or ptuning."
        ]

    def start_conflict(self) -> str:
        """Why --init_adapter cannot be given, as a clause after the flag; "" if it can."""
        return f"cannot be combined with --train_type {self.TITLE}: it is for lora or ptuning"

    def configure(self, config: PretrainedConfig) -> None:
        """Set the method's keys in the model's config, before the model exists.

        Raises:
            UserError: no model can be made with it.
        """

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError if the options do not match the model, which is on the meta device."""

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Mark the trained parameters, after the weights are loaded; returns the (wrapped) model."""
        raise NotImplementedError

    def read_start(
        self, directory: Path, parameters: list[Parameter], model_class: type, config: object
    ) -> StartValues:
        """Read the values of --init_adapter.

        Args:
            parameters: of the prepared model. model_class, config: of the base.

        Raises:
            UserError: a run with these options cannot start from them.
        """
        raise NotImplementedError

    def load_start(self, model: PreTrainedModel, start: StartValues) -> None:
        """Copy the values of `read_start` into the prepared model; on every rank."""
        from methods.start import copy_start

        copy_start(model, start.tensors)

    def save(self, directory: Path, model: PreTrainedModel, tensors: Tensors) -> None:
        """Write the trained tensors: `tensors` yields (name, tensor) on the CPU."""
        from shards import write_shards

        write_shards(tensors, directory, self.stem)

    def read(self, directory: Path) -> Any:
        """Read a checkpoint, once for the functions below: `SavedTensors`, or an `Adapter` with LoRA.

        Raises:
            UserError: it is broken or missing.
        """
        from methods.tensors import read_saved

        return read_saved(directory, self.stem)

    def fits(self, model: PreTrainedModel, saved: Any) -> None:
        """Raise UserError unless a checkpoint's tensors match the model, which is on the meta device.

        Args:
            saved: see `read`.
        """
        from methods.tensors import check_fit

        check_fit(model, saved)

    def load(self, model: PreTrainedModel, saved: Any) -> PreTrainedModel:
        """Load a checkpoint into a model of its base; returns the (wrapped) model.

        Args:
            saved: checked by `fits`.
        """
        from methods.tensors import copy_into

        copy_into(model, saved)
        return model

    def fold(self, saved: Any) -> Fold:
        """The change that merging a checkpoint makes to the base, tensor by tensor.

        Args:
            saved: checked by `fits`.
        """
        from methods.tensors import Fold

        return Fold(change=saved.replace, names=frozenset(saved.files))

    def rate_factors(self) -> dict[str, float]:
        """Substring of a parameter's name -> factor of the learning rate."""
        return {}

    def hooks(self, engine, model: PreTrainedModel, total_steps: int, world_size: int) -> Hooks:
        """Functions that the loop calls around its steps."""
        return Hooks()

    @property
    def drops_inputs(self) -> bool:
        """Whether inputs of layers have dropout, so that backward keeps copies of them."""
        return False

    def save_bytes(self, trained: int, value_bytes: int) -> tuple[int, int]:
        """Maximum bytes of a checkpoint and of a resume state.

        Args:
            trained: number of trained values. value_bytes: of each in a checkpoint.
        """
        return trained * value_bytes, trained * STATE_BYTES

    def record(self) -> dict[str, object]:
        """The options in a checkpoint's record."""
        values = ((name, vars(self)[name]) for name in flags_of(type(self)))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_record(cls, values: dict[str, object]) -> Self | None:
        """The method of a checkpoint's record; None if this toolkit did not write the record.

        Flags that are newer than the record get their defaults.
        """
        flags = flags_of(cls)
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        is_valid = all(name in flags and fits_kind(value, flags[name]) for name, value in options.items())
        return cls(**options) if is_valid else None


def fits_kind(value: object, flag) -> bool:
    """Whether a record's value is of a flag's type; None is valid if the default is None, integers for floats."""
    if value is None:
        return flag.default is None
    if flag.kind is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if flag.is_number:
        whole = type(value) is int or (isinstance(value, float) and value.is_integer())  # neither NaN nor Infinity
        return whole or (flag.kind is float and isinstance(value, float))
    return type(value) is flag.kind
