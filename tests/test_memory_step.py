"""memory/step.py: the moments of a step, and the largest micro-batch."""

from dataclasses import replace

import numpy as np

from data.loading import plan_epoch
from memory.setup import Batch
from memory.step import follow_step, largest_batch
from memory.suggestions import smaller_batches
from parameters import Parameter
from tests.shapes import SETUP, alike, model


def test_norms_of_gradients_are_taken_in_float64():
    """A copy of 8 bytes a value, of the largest gradient: where one is large, more than the optimizer's own copies."""
    parameters = [
        Parameter("layers.0.dense_4h_to_h.weight", (1000, 1000), True),
        Parameter("layers.0.dense_4h_to_h.bias", (1000,), True),
    ]
    sizes = model("glm3", "lora", "small")[1]

    def peak_of(moment, **changes):
        setup = replace(SETUP, precision="fp32", batch=alike(1, 16, 8), **changes)
        return max(sum(now.values()) for name, now in follow_step(parameters, sizes, setup) if name == moment)

    values = 1_001_000
    assert peak_of("optimizer") == 4 * values + 8 * 10**6
    assert peak_of("optimizer", ranks=2) == 4 * values + 8 * (10**6 // 2)  # each has half of a group
    assert peak_of("optimizer", stage=3, ranks=2) == 8 * (10**6 // 2)
    plain = peak_of("backward", reduce_bucket_size=1000)  # with offload, as a bucket is reduced
    assert peak_of("backward", reduce_bucket_size=1000, offload_optimizer=True) == plain + 8 * 10**6 - 4 * values


def test_the_largest_micro_batch_of_samples():
    lengths, supervised = [5, 9, 17], [3, 6, 4]
    assert largest_batch(lengths, supervised, 2) == Batch(26, 2, 10, 17**2 + 9**2, 17 * 4 + 9 * 6)
    every = largest_batch(lengths, supervised, 6)
    assert every == Batch(31, 3, 13, 17**2 + 9**2 + 5**2, 17 * 4 + 9 * 6 + 5 * 3)
    assert [batch.samples for batch in smaller_batches(lengths, supervised, 6).values()] == [3, 3, 2, 1]
    assert smaller_batches(lengths, supervised, 6)[2] == largest_batch(lengths, supervised, 2)


def test_the_largest_row_of_packed_samples():
    """No less than any micro-batch of two rows that an epoch really has, and not much more."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(16, 200, 500)
    supervised = draw.integers(1, lengths // 2)
    plans = [plan_epoch(lengths, supervised, epoch=epoch, seed=0, micro_batch_size=2, accumulation=1, world_size=2,
                        rank=rank, row_length=256) for epoch in (1, 2) for rank in (0, 1)]  # fmt: skip
    most = largest_batch(lengths, supervised, 2, row_length=256)
    for samples in (np.array(rows) for plan in plans for step in plan for rows in step.micro_batches if rows[0] >= 0):
        real = largest_batch(lengths[samples], supervised[samples], len(samples))
        for name, value in vars(real).items():
            assert value <= vars(most)[name], name
    assert most.tokens == 512 and most.samples <= 512 // 16 + 1 and most.supervised <= 320
