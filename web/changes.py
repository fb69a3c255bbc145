"""The endpoints of the watch tab: what runs have written since the last request, their logs, options and curves."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from runs.config import config_of, differing
from runs.errors import Refused
from runs.log import LOG_FILE, log_slice
from runs.metrics import as_csv, changes_of, merged, predictions_of
from runs.places import Root

MOST_RUNS, MOST_COLUMNS = 16, 16

Runs = Annotated[list[str], Query(alias="run", max_length=MOST_RUNS)]


def router(root: Root) -> APIRouter:
    """The paths below api/ for runs below the root."""
    routes = APIRouter()

    @routes.get("/api/changes")
    def changes(
        runs: Runs,
        at: Annotated[list[int], Query()],
        columns: Annotated[str, Query(max_length=1000)] = "loss",
        evaluated: Annotated[list[str], Query()] = [],  # noqa: B006 (FastAPI copies it)
    ) -> list[dict[str, Any]]:
        if len(at) != len(runs) or len(evaluated) not in (0, len(runs)) or min(at) < 0:
            raise Refused("Give one offset of at least 0 per run.", field="at")
        names = list(dict.fromkeys(["step", *columns.split(",")[:MOST_COLUMNS]]))
        marks = evaluated or [""] * len(runs)
        return [changes_of(root, *one, names) for one in zip(runs, at, marks, strict=True)]

    @routes.get("/api/log")
    def log(
        run: str, start: Annotated[int, Query(alias="from", ge=0)] = 0, before: Annotated[int, Query(ge=-1)] = 0
    ) -> dict[str, Any]:
        return log_slice(root.file(run, LOG_FILE), start, before)

    @routes.get("/api/predictions")
    def predictions(run: str) -> list[dict[str, Any]]:
        return predictions_of(root, run)

    @routes.get("/api/differences")
    def differences(runs: Runs) -> list[dict[str, Any]]:
        return differing([config_of(root, run) for run in runs])

    @routes.get("/api/curves")
    def curves(runs: Runs) -> Response:
        headers = {"Content-Disposition": 'attachment; filename="curves.csv"'}
        return Response(as_csv({run: merged(root, run) for run in runs}), media_type="text/csv", headers=headers)

    return routes
