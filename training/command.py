"""The checked command of a run: options, base, DeepSpeed configuration and model shapes; see training/check.py."""

import dataclasses
from dataclasses import dataclass

import torch

from checkpoints.record import make_record
from methods.start import StartValues
from modes import MODES
from modes.directory import Base, fingerprint
from options.config_file import flat
from options.train import TrainOptions
from shards import DTYPES
from training.ds_config import DeepSpeedSetup
from training.shapes import ModelShapes


@dataclass(frozen=True)
class Command:
    """A command without conflicts.

    shapes: of the model. attention: the chosen implementation.
    first_block: the block where training starts under --cache_frozen_features, else 0. start: the values of
    --init_adapter. notes: sentences to print.
    """

    options: TrainOptions
    base: Base
    ds: DeepSpeedSetup
    shapes: ModelShapes
    attention: str
    first_block: int
    start: StartValues | None
    notes: tuple[str, ...]

    @property
    def save_bytes(self) -> tuple[int, int]:
        """Maximum bytes of a checkpoint and of a resume state."""
        return self.options.method.save_bytes(self.shapes.trained, DTYPES[self.ds.precision].itemsize)

    @property
    def on_gpu(self) -> bool:
        """Whether the run uses GPU memory: there is a GPU, or --gpu_memory describes one."""
        return torch.cuda.is_available() or self.options.safety.gpu_memory is not None

    def identity(self, data: str) -> dict[str, object]:
        """The settings that a resumed run must share with the run that wrote its state.

        Args:
            data: identity of the training data.
        """
        options = self.options
        return {
            "mode": self.base.mode,
            "train_type": options.model.train_type,
            **options.method.record(),
            "precision": self.ds.precision,
            "seed": options.steps.seed,
            "training data": data,
            "base": fingerprint(self.base)[:16],
            "quantization_bit": options.model.quantization_bit,
            "packing": options.row_length,
        }

    @property
    def complete_sections(self) -> tuple[object, ...]:
        """All dataclasses of flags, with the recognized mode."""
        model = dataclasses.replace(self.options.model, mode=self.base.mode)
        return model, *self.options.sections[1:]

    def record(self) -> dict:
        """The record in the run's checkpoints, see `checkpoints.record.make_record`."""
        options = self.options
        return make_record(
            mode=self.base.mode, train_type=options.model.train_type, method=options.method.record(),
            base_path=self.base.path, fingerprint=fingerprint(self.base), template=MODES[self.base.mode].template,
            options=flat(self.complete_sections), precision=self.ds.precision,
        )  # fmt: skip
