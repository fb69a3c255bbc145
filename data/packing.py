"""--packing: samples that together fill a row of max_len, so that every forward pass has as much to do as it may."""

from bisect import bisect_left, insort

import numpy as np

WINDOW = 4096  # samples that are packed together: an epoch's order stays random beyond that


def pack(lengths: np.ndarray, order: np.ndarray, capacity: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows of samples whose lengths add up to `capacity` at most; every sample of `order` is in one of them.

    Within a window of the order, decreasing lengths go to the row with the least room that is enough; the rows of a
    window come in random order. What depends on `order` and `rng` alone is the same on every rank.

    Args:
        lengths: int [n], tokens of each sample, none above `capacity`.
        order: sample numbers.
    """
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        found: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, row), sorted
        for i in window[np.argsort(-lengths[window], kind="stable")].tolist():
            length = int(lengths[i])
            at = bisect_left(room, (length, 0))
            left, row = room.pop(at) if at < len(room) else (capacity, len(found))
            if row == len(found):
                found.append([])
            found[row].append(i)
            insort(room, (left - length, row))
        rows += [found[row] for row in rng.permutation(len(found))]
    return rows
