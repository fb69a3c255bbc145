"""How far a run is, and the resume state that was kept there."""

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Position:
    """How far a run is.

    step: optimizer steps that were taken. epoch: from 1. samples: of that epoch, those that were trained on.
    pending: whether the evaluation and the checkpoint of this step are still to be made (training/after_step.py).
    """

    step: int = 0
    epoch: int = 1
    samples: int = 0
    pending: bool = False

    def after(self, num_samples: int) -> "Position":
        """The position one optimizer step of that many samples later."""
        return Position(self.step + 1, self.epoch, self.samples + num_samples)


@dataclass(frozen=True)
class ResumeState:
    """A whole resume state on this machine. record: the content of its state.json."""

    directory: Path
    record: dict

    @property
    def position(self) -> Position:
        """How far the run was."""
        return Position(**{field.name: self.record.get(field.name, field.default) for field in fields(Position)})
