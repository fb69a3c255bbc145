"""Merges and exports: merge_lora.py as jobs, each in ROOT/.jobs/NAME; NAME is that of its output directory, hashed."""

import hashlib
import sys
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from errors import UserError
from options.merge import MERGE, MergeOptions, parse_merge
from serving.errors import ApiError
from web import job
from web.body import body_of
from web.fields import arguments, located
from web.paths import REPOSITORY, Root
from web.states import Run, number, tail

SHOWN = 50  # newest merges
LOG_CHARACTERS = 4000  # at the end of each one's log
Body = Annotated[dict[str, Any], Depends(body_of)]


def router(root: Root) -> APIRouter:
    """GET and POST api/merges, POST api/merges/stop."""
    routes = APIRouter()

    @routes.get("/api/merges")
    def listed() -> list[dict[str, Any]]:
        runs = [run for run in map(Run.at, root.path.glob(job.OTHERS)) if run.job.get("kind") == "merge"]
        return [summary(run) for run in sorted(runs, key=lambda run: -number(run.job, "queued"))[:SHOWN]]

    @routes.post("/api/merges")
    def start(body: Body) -> dict[str, str]:
        argv, options = checked(root, body.get("values"))
        name = root.name(output_of(root, options))
        facts = {
            "kind": "merge",
            "command": [sys.executable, "merge_lora.py", *argv],
            "environment": {},
            "devices": [],  # waits for nothing, and nothing for it
            "queue": False,
            "root": str(root.path),
            "output": name,
            "can_chat": options.format != "gguf" and not options.adapter_only,
        }
        directory = directory_of(root, name)
        directory.mkdir(parents=True, exist_ok=True)
        with job.locked(directory) as descriptor:
            job.begin(directory, facts, descriptor)
        return {"output": name}

    @routes.post("/api/merges/stop")
    def stop(body: Body) -> dict[str, str]:
        name = root.name(root.below(body.get("output")))
        if not (directory_of(root, name) / "job.json").is_file():
            raise ApiError(404, f"{name} is not the output of a merge: reload the list.", param="output")
        job.stop(directory_of(root, name))
        return {"output": name}

    return routes


def checked(root: Root, values: object) -> tuple[list[str], MergeOptions]:
    """(flags of a command line, options) of a form's values.

    Raises:
        ApiError: one has a problem, with its field.
    """
    argv, problems = arguments(MERGE, values, root)
    try:
        options, sentences = parse_merge(argv)
    except UserError as error:
        sentences = list(error.sentences)
    for problem in problems + located(MERGE, sentences):
        raise ApiError(400, problem["text"], param=problem["field"] or None)
    return argv, options


def output_of(root: Root, options: MergeOptions) -> Path:
    """The directory that a merge writes.

    Raises:
        ApiError: it is outside of the root, hidden, or not empty.
    """
    path = root.below(str(REPOSITORY / options.output))
    hidden = any(part.startswith(".") for part in path.relative_to(root.path).parts)
    if hidden or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ApiError(400, f"--output_dir: {root.name(path)} is in use: choose another one.", param="output_dir")
    return path


def directory_of(root: Root, name: str) -> Path:
    """Where the job of an output is; two jobs for one output exclude each other."""
    return root.path / ".jobs" / hashlib.sha256(name.encode()).hexdigest()[:16]


def summary(run: Run) -> dict[str, Any]:
    """What the page shows of a merge."""
    log = tail(run.directory / job.LOG_FILE, int(number(run.job, "log_start"))).decode(errors="replace")
    return {
        "output": run.job.get("output"),
        "state": "running" if run.state == "starting" else run.state,
        "started": number(run.job, "queued"),
        "can_chat": run.job.get("can_chat") is True and run.state == "finished",
        "log": log[-LOG_CHARACTERS:],
    }
