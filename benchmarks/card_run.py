"""Run the GPU work of benchmarks/real_size.py, each part in its own process, so that its memory is released.

deepspeed --num_gpus 1 benchmarks/card_run.py FLAGS OF train.py

As a program: train.py as it is, but without checkpoints and resume states, which for all parameters of a 6B model are
87 GB. Writes what the card held at most to card.json in the output directory.
"""

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # in front of this directory, which has a train.py as well

from errors import UserError, run_program  # noqa: E402
from options.train import parse_train  # noqa: E402
from training.early import refuse_early  # noqa: E402

if __name__ == "__main__":
    run_program(refuse_early)  # before torch is loaded

import torch  # noqa: E402

from benchmarks.card_rows import operations  # noqa: E402
from memory.available import free_ram, usable  # noqa: E402
from modes.loading import gpus_have_bf16  # noqa: E402

MATRIX = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices that are timed


def apart(work: Callable, *arguments):
    """The result of a function, where there is a GPU in a process of its own, so that GPU memory is released."""
    if not torch.cuda.is_available():
        return work(*arguments)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def look_at_card() -> dict:
    """The card, or this machine's RAM where there is none: bytes for tensors, the precision of a run, the rate of large
    matrix products in it (operations per second)."""
    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu and gpus_have_bf16([0])
    precision, dtype = ("bf16", torch.bfloat16) if bf16 else ("fp16", torch.float16) if on_gpu else ("fp32", None)
    total = torch.cuda.get_device_properties(0).total_memory if on_gpu else free_ram()
    return {
        "name": torch.cuda.get_device_name() if on_gpu else "CPU",
        "on_gpu": on_gpu,
        "total_bytes": total,
        "memory": usable(total) if on_gpu else total,
        "ram": free_ram(),
        "precision": precision,
        "matrix_rate": matrix_rate("cuda" if on_gpu else "cpu", dtype),
    }


def matrix_rate(device: str, dtype: torch.dtype | None, repeats: int = 30) -> float:
    """Operations per second of a square product, the best of several."""
    size = MATRIX[device]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def figures(row: dict, metrics: list[dict], peaks: dict, planned: list, config, card: dict, warm_up: int) -> dict:
    """What a run says: memory, tokens per second, operations per second and their share of the card's rate.

    Args:
        metrics: rows of metrics.jsonl, one a step. peaks: card.json. planned: of `plan_steps`, the same steps.
        warm_up: first steps, which do not count for speed.
    """
    allocated = peaks.get("allocated", max(step["peak_memory_bytes"] for step in metrics))
    on_card = peaks.get("on_card", allocated)
    counted = list(zip(metrics, planned, strict=True))[warm_up:]
    tokens = sum(step_tokens for _, (step_tokens, _) in counted)
    seconds = sum(step_tokens / step["tokens_per_second"] for step, (step_tokens, _) in counted)
    batches = [batch for _, (_, micro_batches) in counted for batch in micro_batches]
    needed, done = operations(row["mode"], row["method"], config, batches, row["recomputed"])
    result = {
        "allocated": allocated,
        "on_card": on_card,
        "ram": peaks["ram"],
        "error": row["estimated"] / allocated - 1,
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_step": round(seconds / len(counted), 3),
        "operations_per_token": needed / tokens,
        "operations_per_second": needed / seconds,
        "utilization": needed / seconds / card["matrix_rate"],
        "hardware_utilization": done / seconds / card["matrix_rate"],
        "first_loss": metrics[0]["loss"],
        "loss": metrics[-1]["loss"],
    }
    if row["kind"] == "memory":
        result |= {"ratio": on_card / 1e9 / row["gb_2023"], "ratio_of_tensors": allocated / 1e9 / row["gb_2023"]}
    return result


class Watch(threading.Thread):
    """Samples the used bytes of the GPU until it is stopped."""

    def __init__(self):
        super().__init__(daemon=True)
        self.around, self.stopped = 0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.05):
            if torch.cuda.is_initialized():
                self.look()

    def look(self):
        """Update the peak of memory that torch does not count: CUDA's context, NCCL."""
        reserved = torch.cuda.memory_reserved()
        free, total = torch.cuda.mem_get_info()
        if torch.cuda.memory_reserved() == reserved:  # else the two values are of different moments
            self.around = max(self.around, total - free - reserved)

    def found(self) -> dict[str, int]:
        """Most bytes that this process has held: RAM, tensors, and of the card."""
        ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if not torch.cuda.is_initialized():
            return {"ram": ram}
        on_card = torch.cuda.max_memory_reserved() + self.around
        return {"ram": ram, "allocated": torch.cuda.max_memory_allocated(), "on_card": on_card}


def train_watched() -> None:
    """The run of this command line without checkpoints, and card.json."""
    from train import run as train
    from training.guards import explain_full_memory

    options, problems = parse_train()
    if problems:
        raise UserError(*problems)
    watch = Watch()
    watch.start()
    explain_full_memory(lambda: train(options, saves=False))()
    watch.stopped.set()
    (Path(options.output.output_dir) / "card.json").write_text(json.dumps(watch.found()))


if __name__ == "__main__":
    run_program(train_watched)
