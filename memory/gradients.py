"""Simulate the gradients in backward: autograd's tensor, a bucket, and this rank's part after a bucket is reduced."""

from collections.abc import Iterator

from memory.groups import cut, largest_group
from memory.setup import Setup
from parameters import Parameter

NORM_BYTES = 8  # DeepSpeed computes the norm of one gradient at a time, from a float64 copy
LARGEST_PIECE = 250_000_000  # values of such a copy, in ZeRO-3 with an offloaded optimizer


def optimizer_groups(parameters: list[Parameter], ranks: int) -> list[list[int]]:
    """Values of each trained parameter, in the groups of `training.engine.parameter_groups`."""
    groups = []
    for are_matrices in (True, False):
        sizes = [
            parameter.size
            for parameter in parameters
            if parameter.trained and (len(parameter.shape) > 1) == are_matrices
        ]
        groups += cut(sizes, sizes, largest_group(ranks)) if sizes else []
    return groups


class Gradients:
    """Bytes of gradients while they arrive one by one.

    Args:
        groups: of `optimizer_groups`.
    """

    def __init__(self, setup: Setup, groups: list[list[int]]):
        self.setup, self.e, self.values = setup, setup.value_bytes, sum(map(sum, groups))
        self.waiting = 0  # values outside of any bucket
        self.in_bucket = 0
        self.large = 0  # values of a gradient larger than a bucket, while it is reduced
        self.largest = 0  # values of the largest gradient in the bucket
        self.norm = 0  # bytes of the float64 copy: with offload as a bucket is reduced, else before the optimizer runs
        self.reduced = self.started = False
        self.at_end = setup.stage == 1 and not setup.overlap_comm  # ZeRO-1 then reduces all after backward
        self.unreduced: list[int] = []  # values of the gradients waiting for it
        count = 2 if setup.overlap_comm else 1
        self.buckets = setup.reduce_bucket_size * self.e * count if setup.stage < 3 and groups else 0
        self.part = 0 if setup.offload_optimizer or setup.stage == 3 else largest_part(groups, setup.ranks) * self.e
        before = self.values * self.e if setup.stage == 1 else self.part  # ZeRO-1 keeps whole gradients
        self.sums = before if setup.accumulation > 1 else 0  # of earlier micro-batches

    def add(self, values: int) -> None:
        """Add a parameter's gradient."""
        self.started = True
        if self.at_end:
            self.unreduced.append(values)
        else:
            self.put(values)

    def put(self, values: int) -> None:
        """Copy a gradient to the bucket, which is reduced first if it is full."""
        self.large = self.norm = 0
        if values > self.setup.reduce_bucket_size:
            self.reduce(max(values, self.largest))
            self.in_bucket, self.largest, self.large = 0, 0, values
        elif self.in_bucket + values > self.setup.reduce_bucket_size:
            self.reduce(self.largest)
            self.in_bucket, self.largest = values, values
        else:
            self.in_bucket += values
            self.largest = max(self.largest, values)

    def reduce(self, largest: int) -> None:
        """Reduce a bucket whose largest gradient has this many values."""
        self.reduced = True
        if self.setup.offload_optimizer:
            self.norm = norm_bytes(largest // (self.setup.ranks if self.setup.stage == 3 else 1), self.setup)

    def finish(self) -> Iterator[None]:
        """Reduce the rest; yields at each moment that may be the peak."""
        while self.unreduced:
            self.put(self.unreduced.pop())
            yield
        self.large = 0
        self.reduce(self.largest)
        yield

    def bytes(self) -> int:
        """Current bytes of all gradients, without buckets."""
        if not self.started:
            return self.waiting * self.e + self.sums
        copied = self.large or min(self.in_bucket, self.setup.reduce_bucket_size)  # the sum over ranks
        copy = copied * self.e if self.setup.ranks > 1 else 0
        part = self.part if self.reduced else 0
        whole = max(sum(self.unreduced) * self.e, self.sums)  # another micro-batch's gradients are added to the sums
        return (self.waiting + self.large) * self.e + whole + copy + part + self.norm

    def bucket_bytes(self) -> int:
        """Current bytes of the buckets."""
        return self.buckets if self.started else 0


def norm_bytes(values: int, setup: Setup) -> int:
    """Bytes of the float64 copy for the norm of a gradient with this many values; ZeRO-3 may copy it in pieces."""
    pieces = setup.stage == 3 and setup.offload_optimizer
    return NORM_BYTES * (min(values, LARGEST_PIECE) if pieces else values)


def largest_fragment(groups: list[list[int]], ranks: int) -> int:
    """Values of the largest gradient in a rank's equal parts of all groups."""
    return max((min(max(sizes), -(-sum(sizes) // ranks)) for sizes in groups), default=0)


def largest_part(groups: list[list[int]], ranks: int) -> int:
    """Maximum values of the parameters that a rank's equal parts of all groups overlap; DeepSpeed keeps these whole."""
    held = [0] * ranks
    for sizes in groups:
        part, start = -(-sum(sizes) // ranks), 0
        for size in sizes:
            for rank in range(start // part, min(-(-(start + size) // part), ranks)):
                held[rank] += size
            start += size
    return max(held)
