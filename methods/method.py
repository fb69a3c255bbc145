"""What every --train_type is: a frozen dataclass whose fields are its flags. Importing it loads neither torch nor peft.

A method module imports those inside of functions, because the command line is read before they are loaded.
"""

from __future__ import annotations

import dataclasses
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

STATE_BYTES = 12  # of a resume state for each trained value: float32 value and two moments


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

    def quantized_conflicts(self, what: str) -> list[str]:
        """One sentence for each reason why the method cannot train on a quantized base.

        Args:
            what: quantizes it.
        """
        return [f"--train_type {self.TITLE} would train quantized weights ({what}): use --train_type lora or ptuning."]

    def start_conflict(self) -> str:
        """Why --init_adapter cannot be given, in a clause behind it; "" where it can."""
        return f"cannot be combined with --train_type {self.TITLE}: it is for lora or ptuning"

    def configure(self, config: PretrainedConfig) -> None:
        """Set what the method needs in the model's config, before the model exists.

        Raises:
            UserError: no model can be made with it.
        """

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError if the options do not fit the model, which has shapes only (meta device)."""

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Mark what is trained, once the weights are loaded; returns the (wrapped) model."""
        raise NotImplementedError

    def read_start(
        self, directory: Path, parameters: list[Parameter], model_class: type, config: object
    ) -> StartValues:
        """The values of --init_adapter.

        Args:
            parameters: of the prepared model. model_class, config: of the base.

        Raises:
            UserError: a run with these options cannot start from them.
        """
        raise NotImplementedError

    def load_start(self, model: PreTrainedModel, start: StartValues) -> None:
        """Put what `read_start` read into the prepared model; on every rank."""
        from methods.start import copy_start

        copy_start(model, start.tensors)

    def save(self, directory: Path, model: PreTrainedModel, tensors: Tensors) -> None:
        """Write what was trained: `tensors` yields (name, tensor) on the CPU."""
        from shards import write_shards

        write_shards(tensors, directory, self.stem)

    def read(self, directory: Path) -> Any:
        """What a checkpoint holds, read once for the functions below: `SavedTensors`, or an `Adapter` with LoRA.

        Raises:
            UserError: it is broken, or there is none.
        """
        from methods.tensors import read_saved

        return read_saved(directory, self.stem)

    def fits(self, model: PreTrainedModel, saved: Any) -> None:
        """Raise UserError unless a checkpoint's tensors are the model's, which has shapes only (meta device).

        Args:
            saved: see `read`.
        """
        from methods.tensors import check_fit

        check_fit(model, saved)

    def load(self, model: PreTrainedModel, saved: Any) -> PreTrainedModel:
        """Put a checkpoint into a model that was loaded from its base; returns the (wrapped) model.

        Args:
            saved: what `fits` has checked.
        """
        from methods.tensors import copy_into

        copy_into(model, saved)
        return model

    def fold(self, saved: Any) -> Fold:
        """How merging a checkpoint changes the base, tensor by tensor.

        Args:
            saved: what `fits` has checked.
        """
        from methods.tensors import Fold

        return Fold(change=saved.replace, names=frozenset(saved.files))

    def rate_factors(self) -> dict[str, float]:
        """Part of a parameter's name -> factor on the learning rate."""
        return {}

    def hooks(self, engine, model: PreTrainedModel, total_steps: int, world_size: int) -> Hooks:
        """What the loop does for the method around its steps."""
        return Hooks()

    @property
    def drops_inputs(self) -> bool:
        """Whether inputs of layers are dropped at random, so that copies of them are kept for backward."""
        return False

    def save_bytes(self, trained: int, value_bytes: int) -> tuple[int, int]:
        """Bytes of a checkpoint and of a resume state, at most.

        Args:
            trained: number of trained values. value_bytes: of each in a checkpoint.
        """
        return trained * value_bytes, trained * STATE_BYTES

    def record(self) -> dict[str, object]:
        """The options as a checkpoint's record has them."""
        values = ((name, vars(self)[name]) for name in flags_of(type(self)))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_record(cls, values: dict[str, object]) -> Self | None:
        """The method of a checkpoint's record; None where the record cannot have been written by this toolkit.

        What it lacks is a flag that came later, and has its default.
        """
        flags = flags_of(cls)
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        right = all(name in flags and fits_kind(value, flags[name]) for name, value in options.items())
        return cls(**options) if right else None

    def changed(self, **options: object) -> Self:
        """The method with other options."""
        return dataclasses.replace(self, **options)


def fits_kind(value: object, flag) -> bool:
    """Whether a record's value is of a flag's type; None where it may be absent. A whole number is a number, too."""
    if value is None:
        return flag.default is None
    if flag.kind is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if flag.is_number:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (flag.kind is float or value == int(value))
        )
    return type(value) is flag.kind
