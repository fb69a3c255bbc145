"""The cheapest way to run something on the cards that are there."""

from dataclasses import dataclass, replace

from doctor.activations import Batch, Sizes, size_of
from doctor.memory import GIB, Estimate, estimate
from doctor.setup import Setup

# Not counted by formulas, and not by torch.cuda.max_memory_allocated: CUDA's context, NCCL's buffers, fragments.
RESERVED_BYTES, RESERVED_SHARE = 1 * GIB, 0.03
BUCKET = 2 * 10**8  # reduce_bucket_size of the shipped files
# --ds_file, stage, offload of optimiser and parameters, checkpointing: the fastest first.
CHOICES = (
    ("ds_zero2_no_offload.json", 2, False, False, False),
    ("ds_zero2_no_offload.json", 2, False, False, True),
    ("ds_zero3_no_offload.json", 3, False, False, False),
    ("ds_zero3_no_offload.json", 3, False, False, True),
    ("ds_zero2_offload.json", 2, True, False, False),
    ("ds_zero2_offload.json", 2, True, False, True),
    ("ds_zero3_offload.json", 3, True, True, True),
)


@dataclass(frozen=True)
class Suggestion:
    """A configuration, what it takes, and whether that fits."""

    ds_file: str
    checkpointing: bool
    micro_batch_size: int
    setup: Setup
    estimate: Estimate
    fits: bool

    def flags(self) -> str:
        """The flags to run it with."""
        checkpointing = "--gradient_checkpointing " if self.checkpointing else ""
        return (
            f"--ds_file {self.ds_file} {checkpointing}--per_device_train_batch_size {self.micro_batch_size} "
            f"--gradient_accumulation_steps {self.setup.accumulation}"
        )


def usable(gpu_bytes: int) -> int:
    """What of a GPU's memory tensors may take."""
    return max(int(gpu_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES, 0)


def smaller_batches(batch: Batch, micro_batch_size: int, most_supervised: int) -> dict[int, Batch]:
    """micro-batch size -> the most that such a micro-batch asks for: the given size, and those that divide it.

    Args:
        batch: of the given size.
        most_supervised: tokens that count in the loss, of the sample that has most.
    """
    divisors = [size for size in range(micro_batch_size, 0, -1) if micro_batch_size % size == 0]
    return {
        size: replace(
            batch, rows=min(batch.rows, size), supervised=min(batch.supervised, min(batch.rows, size) * most_supervised)
        )
        for size in divisors
    }


def suggest(
    parameters: list[tuple], sizes: Sizes, setup: Setup, gpu_bytes: int, *, batches: dict[int, Batch], recomputed: int
) -> Suggestion:
    """The cheapest configuration that fits, or, if none does, the smallest of all.

    Offloading is slow: nothing is offloaded as long as checkpointing, partitioned weights, or a smaller micro-batch
    (with more of them in a step) do.

    Args:
        setup: ranks, precision and all that is not chosen here; accumulation belongs to the first of `batches`.
        gpu_bytes: memory of one GPU.
        batches: of `smaller_batches`: steps keep their samples.
        recomputed: blocks that gradient checkpointing would recompute.
    """
    bucket = min(BUCKET, sum(size_of(shape) for _, shape, learnt in parameters if learnt))
    samples = next(iter(batches)) * setup.accumulation
    found = []
    for offload in (False, True):
        for micro_batch_size, batch in batches.items():
            for ds_file, stage, optimizer, param, checkpointing in CHOICES:
                if optimizer != offload or (stage == 3 and setup.ranks == 1 and not param):  # nothing to partition
                    continue
                changed = replace(
                    setup, batch=batch, stage=stage, offload_optimizer=optimizer, offload_param=param,
                    recomputed=recomputed if checkpointing else 0, reduce_bucket_size=bucket,
                    accumulation=samples // micro_batch_size, overlap_comm=True, pin_memory=True,
                )  # fmt: skip
                result = estimate(parameters, sizes, changed)
                fits = result.gpu_peak <= usable(gpu_bytes)
                found.append(Suggestion(ds_file, checkpointing, micro_batch_size, changed, result, fits))
                if fits:
                    return found[-1]
    return min(found, key=lambda suggestion: suggestion.estimate.gpu_peak)
