"""The endpoints of runs: GET and POST api/runs, and POST api/runs/stop, kill, resume, rename, note and delete."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from runs import job
from runs.directories import discard, move, new_place, run_of, write_note
from runs.errors import Missing, Refused
from runs.models import links_of
from runs.places import Root
from runs.start import resume, start_run
from runs.states import Run, find, summary
from texts import shown
from web.body import Body

Action = Callable[[Root, Path, dict[str, Any]], Path | None]  # of a run; returns where it is now, if elsewhere


def router(root: Root) -> APIRouter:
    """The paths below api/ for runs below the root. A POST answers with the run's name, which may be a new one."""
    routes = APIRouter()

    @routes.get("/api/runs")
    def listed() -> list[dict[str, Any]]:
        runs = [
            {"run": root.name(directory), **summary(Run.at(directory)), **links_of(root, directory)}
            for directory in find(root.path)
        ]
        return sorted(runs, key=lambda run: run["started"] or 0, reverse=True)

    @routes.post("/api/runs")
    def begin(body: Body) -> dict[str, str]:
        return named(start, root.path, body)

    @routes.post("/api/runs/{action}")
    def act(action: str, body: Body) -> dict[str, str]:
        if action not in ACTIONS:
            raise Missing(f"{shown(action, 100)} is no action: choose one of {', '.join(ACTIONS)}.")
        return named(ACTIONS[action], run_of(root, body.get("run")), body)

    def named(work: Action, directory: Path, body: dict[str, Any]) -> dict[str, str]:
        try:
            return {"run": root.name(work(root, directory, body) or directory)}
        except OSError as error:
            raise Refused(f"The run's files cannot be changed ({error.strerror}): correct that first.") from None

    return routes


def start(root: Root, directory: Path, body: dict[str, Any]) -> Path:
    """Start a run with the values of a form; without "queue": false it waits for its devices."""
    return start_run(root, body.get("values"), body.get("launch"), body.get("queue") is not False)


ACTIONS: dict[str, Action] = {
    "stop": lambda root, directory, body: job.stop(directory),
    "kill": lambda root, directory, body: job.kill(directory),
    "resume": lambda root, directory, body: resume(root, directory, body.get("queue") is not False),
    "rename": lambda root, directory, body: move(root, directory, new_place(root, body.get("name"))),
    "note": lambda root, directory, body: write_note(directory, body.get("note")),
    "delete": lambda root, directory, body: discard(root, directory),
}
