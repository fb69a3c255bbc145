"""--packing: combine samples to rows of up to max_len tokens, so that all forward passes are of similar size."""

from bisect import bisect_left, insort

import numpy as np

WINDOW = 4096  # samples packed at a time; the order of windows stays random


def pack(lengths: np.ndarray, order: np.ndarray, capacity: int, rng: np.random.Generator) -> list[list[int]]:
    """Pack samples to rows of at most `capacity` tokens; every sample of `order` is in exactly one row.

    Within a window of the order it is best-fit decreasing; the rows of a window are in random order. The result depends
    only on `order` and `rng`, so it is the same on every rank.

    Args:
        lengths: int [n], tokens of each sample, none above `capacity`.
        order: sample numbers.
    """
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        packed: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, row), sorted
        for i in window[np.argsort(-lengths[window], kind="stable")].tolist():
            length = int(lengths[i])
            at = bisect_left(room, (length, 0))
            left, row = room.pop(at) if at < len(room) else (capacity, len(packed))
            if row == len(packed):
                packed.append([])
            packed[row].append(i)
            insort(room, (left - length, row))
        rows += [packed[row] for row in rng.permutation(len(packed))]
    return rows
