"""The position of a run, and a resume state."""

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Position:
    """The progress of a run.

    step: optimizer steps done. epoch: from 1. samples: trained samples of that epoch.
    pending: whether the evaluation and the checkpoint of this step are still missing (training/after_step.py).
    """

    step: int = 0
    epoch: int = 1
    samples: int = 0
    pending: bool = False

    def after(self, num_samples: int) -> "Position":
        """The position after one more optimizer step with that many samples."""
        return Position(self.step + 1, self.epoch, self.samples + num_samples)


@dataclass(frozen=True)
class ResumeState:
    """A complete resume state on this machine. record: the content of its state.json."""

    directory: Path
    record: dict

    @property
    def position(self) -> Position:
        """The position of the run."""
        return Position(**{field.name: self.record.get(field.name, field.default) for field in fields(Position)})
