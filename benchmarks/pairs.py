"""Time two implementations in alternation in one process, so that noise of the machine affects both."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "deepspeed", "peft", "sentencepiece", "numpy")


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall-clock time, processor time of all threads of this process) of one call."""
    started, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - processor


def alternate(ours: Callable[[], object], other: Callable[[], object], repeats: int) -> dict:
    """Seconds of each call of both, and the median of the paired ratios other / ours, the speedup of ours.

    Keys that end with _cpu are processor time, which a busy machine affects less.
    """
    times = {"ours": [], "other": [], "ours_cpu": [], "other_cpu": []}
    for turn in range(repeats):
        sides = [("ours", ours), ("other", other)]
        for name, work in sides if turn % 2 == 0 else reversed(sides):
            wall, processor = seconds(work)
            times[name].append(round(wall, 4))
            times[f"{name}_cpu"].append(round(processor, 4))
    return {
        **times,
        "ratio": ratio(times["ours"], times["other"]),
        "ratio_cpu": ratio(times["ours_cpu"], times["other_cpu"]),
    }


def ratio(ours: list[float], other: list[float]) -> float:
    """Median of the paired ratios other / ours."""
    return round(statistics.median(theirs / mine for mine, theirs in zip(ours, other, strict=True)), 2)


def machine() -> dict:
    """Where, when and with what it was measured."""
    import torch  # here: parsing a command line does not need it

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": commit.stdout.strip() or None,
    }


def cpu_name() -> str | None:
    """The processor's name in /proc/cpuinfo; None where there is no such file or no name in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def report(result: dict, output: Path | str = "") -> None:
    """Print one JSON object, the machine included, on a line; write it to a file, too, if one is given."""
    complete = {**machine(), **result}
    print(json.dumps(complete, ensure_ascii=False, default=str))
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(
            json.dumps(complete, ensure_ascii=False, default=str, indent=2) + "\n", encoding="utf-8"
        )
