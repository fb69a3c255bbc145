"""What a run is to do: options, base, DeepSpeed configuration and the model's shapes. training/check.py makes it."""

import dataclasses
from dataclasses import dataclass

import torch

from checkpoints.record import make_record
from methods.start import StartValues
from modes import MODES
from modes.directory import Base, fingerprint
from options.config_file import flat
from options.train import TrainOptions
from training.ds_config import DeepSpeedSetup
from training.engine import DTYPES
from training.shapes import ModelShapes


@dataclass(frozen=True)
class Command:
    """What a run is to do; nothing contradicts anything.

    shapes: of the model. attention: the implementation that was chosen.
    first_block: in which training begins, for --cache_frozen_features; 0 without. start: the values of --init_adapter.
    notes: sentences to print.
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
        """Bytes of a checkpoint and of a resume state, at most."""
        return self.options.method.save_bytes(self.shapes.trained, DTYPES[self.ds.precision].itemsize)

    @property
    def on_gpu(self) -> bool:
        """Whether the run's memory is that of GPUs: there is one, or --gpu_memory asks for it."""
        return torch.cuda.is_available() or self.options.safety.gpu_memory is not None

    def identity(self, data: str) -> dict[str, object]:
        """What a resumed run must have in common with the run that wrote its state.

        Args:
            data: what tells the training data from others.
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
        """All dataclasses of flags, with the mode that was recognized."""
        model = dataclasses.replace(self.options.model, mode=self.base.mode)
        return model, *self.options.sections[1:]

    def record(self) -> dict:
        """What the checkpoints of the run say of it, see `checkpoints.record.make_record`."""
        options = self.options
        return make_record(
            mode=self.base.mode, train_type=options.model.train_type, method=options.method.record(),
            base_path=self.base.path, fingerprint=fingerprint(self.base), template=MODES[self.base.mode].template,
            options=flat(self.complete_sections), precision=self.ds.precision,
        )  # fmt: skip
