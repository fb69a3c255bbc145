"""Functions of a method around the steps of the loop in train.py; by default they do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def no_penalty(micro_batches: int) -> float:
    """Add nothing to the loss."""
    return 0.0


def at_step(step: int) -> None:
    """Do nothing."""


def no_state() -> Iterator[tuple[str, torch.Tensor]]:
    """Save nothing."""
    return iter(())


def forget(tensors: dict[str, torch.Tensor]) -> None:
    """Load nothing."""


@dataclass(frozen=True)
class Hooks:
    """Functions that the loop calls on every rank.

    penalty: (micro-batches of this rank in the step) -> addition to the loss of each. The penalties of all ranks and
        micro-batches are summed, like the loss.
    before_step: (step), after the backward of all micro-batches.
    after_step: (step), if the step was applied.
    state: the method's part of a resume state besides trained tensors, as (name, CPU tensor); read on rank 0 only.
    load_state: restores it.
    """

    penalty: Callable[[int], torch.Tensor | float] = no_penalty
    before_step: Callable[[int], None] = at_step
    after_step: Callable[[int], None] = at_step
    state: Callable[[], Iterator[tuple[str, torch.Tensor]]] = no_state
    load_state: Callable[[dict[str, torch.Tensor]], None] = forget
