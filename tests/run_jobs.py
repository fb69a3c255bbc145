"""Directories of runs, and real jobs in them whose commands are short."""

import json
import sys

from files import write_json
from runs.job import begin, locked
from runs.states import Run
from tests.servers import wait_until

SLEEP = [sys.executable, "-c", "import time; print('begins', flush=True); time.sleep(60)"]
SHOWN = {"model_name_or_path": "ChatGLM3-6B", "train_type": "lora"}


def make_run(directory, process=None, rows=(), **options):
    """A run's directory, with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.yaml").write_text(json.dumps({**SHOWN, **options}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if process is not None:
        write_json(directory / "process.json", process)
    return directory


def start_job(directory, command, queue=False, devices=("cpu",), **facts):
    """Begin a job in a run's directory."""
    make_run(directory)
    facts = {"kind": "train", "environment": {}, "root": str(directory.parent), **facts}
    with locked(directory) as descriptor:
        begin(directory, {**facts, "command": command, "devices": list(devices), "queue": queue}, descriptor)
    return directory


def state_of(directory):
    return Run.at(directory).state


def log_of(directory):
    return (directory / "train.log").read_text()


def has_begun(directory):
    """Whether its command has written; the line before is the command."""
    return log_of(directory).endswith("\nbegins\n")


def await_state(directory, *wanted):
    wait_until(lambda: state_of(directory) in wanted, seconds=200)
