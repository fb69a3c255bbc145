"""The GPUs of this machine and their use, as nvidia-smi reports them. Needs no torch."""

import csv
import subprocess
from typing import Any

MIB = 2**20
FIELDS = {  # of nvidia-smi: name in an answer, unit
    "index": ("index", 1),
    "name": ("name", 0),
    "memory.used": ("memory_used", MIB),
    "memory.total": ("memory_total", MIB),
    "utilization.gpu": ("percent", 1),
    "temperature.gpu": ("celsius", 1),
    "power.draw": ("watts", 1),
}
COMMAND = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
SECONDS = 10.0  # that nvidia-smi may take: without persistence mode it loads the driver first


def gpus() -> list[dict[str, Any]]:
    """The GPUs of this machine; [] without a driver. Bytes, percent, degrees, watts; None where it does not say."""
    try:
        result = subprocess.run(COMMAND, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # none is installed, or the driver hangs
        return []
    return read_gpus(result.stdout) if result.returncode == 0 else []


def read_gpus(text: str) -> list[dict[str, Any]]:
    """The GPUs in nvidia-smi's output for `COMMAND`."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [
        {name: number(cell, unit) if unit else cell for (name, unit), cell in zip(FIELDS.values(), row, strict=True)}
        for row in rows
        if len(row) == len(FIELDS)
    ]


def number(cell: str, unit: int) -> float | None:
    """A cell's number; None for [N/A] and the like."""
    try:
        return float(cell) * unit
    except ValueError:
        return None
