"""All: train every parameter. A checkpoint is a complete model directory in the official layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from methods.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from methods.tensors import SavedTensors


@dataclass(frozen=True)
class All(Method):
    """Train every parameter; no options."""

    TITLE: ClassVar[str] = "all"
    stem: ClassVar[str] = "model"

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Train everything."""
        return model.requires_grad_(True)

    def load(self, model: PreTrainedModel, saved: SavedTensors | None) -> PreTrainedModel:
        """Return the model: it was loaded from the checkpoint itself."""
        return model
