"""The endpoints of runs: GET and POST api/runs, and POST api/runs/stop, kill, resume, rename, note and delete."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from checkpoints.output_names import kind_of
from files import write_text
from options.fields import is_field, is_path, suggestions, values_of
from options.train import TRAIN
from serving.errors import ApiError, invalid
from texts import shown
from web import job
from web.body import body_of
from web.fields import compose
from web.paths import REPOSITORY, Root
from web.states import Run, find, is_run, summary

LONGEST_NOTE = 2000
TRASH = ".webui/trash"  # below the root
Action = Callable[[Root, Path, dict[str, Any]], Path]
Body = Annotated[dict[str, Any], Depends(body_of)]


def router(root: Root) -> APIRouter:
    """The paths below api/ for runs below the root. A POST answers with the run's name, which may be a new one."""
    routes = APIRouter()

    @routes.get("/api/runs")
    def listed() -> list[dict[str, Any]]:
        runs = [{"run": root.name(directory), **summary(Run.at(directory))} for directory in find(root.path)]
        return sorted(runs, key=lambda run: run["started"] or 0, reverse=True)

    @routes.post("/api/runs")
    def begin(body: Body) -> dict[str, str]:
        return named(start, root.path, body)

    @routes.post("/api/runs/{action}")
    def act(action: str, body: Body) -> dict[str, str]:
        if action not in ACTIONS:
            raise ApiError(404, f"{shown(action, 100)} is no action: choose one of {', '.join(ACTIONS)}.")
        directory = root.below(body.get("run"))
        if not directory.is_dir() or not is_run(set(os.listdir(directory))):
            raise ApiError(404, f"{shown(str(body['run']), 100)} is not a run: reload the list.", param="run")
        return named(ACTIONS[action], directory, body)

    def named(work: Action, directory: Path, body: dict[str, Any]) -> dict[str, str]:
        try:
            return {"run": root.name(work(root, directory, body))}
        except OSError as error:
            raise invalid(f"The run's files cannot be changed ({error.strerror}): choose another directory.") from None

    return routes


def start(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Start a run with the values of a form; without "queue": false it waits for its devices."""
    return start_run(root, body.get("values"), body.get("launch"), body.get("queue") is not False)


def stop(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Stop a run at the end of its step."""
    job.stop(directory)
    return directory


def kill(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Kill all processes of a run."""
    job.kill(directory)
    return directory


def resume(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Start a run again, with its run.yaml and its devices."""
    job.refuse_live(directory)
    return start_run(
        root, values_again(root, directory), launch_again(Run.at(directory)), body.get("queue") is not False
    )


def rename(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Move a run to another directory below the root."""
    return move(root, directory, new_place(root, body.get("name")))


def delete(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Move a run to the trash."""
    trash = root.path / TRASH
    trash.mkdir(parents=True, exist_ok=True)
    name = f"{root.name(directory).replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    return move(root, directory, trash / name)


def note(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Write a run's note."""
    text = body.get("note")
    if not isinstance(text, str) or len(text) > LONGEST_NOTE:
        raise invalid(f"A note is a text of at most {LONGEST_NOTE:,} characters: shorten it.", "note")
    write_text(directory / "note.txt", text.encode(errors="replace").decode())
    return directory


ACTIONS: dict[str, Action] = {
    "stop": stop, "kill": kill, "resume": resume, "rename": rename, "note": note, "delete": delete,
}  # fmt: skip


def new_place(root: Root, text: object) -> Path:
    """A directory below the root where the list finds runs; raises ApiError for others."""
    path = root.below(text)
    parts = path.relative_to(root.path).parts
    if not parts or any(part.startswith(".") or kind_of(part)[0] for part in parts):
        raise invalid(f"{shown(str(text), 100)} cannot name a run: choose another directory below the root.")
    return path


def move(root: Root, directory: Path, target: Path) -> Path:
    """Move a run. Raises ApiError if it lives or contains a run that lives, OSError if it cannot be moved."""
    if directory == root.path:
        raise invalid("The root itself is a run: give its parent as --root to move it.")
    with job.locked(directory):
        for inner in find(directory):
            job.refuse_live(inner)
        if target.exists():
            raise ApiError(409, f"{root.name(target)} exists already: choose another name.", param="name")
        return directory.rename(target)


def start_run(root: Root, values: object, launch: object, queue: bool) -> Path:
    """Write run.yaml and start a job.

    Raises:
        ApiError: the values have a problem, with its field, or a run lives in the output directory.
    """
    composed = compose(values, launch, root)
    for problem in composed.problems:
        raise ApiError(400, problem["text"], param=problem["field"] or None)
    assert isinstance(values, dict), "compose checks it"
    directory = new_place(root, values["output_dir"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise invalid(
            f"--output_dir: {root.name(directory)} cannot be made ({error.strerror}).", "output_dir"
        ) from None
    visible = composed.environment.get("CUDA_VISIBLE_DEVICES")
    facts = {
        "kind": "train", "command": [*composed.launcher, *composed.argv], "environment": composed.environment,
        "devices": visible.split(",") if visible else ["cpu"], "launch": launch, "root": str(root.path),
        "queue": queue,
    }  # fmt: skip
    with job.locked(directory) as descriptor:
        if not (directory / "metrics.jsonl").exists():  # else train.py replaces it once the run has been resumed
            write_text(directory / "run.yaml", composed.yaml)
        job.begin(directory, facts, descriptor)
    return directory


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
    """The devices and ranks of a run; raises ApiError where only its user can know how to start it."""
    if run.job:
        return run.job.get("launch") or {}
    ranks, devices = len(run.process.get("members") or [0]), sorted(run.devices - {"cpu"})
    if run.process.get("ranks", 1) > ranks:
        raise ApiError(409, "The run had ranks on several machines: resume it in a terminal.")
    if not all(name.isdecimal() for name in devices):
        raise ApiError(409, f"The run used {', '.join(devices)}: resume it in a terminal, on the same GPUs.")
    if run.process.get("cwd") != str(REPOSITORY):
        raise ApiError(409, f"The run was started in {run.process.get('cwd')}: resume it there.")
    return {"devices": [int(name) for name in devices], "ranks": ranks}
