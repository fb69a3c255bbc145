"""Guards that end a run early: steps with a NaN or Inf loss or gradient, full memory."""

import errno
import functools
import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from errors import UserError
from parallel import launch
from parallel.ranks import rank, world_size

SHOWN = 8  # records per rank that an error names
SKIPS_ALLOWED = 10  # consecutive steps that --on_nonfinite skip skips
MEMORY_REMEDIES = {  # full memory -> remedy in training
    "GPU": "recompute more layers (--gradient_checkpointing --checkpoint_layers N), lower "
    "--per_device_train_batch_size and raise --gradient_accumulation_steps by the same factor, or use the flags that "
    "--dry_run --gpu_memory suggests",
    "host": "start fewer ranks on a machine, or use a --ds_file that offloads less, such as ds_zero3_no_offload.json "
    "on more GPUs; --dry_run shows the memory per rank",
}
REMEDY = (
    "check these records, lower --learning_rate, raise --warmup_ratio, or use another --precision (bf16 or fp32); "
    "--on_nonfinite skip skips such steps"
)


def describe_nonfinite(
    step: int,
    losses: Sequence[torch.Tensor],
    micro_batches: Sequence[Sequence[int]],
    place: Callable[[int], str],
    *,
    only_losses: bool,
) -> str | None:
    """One clause with the ranks and records whose loss or gradient is not finite. Every rank must call it.

    Args:
        losses: this rank's loss of each micro-batch of the step, scalars.
        micro_batches: this rank's rows of each micro-batch; negative ones are fillers.
        place: row -> "file:line".
        only_losses: return None if all losses are finite: an overflow of an fp16 gradient then only lowers the loss
            scale.
    """
    values = [float(loss) for loss in losses]
    nonfinite = [i for i, value in enumerate(values) if not math.isfinite(value)]
    shown = nonfinite or range(len(values))
    places = [place(row) for i in shown for row in micro_batches[i] if row >= 0]
    own_report = {"rank": rank(), "loss": values[nonfinite[0]] if nonfinite else None, "places": places}
    everyone: list[dict] = [{} for _ in range(world_size())]
    dist.all_gather_object(everyone, own_report)
    with_loss = [report for report in everyone if report["loss"] is not None]
    if with_loss:
        clauses = [f"{report['loss']} on rank {report['rank']} in {_list(report['places'])}" for report in with_loss]
        return f"step {step}: the loss is {', '.join(clauses)}"
    if only_losses:
        return None
    clauses = [f"rank {report['rank']}: {_list(report['places'])}" for report in everyone if report["places"]]
    return f"step {step}: the gradient is not finite though every loss is ({'; '.join(clauses)})"


def _list(places: list[str]) -> str:
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(places[:SHOWN]) + more


def full_memory(error: BaseException) -> tuple[str, str] | None:
    """("GPU" or "host", a clause about the full memory); None for any other error.

    The texts are those of torch 2.13: DefaultCPUAllocator for host memory, the bare CUDA error if the driver itself
    refuses (cudaHostAlloc of pinned memory, or a GPU that other processes fill).
    """
    text = str(error)
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)|Unable to allocate ([\d.]+ \w+)", text)
    wanted = f" ({asked[1] or asked[2]} more needed)" if asked else ""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU", f"the GPU memory is full{wanted}"
    if isinstance(error, RuntimeError) and "CUDA error: out of memory" in text:
        return "host", "CUDA cannot allocate pinned host memory (or other processes fill the GPU, see nvidia-smi)"
    no_host_memory = isinstance(error, RuntimeError) and "allocate memory" in text
    no_mapping = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or no_host_memory or no_mapping:
        return "host", f"the host memory (RAM) is full{wanted}"
    return None


def explain_full_memory(work: Callable, **remedies: str) -> Callable:
    """Wrap a function so that a full GPU or host memory becomes a UserError with a remedy.

    Args:
        remedies: for "GPU" and "host", instead of MEMORY_REMEDIES.
    """
    remedies = {**MEMORY_REMEDIES, **remedies}

    @functools.wraps(work)
    def explained(*args, **kwargs):
        try:
            return work(*args, **kwargs)
        except (MemoryError, OSError, RuntimeError) as error:
            full = full_memory(error)
            if full is None:
                raise
            kind, clause = full
            prefix = f"rank {launch.rank()}: " if launch.world_size() > 1 else ""
            raise UserError(f"{prefix}{clause}: {remedies[kind]}.") from error

    return explained
