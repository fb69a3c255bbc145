"""The runs below the root, and the state of each, from its files and processes alone.

A run has process.json (training/process_file.py), job.json (runs/job.py), or run.yaml and metrics.jsonl.
States: queued, starting, running, stopping; stopped, finished, failed; unknown, most often on another host.
"""

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

from checkpoints.output_names import kind_of
from evaluation.report import rows_of
from processes import is_alive
from runs.config import read_options
from runs.log import LOG_FILE
from runs.metrics import METRICS, short
from runs.places import CONTROL
from runs.reading import encodable, number, read, stamp, tail

MOST_ENTRIES = 50_000  # entries of directories below the root that are looked at
ENVIRONMENT = {"pyvenv.cfg", "conda-meta"}  # names in a virtual environment of venv or conda
SYSTEM = {"/proc", "/sys"}  # below the root /: a hundred thousand names, and no run
CLAIM = 30.0  # seconds in which a job that has been started must have written its identity
CLOCK = 2.0  # seconds by which a process may seem to be older than it is
ERROR = re.compile(r"^(?:\[rank\d+\]: *)?(?:error: (.+(?:\n\d+\. .+)*)|([A-Za-z_][\w.]*(?:Error|Exception): .+))", re.M)


def walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Directories with the names in them; hidden ones, checkpoints, virtual environments and links are not entered.

    Names that no request can carry are left out, such as those in another encoding than UTF-8.
    """
    directories, seen = deque([root]), 0
    while directories and seen < MOST_ENTRIES:
        directory = directories.popleft()
        try:
            entries = [entry for entry in os.scandir(directory) if not CONTROL.search(entry.name)]
        except OSError:
            continue
        names = {entry.name for entry in entries}
        seen += len(names)
        yield directory, names
        if not names & ENVIRONMENT and os.fspath(directory) not in SYSTEM:
            below = [entry for entry in entries if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)]
            directories += [Path(entry.path) for entry in below if kind_of(entry.name)[0] is None]


def find(root: Path) -> Iterator[Path]:
    """The directories of runs."""
    return (directory for directory, names in walk(root) if is_run(names))


def is_run(names: set[str]) -> bool:
    """Whether a directory with these names is a run's."""
    return bool(names & {"process.json", "job.json"}) or names >= {"run.yaml", METRICS}


@dataclass(frozen=True)
class Run:
    """A run, or another job, as its files are now.

    job, process: of job.json and process.json, or {}. job_lives, rank_lives: whether the job's process and rank 0 run;
    None on another host.
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
        if number(process, "created") > number(job, "ended", math.inf):
            job = {}  # since then, a run was started in a terminal
        job_lives = is_alive(job) if "pid" in job else 0 <= time.time() - number(job, "queued") < CLAIM
        return cls(directory, job, process, job_lives, is_alive(process))

    @property
    def is_live(self) -> bool:
        """Whether a process of it runs here."""
        return bool(self.job_lives or self.rank_lives)

    @property
    def host(self) -> str:
        """The other host on which it may run, or ""."""
        both = ((self.job, self.job_lives), (self.process, self.rank_lives))
        return next((encodable(str(facts.get("host"))) for facts, lives in both if lives is None), "")

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
    def devices(self) -> set[str]:
        """The devices that it uses while it lives."""
        names = self.job.get("devices") or self.process.get("devices")
        return set(map(str, names)) if isinstance(names, list) else set()

    @property
    def state(self) -> str:
        """One of the states above."""
        if not self.is_live:
            return "unknown" if self.host else self.outcome
        if self.is_stopping:
            return "stopping"
        if not self.rank_lives and "started" not in self.job:
            return "queued"
        return "running" if self.is_new else "starting"

    @property
    def outcome(self) -> str:
        """How it ended."""
        outcome, done = self.process.get("outcome"), self.job.get("exit_code") == 0
        if self.is_new and outcome in ("finished", "stopped"):
            return outcome
        if done and (self.job.get("kind") != "train" or outcome == "finished"):  # by a run before: nothing was left
            return "finished"
        if self.is_stopping or self.job.get("canceled"):
            return "stopped"
        return "failed" if self.job or self.process else "unknown"


@lru_cache(maxsize=1000)
def last_row(path: Path, _stamp: tuple[int, int]) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; {} without one."""
    return next(reversed(rows_of(tail(path))), {})


@lru_cache(maxsize=1000)
def last_error(path: Path, start: int, _stamp: tuple[int, int]) -> str:
    """The last error in a log, else its last line. start: byte at which the attempt begins."""
    text = tail(path, start).decode(errors="replace")
    errors = [ours or other for ours, other in ERROR.findall(text)]
    return next(reversed(errors or text.strip().splitlines()), "")[:2000]


def summary(run: Run) -> dict[str, Any]:
    """What the page's list shows of a run, without its name."""
    directory, state, process = run.directory, run.state, run.process
    config, metrics, log = (directory / name for name in ("run.yaml", METRICS, LOG_FILE))
    changed = stamp(metrics)
    written, row = changed[0] / 1e9, last_row(metrics, changed)
    total, first = int(number(process, "total_steps")), int(number(process, "start_step"))
    ready = number(process, "ready")
    step = first if run.is_new and written < ready else int(number(row, "step", first))
    left = None
    if state == "running" and step > first:
        left = max((written - ready) / (step - first) * (total - step) - (time.time() - written), 0)
    return {
        "state": state,
        "step": step,
        "total_steps": total or None,
        "loss": short(row.get("loss")),
        "started": number(run.job, "started") or run.begun or written or None,  # of a run before process.json: written
        "seconds_left": left,
        **read_options(config, stamp(config)),
        "note": tail(directory / "note.txt").decode(errors="replace"),
        "exit_code": short(run.job.get("exit_code")),
        "stoppable": run.is_live,
        "reason": last_error(log, int(number(run.job, "log_start")), stamp(log)) if state == "failed" else "",
    }
