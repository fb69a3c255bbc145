"""Suggest the fastest configuration that fits on the GPUs."""

from dataclasses import dataclass, replace

from memory.activations import Sizes
from memory.checkpointing import SAFE_SHARE, layers_to_recompute
from memory.estimate import Estimate
from memory.setup import Batch, Setup
from memory.step import largest_batch
from parameters import Parameter, trained_values

BUCKET = 2 * 10**8  # reduce_bucket_size of the shipped files
# --ds_file, stage, offload of optimizer and of parameters; fastest first.
CHOICES = (
    ("ds_zero2_no_offload.json", 2, False, False),
    ("ds_zero3_no_offload.json", 3, False, False),
    ("ds_zero2_offload.json", 2, True, False),
    ("ds_zero3_offload.json", 3, True, True),
)


@dataclass(frozen=True)
class Suggestion:
    """A configuration, its estimated memory, and whether it fits."""

    ds_file: str
    micro_batch_size: int
    setup: Setup
    estimate: Estimate
    fits: bool

    def flags(self) -> str:
        """The flags of this configuration."""
        layers = self.setup.recomputed
        checkpointing = f"--gradient_checkpointing --checkpoint_layers {layers} " if layers else ""
        return (
            f"--ds_file {self.ds_file} {checkpointing}--per_device_train_batch_size {self.micro_batch_size} "
            f"--gradient_accumulation_steps {self.setup.accumulation}"
        )


def smaller_batches(lengths, supervised, micro_batch_size: int, row_length: int | None = None) -> dict[int, Batch]:
    """micro-batch size -> its largest micro-batch, for the given size and all its divisors.

    Args:
        lengths, supervised, row_length: of `largest_batch`.
    """
    divisors = [size for size in range(micro_batch_size, 0, -1) if micro_batch_size % size == 0]
    return {size: largest_batch(lengths, supervised, size, row_length) for size in divisors}


def suggest(
    parameters: list[Parameter], sizes: Sizes, setup: Setup, memory: int, *, batches: dict[int, Batch]
) -> Suggestion:
    """The cheapest configuration that fits, or, if none does, the smallest of all.

    Offloading is slow, so it comes after recomputed layers, partitioned weights and smaller micro-batches (with more of
    them per step). The number of recomputed layers is that of --checkpoint_layers auto.

    Args:
        setup: ranks, precision and all other settings; accumulation is for the first of `batches`.
        memory: usable bytes of one GPU.
        batches: of `smaller_batches`; the samples per step stay the same.
    """
    bucket = min(BUCKET, trained_values(parameters))
    samples = next(iter(batches)) * setup.accumulation
    candidates = []
    for offload in (False, True):
        for micro_batch_size, batch in batches.items():
            for ds_file, stage, optimizer, param in CHOICES:
                if optimizer != offload or (stage == 3 and setup.ranks == 1 and not param):  # nothing to partition
                    continue
                changed = replace(
                    setup, batch=batch, stage=stage, offload_optimizer=optimizer, offload_param=param,
                    reduce_bucket_size=bucket, accumulation=samples // micro_batch_size, overlap_comm=True,
                    pin_memory=True,
                )  # fmt: skip
                layers, result = layers_to_recompute(parameters, sizes, changed, int(SAFE_SHARE * memory))
                changed, fits = replace(changed, recomputed=layers), result.gpu_peak <= memory
                candidates.append(Suggestion(ds_file, micro_batch_size, changed, result, fits))
                if fits:
                    return candidates[-1]
    return min(candidates, key=lambda suggestion: suggestion.estimate.gpu_peak)
