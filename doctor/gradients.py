"""Where gradients go in backward: autograd's own tensor, a bucket, and this rank's part once a bucket is full."""

from doctor.setup import Setup


class Gradients:
    """Bytes of gradients, as they come one by one.

    Args:
        sizes: values of each trained parameter, in the optimiser's order.
    """

    def __init__(self, setup: Setup, sizes: list[int]):
        self.setup, self.e, self.values = setup, setup.value_bytes, sum(sizes)
        self.waiting = 0  # values outside of any bucket
        self.in_bucket = 0
        self.large = 0  # values of a gradient that no bucket takes, while it is reduced
        self.reduced = self.started = False
        count = 2 if setup.overlap_comm else 1
        self.buckets = setup.reduce_bucket_size * self.e * count if setup.stage in (1, 2) and sizes else 0
        part = largest_part(sizes, setup.ranks) if setup.stage == 2 else self.values
        self.part = 0 if setup.offload_optimizer or setup.stage in (0, 3) else part * self.e
        self.sums = 0  # of the micro-batches before
        if setup.accumulation > 1:
            self.sums = self.values * self.e if setup.stage == 0 else self.part

    def add(self, values: int) -> None:
        """A parameter's gradient is there."""
        self.started = True
        self.large = 0
        if self.setup.stage == 0:
            self.waiting += values if self.setup.accumulation == 1 else 0  # else it is added to the sums
        elif values > self.setup.reduce_bucket_size:
            self.reduced, self.in_bucket, self.large = True, 0, values
        elif self.in_bucket + values > self.setup.reduce_bucket_size:
            self.reduced, self.in_bucket = True, values
        else:
            self.in_bucket += values

    def finish(self) -> None:
        """The last bucket is reduced; stage 0 copies all gradients to a flat one for that."""
        self.reduced, self.large = True, 0
        self.waiting += self.values if self.setup.stage == 0 else 0

    def bytes(self) -> int:
        """Bytes of all, now, but for the buckets."""
        if not self.started:
            return self.waiting * self.e + self.sums
        copied = self.large or min(self.in_bucket, self.setup.reduce_bucket_size)  # what other ranks' is added to
        copy = copied * self.e if self.setup.ranks > 1 else 0
        return (self.waiting + self.large) * self.e + self.sums + copy + (self.part if self.reduced else 0)

    def bucket_bytes(self) -> int:
        """Bytes of the buckets, now."""
        return self.buckets if self.started else 0


def largest_part(sizes: list[int], ranks: int) -> int:
    """Values of the parameters that one rank's equal part of all touches, at most; DeepSpeed keeps these whole."""
    part, most = -(-sum(sizes) // ranks), 0
    for rank in range(ranks):
        start, held = 0, 0
        for size in sizes:
            if start < (rank + 1) * part and start + size > rank * part:
                held += size
            start += size
        most = max(most, held)
    return most
