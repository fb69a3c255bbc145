"""What the watch tab reads of runs: new points, evaluations, the log, predictions, options, and curves as CSV.

Nothing is kept between requests: each answer comes from the files of the run directories. A cursor is a byte offset.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from evaluation.report import objects_of, rows_of
from options.config_file import read_config
from options.train import TRAIN
from options.values import as_text
from serving.errors import ApiError, invalid
from texts import shortened
from web.paths import Root

METRICS, EVALUATIONS, PREDICTIONS, LOG = "metrics.jsonl", "evaluation.jsonl", "best_predictions.jsonl", "train.log"
SLICE, LOG_SLICE = 2**22, 2**16  # bytes of a file in an answer
MOST_RUNS, MOST_COLUMNS, MOST_PREDICTIONS = 16, 16, 50
LONGEST_TEXT = 4000  # characters of a prediction
LARGEST = 1e300  # numbers beyond it are null
NOT_SHOWN = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # a terminal's colors, titles and cursor movements, and other control characters

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
            raise invalid("Give one offset of at least 0 per run.", "at")
        names = list(dict.fromkeys(["step", *columns.split(",")[:MOST_COLUMNS]]))
        marks = evaluated or [""] * len(runs)
        return [changes_of(root, *one, names) for one in zip(runs, at, marks, strict=True)]

    @routes.get("/api/log")
    def log(
        run: str, start: Annotated[int, Query(alias="from", ge=0)] = 0, before: Annotated[int, Query(ge=-1)] = 0
    ) -> dict[str, Any]:
        return log_slice(file_of(root, run, LOG), start, before)

    @routes.get("/api/predictions")
    def predictions(run: str) -> list[dict[str, Any]]:
        rows = objects_of(read_slice(file_of(root, run, PREDICTIONS), 0, SLICE))
        texts = ("asked", "reference", "prediction")
        return [
            {
                "step": short(row.get("step")),
                **{name: shortened(str(row.get(name, "")), LONGEST_TEXT) for name in texts},
            }
            for _, row in zip(range(MOST_PREDICTIONS), rows, strict=False)
        ]

    @routes.get("/api/differences")
    def differences(runs: Runs) -> list[dict[str, Any]]:
        return differing([file_of(root, run, "run.yaml") for run in runs])

    @routes.get("/api/curves")
    def curves(runs: Runs) -> Response:
        headers = {"Content-Disposition": 'attachment; filename="curves.csv"'}
        return Response(as_csv({run: merged(root, run) for run in runs}), media_type="text/csv", headers=headers)

    return routes


def file_of(root: Root, run: str, name: str) -> Path | None:
    """A regular file of a run directory, which may be a link to one below the root; None if it is not there."""
    path = root.below(os.fspath(root.below(run) / name))
    return path if os.path.isfile(path) else None


def size_of(path: Path | None) -> int:
    """Bytes of a file; 0 for none."""
    return path.stat().st_size if path else 0


def read_slice(path: Path | None, start: int, count: int) -> bytes:
    """At most `count` bytes from an offset; b"" beyond the end, or without a file.

    Raises:
        ApiError: it cannot be read (403).
    """
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise ApiError(403, f"{path.name} cannot be read ({error.strerror}): change its permissions.") from None


def short(value: object) -> float | int | None:
    """A number for JSON, in six significant digits if it has a fraction; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def changes_of(root: Root, run: str, at: int, mark: str, names: Sequence[str]) -> dict[str, Any]:
    """What a run has written since an offset of metrics.jsonl and a mark of evaluation.jsonl.

    at: the next offset. begins: whether earlier points are void, since the file is another one. more: ask again at
    once. columns: name -> numbers of the new rows, null where there is none. Rows of a resumed run replace all earlier
    points from the first one's step on. newest: the last row, if there is a new one. evaluations: {mark, rows} if the
    file has changed. log: bytes of train.log.
    """
    path = file_of(root, run, METRICS)
    block = read_slice(path, max(at - 1, 0), SLICE)
    begins = at == 0 or block[:1] != b"\n"  # a cursor stands behind a line's end
    if begins and at:
        block, at = read_slice(path, 0, SLICE), 0
    whole = block[: block.rfind(b"\n") + 1]  # without a line that is being written
    end = max(at, max(at - 1, 0) + len(whole))
    rows = rows_of(whole)
    return {
        "run": run,
        "at": end,
        "begins": begins,
        "more": end > at and len(block) == SLICE,
        "columns": {name: [short(row.get(name)) for row in rows] for name in names},
        "newest": {name: short(value) for name, value in rows[-1].items()} if rows else None,
        "evaluations": new_evaluations(file_of(root, run, EVALUATIONS), mark),
        "log": size_of(file_of(root, run, LOG)),
    }


def new_evaluations(path: Path | None, mark: str) -> dict[str, Any] | None:
    """{mark, rows} of evaluation.jsonl, which a resumed run replaces; None if it is as it was at a mark."""
    status = path.stat() if path else None
    now = f"{status.st_size}-{status.st_mtime_ns}" if status else ""
    if now == mark:
        return None
    rows = rows_of(read_slice(path, 0, SLICE))
    return {"mark": now, "rows": [{name: short(value) for name, value in row.items()} for row in rows]}


def log_slice(path: Path | None, start: int, before: int) -> dict[str, Any]:
    """Lines of a log.

    Args:
        start: offset of the first line, if `before` is 0.
        before: offset behind the last line; -1: the end of the file.

    Returns:
        from, to: offsets of the lines. text: they. rest: the last line while it is unfinished. size: of the file.
    """
    size = size_of(path)
    end = size if before < 0 else min(before, size)
    start = max(end - LOG_SLICE, 0) if before else min(start, size)
    block = read_slice(path, start, end - start if before else LOG_SLICE)
    if before and start > 0:  # it may be within a line
        cut = block.find(b"\n") + 1
        start, block = start + cut, block[cut:]
    whole = block[: block.rfind(b"\n") + 1]
    if not whole and len(block) == LOG_SLICE:
        whole = block  # of a line that is longer than an answer
    rest = block[len(whole) :] if start + len(block) >= size else b""
    return {"from": start, "to": start + len(whole), "text": plain(whole), "rest": plain(rest), "size": size}


def plain(block: bytes) -> str:
    """A log's text as a terminal would leave it: what follows a line's last carriage return, without escapes."""
    lines = block.decode("utf-8", "replace").split("\n")
    return "\n".join(NOT_SHOWN.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def differing(paths: Sequence[Path | None]) -> list[dict[str, Any]]:
    """{name, values} of each option that has not the same value in all of several run.yaml, in order of --help."""
    files = [read_config(os.fspath(path), TRAIN.name, TRAIN.flags, TRAIN.advice)[0] if path else {} for path in paths]
    columns = {name: [file.get(name, flag.default) for file in files] for name, flag in TRAIN.flags.items()}
    return [
        {"name": name, "values": ["" if value is None else as_text(value) for value in values]}
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    ]


def merged(root: Root, run: str) -> list[dict]:
    """The rows of metrics.jsonl with those of evaluation.jsonl, by step."""
    by_step: dict[int, dict] = {}
    for name in (METRICS, EVALUATIONS):
        path = file_of(root, run, name)
        for row in rows_of(read_slice(path, 0, size_of(path))):
            by_step[row["step"]] = by_step.get(row["step"], {}) | row
    return [by_step[step] for step in sorted(by_step)]


def as_csv(runs: dict[str, list[dict]]) -> str:
    """One line for each run and step; all columns that any row has."""
    names = dict.fromkeys(["run", "step", *(name for rows in runs.values() for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="")
    writer.writeheader()
    for run, rows in runs.items():
        writer.writerows({**row, "run": run} for row in rows)
    return text.getvalue()
