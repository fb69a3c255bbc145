"""Start a run with the values of a form, or resume one, as a job."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files import write_text
from memory.gpus import gpus
from runs import job
from runs.command import compose
from runs.config import values_again
from runs.directories import new_place
from runs.errors import Conflict, Refused
from runs.places import REPOSITORY, Root
from runs.states import Run


def start_run(root: Root, values: object, launch: object, queue: bool) -> Path:
    """Write run.yaml and start a job.

    Raises:
        Refused: the values have a problem, with its field.
        Conflict: a run lives in the output directory.
    """
    composed = compose(values, launch, root)
    for problem in composed.problems:
        raise Refused(problem["text"], problem["field"] or None)
    assert isinstance(values, dict), "compose checks it"
    directory = new_place(root, values["output_dir"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"--output_dir: {root.name(directory)} cannot be made ({error.strerror}).", "output_dir"
        ) from None
    facts = {
        "kind": "train", "command": [*composed.launcher, *composed.argv], "environment": composed.environment,
        "devices": devices_of(composed.environment), "launch": launch, "root": str(root.path),
        "queue": queue,
    }  # fmt: skip
    with job.locked(directory) as descriptor:
        if not (directory / "metrics.jsonl").exists():  # else train.py replaces it once the run has been resumed
            write_text(directory / "run.yaml", composed.yaml)
        job.begin(directory, facts, descriptor)
    return directory


def devices_of(environment: Mapping[str, str]) -> list[str]:
    """The devices that a command would use: those of CUDA_VISIBLE_DEVICES, else all GPUs; without a GPU, the CPU."""
    visible = {**os.environ, **environment}.get("CUDA_VISIBLE_DEVICES")
    names = [str(int(gpu["index"])) for gpu in gpus()] if visible is None else visible.split(",")
    return [name.strip() for name in names if name.strip()] or ["cpu"]


def resume(root: Root, directory: Path, queue: bool) -> Path:
    """Start a run again, with its run.yaml and its devices.

    Raises:
        Refused, Conflict: see `start_run`; or only its user can know how to start it.
    """
    job.refuse_live(directory)
    return start_run(root, values_again(root, directory), launch_again(Run.at(directory)), queue)


def launch_again(run: Run) -> dict[str, Any]:
    """The devices and ranks of a run; raises Conflict where only its user can know how to start it."""
    if run.job:
        return run.job.get("launch") or {}
    ranks, devices = len(run.process.get("members") or [0]), sorted(run.devices - {"cpu"})
    if run.process.get("ranks", 1) > ranks:
        raise Conflict("The run had ranks on several machines: resume it in a terminal.")
    if not all(name.isdecimal() for name in devices):
        raise Conflict(f"The run used {', '.join(devices)}: resume it in a terminal, on the same GPUs.")
    if run.process.get("cwd") != str(REPOSITORY):
        raise Conflict(f"The run was started in {run.process.get('cwd')}: resume it there.")
    return {"devices": [int(name) for name in devices], "ranks": ranks}
