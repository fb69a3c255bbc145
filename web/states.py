"""The runs below the root, and the state of each from its files and processes alone.

A run is a directory with run.yaml and one of metrics.jsonl, process.json (training/process_file.py) and job.json
(web/job.py). States: queued, starting, running, stopping; stopped, finished, failed; unknown on another host.
"""

import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from checkpoints.output_names import kind_of
from evaluation.report import rows_of
from processes import is_alive

MOST_ENTRIES = 50_000  # entries of directories below the root that are looked at
TAIL = 2**16  # bytes at the end of a file that are read
CLAIM = 30.0  # seconds in which a job that has been started must have written its identity
CLOCK = 2.0  # seconds by which a process may seem to be older than it is
ERROR = re.compile(r"^(?:\[rank\d+\]: *)?(?:error: (.+(?:\n\d+\. .+)*)|([A-Za-z_][\w.]*(?:Error|Exception): .+))", re.M)
SHOWN = ("mode", "train_type", "model_name_or_path", "train_path")  # of run.yaml


def find(root: Path) -> Iterator[Path]:
    """The directories of runs; hidden directories, virtual environments and links are not entered."""
    directories, seen = deque([root]), 0
    while directories and seen < MOST_ENTRIES:
        directory = directories.popleft()
        try:
            entries = list(os.scandir(directory))
        except OSError:
            continue
        seen += len(entries)
        names = {entry.name for entry in entries}
        if is_run(names):
            yield directory
        if "pyvenv.cfg" not in names:
            below = (entry for entry in entries if entry.name[0] != "." and kind_of(entry.name)[0] is None)
            directories += [Path(entry.path) for entry in below if entry.is_dir(follow_symlinks=False)]


def is_run(names: set[str]) -> bool:
    """Whether a directory with these names is a run's."""
    return "run.yaml" in names and bool(names & {"metrics.jsonl", "process.json", "job.json"})


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def number(content: dict[str, Any], name: str, otherwise: float = 0.0) -> float:
    """The number of a name, as far as it is one."""
    value = content.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else otherwise


@dataclass(frozen=True)
class Run:
    """A run, or a merge, as its files are now. job, process: of job.json and process.json; {} without it.

    job_lives, rank_lives: whether the job's process and rank 0 run; None on another host.
    """

    directory: Path
    job: dict[str, Any]
    process: dict[str, Any]
    job_lives: bool | None
    rank_lives: bool | None

    @classmethod
    def at(cls, directory: Path) -> "Run":
        """Read it."""
        job, process = read(directory / "job.json"), read(directory / "process.json")
        if job and number(process, "created") > number(job, "ended", math.inf):
            job = {}  # since then, a run was started in a terminal
        job_lives = is_alive(job) if "pid" in job else 0 <= time.time() - number(job, "queued") < CLAIM
        return cls(directory, job, process, job_lives, is_alive(process))

    @property
    def begun(self) -> float:
        """When it was queued or, in a terminal, started."""
        return number(self.job, "queued") or number(self.process, "created")

    @property
    def is_new(self) -> bool:
        """Whether process.json is of the job's own ranks, not of a run before."""
        started = number(self.job, "started", math.inf) if self.job else 0.0
        return number(self.process, "created") > started - CLOCK

    @property
    def is_stopping(self) -> bool:
        """Whether the page asked it to stop."""
        return number(read(self.directory / "stop.json"), "time") >= self.begun > 0

    @property
    def is_live(self) -> bool:
        """Whether a process of it may run."""
        return self.job_lives is not False or self.rank_lives is not False

    @property
    def state(self) -> str:
        """One of the states above."""
        if self.job_lives or self.rank_lives:
            if self.is_stopping:
                return "stopping"
            if self.job and not self.rank_lives and "started" not in self.job:
                return "queued"
            return "running" if self.is_new and self.process.get("ready") else "starting"
        if self.is_live:
            return "unknown"
        return self.outcome

    @property
    def outcome(self) -> str:
        """How it ended."""
        outcome = self.process.get("outcome")
        if outcome in ("finished", "stopped") and (self.is_new or self.job.get("exit_code") == 0):
            return outcome if self.is_new else "finished"  # else it was finished before and began nothing
        if self.is_stopping or self.job.get("canceled"):
            return "stopped"
        if self.job.get("kind") == "merge" and self.job.get("exit_code") == 0:
            return "finished"
        return "failed" if self.job or self.process else "unknown"

    @property
    def devices(self) -> set[str]:
        """The devices that it uses while it lives."""
        names = self.job.get("devices") or self.process.get("devices")
        return set(map(str, names)) if isinstance(names, list) else set()


def stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does; (0, 0) without it."""
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


def tail(path: Path, start: int = 0) -> str:
    """The end of a file, at most from a byte on."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, start))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@lru_cache(maxsize=1000)
def read_options(path: Path, _stamp: tuple[int, int]) -> dict[str, str]:
    """What the page shows of a run.yaml; reading YAML is slow."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return {name: str(content[name]) for name in SHOWN if content.get(name)} if isinstance(content, dict) else {}


@lru_cache(maxsize=1000)
def last_row(path: Path, _stamp: tuple[int, int]) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; {} without one."""
    return next(reversed(rows_of(tail(path).encode())), {})


@lru_cache(maxsize=1000)
def last_error(path: Path, start: int, _stamp: tuple[int, int]) -> str:
    """The last error in a log, else its last line. start: byte at which the attempt begins."""
    text = tail(path, start)
    errors = [ours or other for ours, other in ERROR.findall(text)]
    lines = [line for line in text.splitlines() if line.strip()]
    return (errors or lines or [""])[-1][:2000]


def summary(run: Run) -> dict[str, Any]:
    """What the page's list shows of a run, without its name."""
    directory, state, process = run.directory, run.state, run.process
    metrics, log = directory / "metrics.jsonl", directory / "train.log"
    changed = stamp(metrics)
    row, options = last_row(metrics, changed), read_options(directory / "run.yaml", stamp(directory / "run.yaml"))
    total, ready, first = (int(number(process, name)) for name in ("total_steps", "ready", "start_step"))
    step = first if changed[0] < ready * 1e9 and run.is_new else row.get("step", first)
    left = None
    if state == "running" and step > first:
        written = changed[0] / 1e9
        left = max((written - number(process, "ready")) / (step - first) * (total - step) - (time.time() - written), 0)
    return {
        "state": state,
        "step": step,
        "total_steps": total or None,
        "loss": row.get("loss"),
        "started": number(run.job, "started") or run.begun or None,
        "seconds_left": left,
        "mode": options.get("mode"),
        "train_type": options.get("train_type"),
        "base": options.get("model_name_or_path"),
        "train_path": options.get("train_path"),
        "note": tail(directory / "note.txt"),
        "exit_code": run.job.get("exit_code"),
        "stoppable": bool(run.job_lives or run.rank_lives),
        "reason": last_error(log, int(number(run.job, "log_start")), stamp(log)) if state == "failed" else "",
    }
