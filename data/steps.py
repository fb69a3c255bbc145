"""The number of optimizer steps and warm-up steps of a run, counted as in transformers' Trainer."""

import math


def count_steps(num_train_epochs: float, steps_per_epoch: int, max_steps: int | None = None) -> int:
    """Optimizer steps of a run; a fraction of an epoch is rounded up to whole steps."""
    return max_steps or math.ceil(num_train_epochs * steps_per_epoch)


def count_warmup(total_steps: int, warmup_steps: float | None, warmup_ratio: float) -> int:
    """Steps of linear warm-up.

    Args:
        warmup_steps: below 1 a fraction of all steps, rounded up; None: `warmup_ratio` of them, rounded down.
    """
    if warmup_steps is None:
        return int(warmup_ratio * total_steps)
    return int(warmup_steps) if warmup_steps >= 1 else math.ceil(warmup_steps * total_steps)
