"""Where gradients go in backward: autograd's own tensor, a bucket, and this rank's part once a bucket is full."""

from collections.abc import Iterator

from memory.groups import cut, largest_group
from memory.setup import Setup
from parameters import Parameter

NORM_BYTES = 8  # DeepSpeed takes the norm of one gradient after the other, and makes a float64 copy of it for that
LARGEST_PIECE = 250_000_000  # values of such a copy, in ZeRO-3 with an offloaded optimizer


def optimizer_groups(parameters: list[Parameter], ranks: int) -> list[list[int]]:
    """Values of each trained parameter, in the groups that `training.engine.parameter_groups` makes of them."""
    groups = []
    for are_matrices in (True, False):
        sizes = [one.size for one in parameters if one.trained and (len(one.shape) > 1) == are_matrices]
        groups += cut(sizes, sizes, largest_group(ranks)) if sizes else []
    return groups


class Gradients:
    """Bytes of gradients, as they come one by one.

    Args:
        groups: of `optimizer_groups`.
    """

    def __init__(self, setup: Setup, groups: list[list[int]]):
        self.setup, self.e, self.values = setup, setup.value_bytes, sum(map(sum, groups))
        self.waiting = 0  # values outside of any bucket
        self.in_bucket = 0
        self.large = 0  # values of a gradient that no bucket takes, while it is reduced
        self.largest = 0  # values of the largest gradient in the bucket
        self.norm = 0  # bytes of the float64 copy: with offload as a bucket is reduced, else before the optimizer runs
        self.reduced = self.started = False
        self.at_end = setup.stage == 1 and not setup.overlap_comm  # ZeRO-1 then reduces all behind the whole backward
        self.unreduced: list[int] = []  # values of the gradients that wait for that
        count = 2 if setup.overlap_comm else 1
        self.buckets = setup.reduce_bucket_size * self.e * count if setup.stage < 3 and groups else 0
        self.part = 0 if setup.offload_optimizer or setup.stage == 3 else largest_part(groups, setup.ranks) * self.e
        before = self.values * self.e if setup.stage == 1 else self.part  # ZeRO-1 keeps those whole
        self.sums = before if setup.accumulation > 1 else 0  # of the micro-batches before

    def add(self, values: int) -> None:
        """A parameter's gradient is there."""
        self.started = True
        if self.at_end:
            self.unreduced.append(values)
        else:
            self.put(values)

    def put(self, values: int) -> None:
        """A gradient goes into the bucket, which is reduced before if it is full."""
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
        """A bucket is reduced, the largest gradient of which has so many values."""
        self.reduced = True
        if self.setup.offload_optimizer:
            self.norm = norm_bytes(largest // (self.setup.ranks if self.setup.stage == 3 else 1), self.setup)

    def finish(self) -> Iterator[None]:
        """Reduce what is left; yields at each moment that may be the peak."""
        while self.unreduced:
            self.put(self.unreduced.pop())
            yield
        self.large = 0
        self.reduce(self.largest)
        yield

    def bytes(self) -> int:
        """Bytes of all, now, but for the buckets."""
        if not self.started:
            return self.waiting * self.e + self.sums
        copied = self.large or min(self.in_bucket, self.setup.reduce_bucket_size)  # what other ranks' is added to
        copy = copied * self.e if self.setup.ranks > 1 else 0
        part = self.part if self.reduced else 0
        whole = max(sum(self.unreduced) * self.e, self.sums)  # those of one more micro-batch are added to the sums
        return (self.waiting + self.large) * self.e + whole + copy + part + self.norm

    def bucket_bytes(self) -> int:
        """Bytes of the buckets, now."""
        return self.buckets if self.started else 0


def norm_bytes(values: int, setup: Setup) -> int:
    """Bytes of the float64 copy that the norm of a gradient of so many values takes; ZeRO-3 may make it in pieces."""
    pieces = setup.stage == 3 and setup.offload_optimizer
    return NORM_BYTES * (min(values, LARGEST_PIECE) if pieces else values)


def largest_fragment(groups: list[list[int]], ranks: int) -> int:
    """Values of the largest gradient that one rank has in its equal parts of all groups."""
    return max((min(max(sizes), -(-sum(sizes) // ranks)) for sizes in groups), default=0)


def largest_part(groups: list[list[int]], ranks: int) -> int:
    """Values of the parameters that a rank's equal parts of all groups touch, at most; DeepSpeed keeps these whole."""
    held = [0] * ranks
    for sizes in groups:
        part, start = -(-sum(sizes) // ranks), 0
        for size in sizes:
            for rank in range(start // part, min(-(-(start + size) // part), ranks)):
                held[rank] += size
            start += size
    return max(held)
