"""Divide the trained parameters into groups, which the optimizer updates one at a time."""

LARGEST_GROUP = 10**8  # values per rank that the optimizer updates at a time


def largest_group(ranks: int) -> int:
    """Maximum values of a group on all ranks.

    It grows with the number of ranks: each has a part of every group, and ZeRO-2 keeps whole gradients of the
    parameters at the part's ends. For 6 billion values and 8 ranks a single group needs least memory.
    """
    return LARGEST_GROUP * ranks**2


def cut(items: list, sizes: list[int], largest: int) -> list[list]:
    """Split items in order into the fewest parts with a total of at most `largest`, or with one item."""
    parts: list[list] = [[]]
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if parts[-1] and total + size > largest:
            parts.append([])
            total = 0
        parts[-1].append(item)
        total += size
    return parts
