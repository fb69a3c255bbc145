"""The endpoints of runs: list, start, stop, kill, resume, rename, note, delete."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from checkpoints.output_names import kind_of
from files import write_text
from options.train import TRAIN
from serving.errors import ApiError, invalid
from texts import shown
from web import job
from web.body import body_of
from web.fields import compose, is_field, is_path, suggestions, values_of
from web.paths import REPOSITORY, Root
from web.states import Run, find, is_run, summary

LONGEST_NOTE = 2000
Body = Annotated[dict[str, Any], Depends(body_of)]


def router(root: Root) -> APIRouter:
    """GET and POST api/runs, and what is done to a run. Every answer of a POST is {"run": its name}."""
    routes = APIRouter()

    @routes.get("/api/runs")
    def listed() -> list[dict[str, Any]]:
        runs = [{"run": root.name(directory), **summary(Run.at(directory))} for directory in find(root.path)]
        return sorted(runs, key=lambda run: run["started"] or 0, reverse=True)

    @routes.post("/api/runs")
    def start(body: Body) -> dict[str, str]:
        return start_run(root, body.get("values"), body.get("launch"), body.get("queue") is not False)

    @routes.post("/api/runs/stop")
    def stop(body: Body) -> dict[str, str]:
        directory = run_of(root, body)
        job.stop(directory)
        return {"run": root.name(directory)}

    @routes.post("/api/runs/kill")
    def kill(body: Body) -> dict[str, str]:
        directory = run_of(root, body)
        job.kill(directory)
        return {"run": root.name(directory)}

    @routes.post("/api/runs/resume")
    def resume(body: Body) -> dict[str, str]:
        directory = run_of(root, body)
        values, launch = values_again(root, directory), launch_again(Run.at(directory))
        return start_run(root, values, launch, body.get("queue") is not False)

    @routes.post("/api/runs/rename")
    def rename(body: Body) -> dict[str, str]:
        directory, target = run_of(root, body), new_place(root, body.get("name"))
        return {"run": root.name(move(root, directory, target))}

    @routes.post("/api/runs/note")
    def note(body: Body) -> dict[str, str]:
        directory, text = run_of(root, body), body.get("note")
        if not isinstance(text, str) or len(text) > LONGEST_NOTE:
            raise invalid(f"A note is a text of at most {LONGEST_NOTE:,} characters: shorten it.", "note")
        write_text(directory / "note.txt", text.encode(errors="replace").decode())
        return {"run": root.name(directory)}

    @routes.post("/api/runs/delete")
    def delete(body: Body) -> dict[str, str]:
        directory = run_of(root, body)
        (root.path / ".trash").mkdir(exist_ok=True)
        name = f"{root.name(directory).replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
        return {"run": root.name(move(root, directory, root.path / ".trash" / name))}

    return routes


def run_of(root: Root, body: dict[str, Any]) -> Path:
    """The directory of a request's run.

    Raises:
        ApiError: it is no run's.
    """
    directory = root.below(body.get("run"))
    if not directory.is_dir() or not is_run(set(os.listdir(directory))):
        raise ApiError(404, f"{shown(str(body['run']), 100)} is not a run: reload the list.", param="run")
    return directory


def new_place(root: Root, text: object) -> Path:
    """A directory below the root where the list finds runs.

    Raises:
        ApiError: it finds none there.
    """
    path = root.below(text)
    parts = path.relative_to(root.path).parts
    if not parts or any(part.startswith(".") or kind_of(part)[0] for part in parts):
        raise invalid(f"{shown(str(text), 100)} cannot name a run: choose another directory below the root.")
    return path


def move(root: Root, directory: Path, target: Path) -> Path:
    """Move a run; returns where it is.

    Raises:
        ApiError: it lives (409), contains a run that lives, or cannot be moved.
    """
    if directory == root.path:
        raise invalid("The root itself is a run: give its parent as --root to move it.")
    with job.locked(directory):
        for inner in find(directory):
            job.refuse_live(inner)
        if target.exists():
            raise ApiError(409, f"{root.name(target)} exists already: choose another name.", param="name")
        try:
            return directory.rename(target)
        except OSError as error:
            raise invalid(f"{root.name(directory)} cannot be moved ({error.strerror}): choose another name.") from None


def start_run(root: Root, values: object, launch: object, queue: bool) -> dict[str, str]:
    """Write run.yaml and start a job.

    Raises:
        ApiError: the values have a problem, with its field, or a run lives in the output directory.
    """
    composed = compose(values, launch, root)
    for problem in composed.problems:
        raise ApiError(400, problem["text"], param=problem["field"] or None)
    assert isinstance(values, dict) and isinstance(launch, dict | None), "compose checks them"
    directory = new_place(root, values["output_dir"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise invalid(
            f"--output_dir: {root.name(directory)} cannot be made ({error.strerror}).", "output_dir"
        ) from None
    visible = composed.environment.get("CUDA_VISIBLE_DEVICES")
    with job.locked(directory) as descriptor:
        if not (directory / "metrics.jsonl").exists():  # else train.py replaces it once the run has been resumed
            write_text(directory / "run.yaml", composed.yaml)
        facts = {
            "kind": "train",
            "command": [*composed.launcher, *composed.argv],
            "environment": composed.environment,
            "devices": visible.split(",") if visible else ["cpu"],
            "launch": launch,
            "queue": queue,
            "root": str(root.path),
        }
        job.begin(directory, facts, descriptor)
    return {"run": root.name(directory)}


def values_again(root: Root, directory: Path) -> dict[str, str]:
    """The values with which a run is resumed: those of its run.yaml, in the directory where it lies now."""
    values = {}
    for name, text in values_of(TRAIN, ["--config", str(directory / "run.yaml")]).items():
        flag = TRAIN.flags[name]
        if is_path(flag) and text not in suggestions(flag):
            text = ",".join(str(REPOSITORY / part) for part in (text.split(",") if flag.several else [text]))
        if is_field(flag):
            values[name] = text
    if any(directory.glob("state/step-*")):
        values["resume_from_checkpoint"] = "auto"
    return {**values, "output_dir": root.name(directory)}


def launch_again(run: Run) -> dict[str, Any]:
    """The devices and ranks of a run.

    Raises:
        ApiError: only its user can know how to start it.
    """
    if run.job:
        return run.job.get("launch") or {}
    members, devices = run.process.get("members") or [], sorted(run.devices - {"cpu"})
    if run.process.get("ranks", 1) > max(len(members), 1):
        raise ApiError(409, "The run had ranks on several machines: resume it in a terminal.")
    if run.process.get("cwd", str(REPOSITORY)) != str(REPOSITORY) or not all(name.isdecimal() for name in devices):
        raise ApiError(409, f"The run was started in {run.process.get('cwd')}: resume it there.")
    return {"devices": [int(name) for name in devices], "ranks": max(len(members), 1)}
