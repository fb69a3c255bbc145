"""How the trained parameters are divided into groups, which the optimizer updates one after the other."""

LARGEST_GROUP = 10**8  # values that the optimizer of one rank updates at a time


def largest_group(ranks: int) -> int:
    """Values that the optimizer updates at a time.

    More on several ranks: each has a part of every group, and ZeRO-2 keeps there whole gradients of the parameters that
    the part begins or ends in. For 6 billion values and 8 ranks one group takes least.
    """
    return LARGEST_GROUP * ranks**2


def cut(items: list, sizes: list[int], largest: int) -> list[list]:
    """The items in their order, in as few parts as have at most `largest` together, or one item."""
    parts: list[list] = [[]]
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if parts[-1] and total + size > largest:
            parts.append([])
            total = 0
        parts[-1].append(item)
        total += size
    return parts
