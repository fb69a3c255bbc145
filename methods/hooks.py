"""What a method may do around the steps of the loop in train.py; by default nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hooks:
    """Functions that the loop calls on every rank.

    penalty: (micro-batches of this rank in the step) -> what each of them adds to the loss that is learnt from. The
        penalties of all ranks and micro-batches are summed, as the loss is.
    before_step: (step), once the gradients of all micro-batches are there.
    after_step: (step), if it was applied.
    state: what a resumed run needs beside the trained tensors, as (name, CPU tensor); read on rank 0 only.
    load_state: puts that back.
    """

    penalty: Callable[[int], torch.Tensor | float] = lambda micro_batches: 0.0
    before_step: Callable[[int], None] = lambda step: None
    after_step: Callable[[int], None] = lambda step: None
    state: Callable[[], Iterator[tuple[str, torch.Tensor]]] = lambda: iter(())
    load_state: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None
