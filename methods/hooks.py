"""What a method may do around the steps of the loop in train.py; by default nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def no_penalty(micro_batches: int) -> float:
    """Nothing is added to the loss."""
    return 0.0


def at_step(step: int) -> None:
    """Nothing is done."""


def no_state() -> Iterator[tuple[str, torch.Tensor]]:
    """Nothing is kept."""
    return iter(())


def forget(tensors: dict[str, torch.Tensor]) -> None:
    """Nothing was kept."""


@dataclass(frozen=True)
class Hooks:
    """Functions that the loop calls on every rank.

    penalty: (micro-batches of this rank in the step) -> what each of them adds to the loss. The
        penalties of all ranks and micro-batches are summed, as the loss is.
    before_step: (step), once the gradients of all micro-batches are there.
    after_step: (step), if it was applied.
    state: what a resumed run needs beside the trained tensors, as (name, CPU tensor); read on rank 0 only.
    load_state: puts that back.
    """

    penalty: Callable[[int], torch.Tensor | float] = no_penalty
    before_step: Callable[[int], None] = at_step
    after_step: Callable[[int], None] = at_step
    state: Callable[[], Iterator[tuple[str, torch.Tensor]]] = no_state
    load_state: Callable[[dict[str, torch.Tensor]], None] = forget
