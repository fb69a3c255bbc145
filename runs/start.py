"""Start a run with the values of a form, or resume one, as a job."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from files import write_text
from memory.gpus import gpus
from options.fields import Problem
from options.train import TRAIN
from runs import job
from runs.command import Composed, compose
from runs.config import values_again
from runs.directories import new_place
from runs.errors import Conflict, Refused
from runs.metrics import METRICS
from runs.places import REPOSITORY, Root
from runs.reading import encodable, number
from runs.states import Run
from texts import shown

LENGTHS = ("num_train_epochs", "max_steps")


def start_run(root: Root, values: object, launch: object, queue: bool) -> Path:
    """Write run.yaml and start a job.

    Raises:
        Refused: the values have a problem, with its field.
        Outside: the output directory has a link that leads outside.
        Conflict: a run lives in the output directory.
    """
    composed = compose(values, launch, root)
    for problem in composed.problems:
        raise Refused(problem["text"], problem["field"] or None)
    assert isinstance(values, dict), "compose checks it"
    directory = new_place(root, values["output_dir"], "output_dir")
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
        for path in directory.iterdir():
            root.below(str(path))  # the run would write through a link that leads outside
        if not (directory / METRICS).exists():  # else train.py replaces it once the run has been resumed
            write_text(directory / "run.yaml", composed.yaml)
        job.begin(directory, facts, descriptor)
    return directory


def check_start(root: Root, values: object, launch: object) -> Composed:
    """The command for a form's values; its problems include a run that lies in the output directory.

    Raises:
        Refused: the request is not of the form that `compose` takes.
    """
    composed = compose(values, launch, root)
    assert isinstance(values, dict), "compose checks it"
    if values.get("output_dir") and all(problem["field"] != "output_dir" for problem in composed.problems):
        try:
            composed.problems.extend(occupied(root, new_place(root, values["output_dir"]), values))
        except Refused as error:
            composed.problems.append({"field": "output_dir", "text": f"--output_dir: {error}"})
    return composed


def occupied(root: Root, directory: Path, values: Mapping[str, str]) -> list[Problem]:
    """The problem of an output directory whose run lives, or is finished and would not be continued."""
    run, name = Run.at(directory), root.name(directory)
    if run.is_live:
        text = f"{name} has a run that is {run.state}: choose another directory, or stop it in the Watch tab."
    elif run.state == "finished" and values.get("resume_from_checkpoint") != "none":
        try:
            before = values_again(root, directory)
        except UserError:  # a run.yaml that is gone or broken
            before = {}
        if any(length_of(values, name) != length_of(before, name) for name in LENGTHS):
            return []
        text = f"{name} has a finished run: choose another directory, or raise --num_train_epochs or --max_steps."
    else:
        return []
    return [{"field": "output_dir", "text": f"--output_dir: {text}"}]


def length_of(values: Mapping[str, str], name: str) -> float | str:
    """The number of a flag of LENGTHS, given or its default: "2" is 2.0."""
    text = str(values.get(name) or TRAIN.flags[name].default)
    try:
        return float(text)
    except ValueError:
        return text


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
    members, devices = run.process.get("members"), sorted(run.devices - {"cpu"})
    ranks = len(members) if isinstance(members, list) and members else 1
    if number(run.process, "ranks", 1) > ranks:
        raise Conflict("The run had ranks on several machines: resume it in a terminal.")
    if not all(name.isdecimal() for name in devices):
        raise Conflict(f"The run used {encodable(', '.join(devices))}: resume it in a terminal, on the same GPUs.")
    if run.process.get("cwd") != str(REPOSITORY):
        raise Conflict(f"The run was started in {shown(str(run.process.get('cwd')), 100)}: resume it there.")
    return {"devices": [int(name) for name in devices], "ranks": ranks}
