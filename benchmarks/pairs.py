"""Two ways of the same work, timed by turns in one process, so that a noisy machine is as noisy for both."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

REPOSITORY = Path(__file__).resolve().parent.parent


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(ours: Callable[[], object], other: Callable[[], object], repeats: int) -> dict:
    """Seconds of each call of both, and the median of the paired ratios other / ours: how often ours fits in."""
    times = {"ours": [], "other": []}
    for turn in range(repeats):
        sides = [("ours", ours), ("other", other)]
        for name, work in sides if turn % 2 == 0 else reversed(sides):
            times[name].append(round(seconds(work), 3))
    ratios = [other / ours for ours, other in zip(times["ours"], times["other"], strict=True)]
    return {**times, "ratio": round(statistics.median(ratios), 2)}


def machine() -> dict:
    """Where and with what it was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip() or None,
    }


def report(result: dict) -> None:
    """One JSON object, the machine included."""
    print(json.dumps({**machine(), **result}, ensure_ascii=False))
