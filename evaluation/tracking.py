"""The best evaluation so far, and early stopping.

Both depend only on the values of one metric, oldest first, so a resumed run decides like an uninterrupted one. None is
a value that is not finite, and never the best.
"""

import math
from collections.abc import Sequence

DIRECTIONS = ("lower", "higher")


def direction_of(metric: str) -> str:
    """Whether a metric is better "lower" (losses) or "higher" (scores)."""
    return "lower" if metric.endswith("loss") else "higher"


def values_of(history: Sequence[dict], metric: str) -> list[float | None]:
    """The metric's values in the rows that have it."""
    return [row[metric] for row in history if metric in row]


def best_index(values: Sequence[float | None], direction: str) -> int | None:
    """The index of the best value, the first of equal ones; None if there is none."""
    assert direction in DIRECTIONS
    sign = 1 if direction == "higher" else -1
    usable = [(sign * value, -i) for i, value in enumerate(values) if value is not None and math.isfinite(value)]
    return -max(usable)[1] if usable else None


def is_best(values: Sequence[float | None], direction: str) -> bool:
    """Whether the last value is better than all before it."""
    return bool(values) and best_index(values, direction) == len(values) - 1


def should_stop(values: Sequence[float | None], direction: str, patience: int | None) -> bool:
    """Whether none of the last `patience` values is better than all values before it; never with None."""
    if patience is None:
        return False
    assert patience >= 1
    best = best_index(values, direction)
    return len(values) - (0 if best is None else best + 1) >= patience
