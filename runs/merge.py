"""Merges and exports: merge_lora.py as jobs, one for each output directory, whose hash names that of the job."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from errors import UserError
from options.fields import located
from options.merge import MERGE, MergeOptions, parse_merge
from runs import job
from runs.command import arguments
from runs.errors import Missing, Refused
from runs.log import LOG_FILE
from runs.places import REPOSITORY, Root
from runs.reading import number, tail
from runs.states import Run

SHOWN = 50  # newest merges
LOG_CHARACTERS = 4000  # at the end of each one's log


def start_merge(root: Root, values: object) -> str:
    """Start a merge with the values of a form; returns the name of its output directory.

    Raises:
        Refused, Outside: the values have a problem, with its field.
        Conflict: a merge writes this directory now.
    """
    argv, options = checked(root, values)
    name = root.name(output_of(root, options))
    facts = {
        "kind": "merge", "command": [sys.executable, "merge_lora.py", *argv], "environment": {}, "root": str(root.path),
        "devices": [], "queue": False,  # waits for nothing, and nothing for it
        "output": name, "can_chat": options.format != "gguf" and not options.adapter_only,
    }  # fmt: skip
    directory = directory_of(root, name)
    directory.mkdir(parents=True, exist_ok=True)
    with job.locked(directory) as descriptor:
        job.begin(directory, facts, descriptor)
    return name


def stop_merge(root: Root, output: object) -> str:
    """Stop the merge that writes a directory; returns its name. Raises Missing if there is none."""
    name = root.name(root.below(output))
    if not (directory_of(root, name) / "job.json").is_file():
        raise Missing(f"{name} is not the output of a merge: reload the list.", "output")
    job.stop(directory_of(root, name))
    return name


def newest(root: Root) -> list[dict[str, Any]]:
    """What the page shows of the newest merges."""
    runs = [run for run in map(Run.at, root.path.glob(f"{job.JOBS}/*")) if run.job.get("kind") == "merge"]
    return [summary(run) for run in sorted(runs, key=lambda run: -number(run.job, "queued"))[:SHOWN]]


def checked(root: Root, values: object) -> tuple[list[str], MergeOptions]:
    """(flags of a command line, options) of a form's values.

    Raises:
        Refused: one has a problem, with its field.
    """
    argv, problems = arguments(MERGE, values, root)
    try:
        options, sentences = parse_merge(argv)
    except UserError as error:
        sentences = list(error.sentences)
    for problem in problems + located(MERGE, sentences):
        raise Refused(problem["text"], problem["field"] or None)
    return argv, options


def output_of(root: Root, options: MergeOptions) -> Path:
    """The directory that a merge writes.

    Raises:
        Refused, Outside: it is outside of the root, hidden, or not empty.
    """
    path = root.below(str(REPOSITORY / options.output))
    if root.is_hidden(path) or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise Refused(f"--output_dir: {root.name(path)} is in use: choose another one.", "output_dir")
    return path


def directory_of(root: Root, name: str) -> Path:
    """Where the job of an output is; two jobs for one output exclude each other."""
    return root.path / job.JOBS / hashlib.sha256(name.encode()).hexdigest()[:16]


def summary(run: Run) -> dict[str, Any]:
    """What the page shows of a merge."""
    log = tail(run.directory / LOG_FILE, int(number(run.job, "log_start"))).decode(errors="replace")
    return {
        "output": run.job.get("output"),
        "state": "running" if run.state == "starting" else run.state,
        "started": number(run.job, "queued"),
        "can_chat": run.job.get("can_chat") is True and run.state == "finished",
        "log": log[-LOG_CHARACTERS:],
    }
