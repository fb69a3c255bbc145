"""What runs write while they train: new points of the curves, evaluations, predictions, and all of it as CSV.

Nothing is kept between calls: each answer comes from the files of the run directories. A cursor is a byte offset.
"""

import csv
import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation.report import objects_of, rows_of
from runs.log import LOG_FILE
from runs.places import Root
from runs.reading import read_slice, size_of
from texts import shortened

METRICS, EVALUATIONS, PREDICTIONS = "metrics.jsonl", "evaluation.jsonl", "best_predictions.jsonl"
SLICE = 2**22  # bytes of a file in an answer
MOST_PREDICTIONS, LONGEST_TEXT = 50, 4000  # rows, and characters of each text
LARGEST = 1e300  # numbers beyond it are null


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
    path = root.file(run, METRICS)
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
        "evaluations": new_evaluations(root.file(run, EVALUATIONS), mark),
        "log": size_of(root.file(run, LOG_FILE)),
    }


def new_evaluations(path: Path | None, mark: str) -> dict[str, Any] | None:
    """{mark, rows} of evaluation.jsonl, which a resumed run replaces; None if it is as it was at a mark."""
    status = path.stat() if path else None
    now = f"{status.st_size}-{status.st_mtime_ns}" if status else ""
    if now == mark:
        return None
    rows = rows_of(read_slice(path, 0, SLICE))
    return {"mark": now, "rows": [{name: short(value) for name, value in row.items()} for row in rows]}


def predictions_of(root: Root, run: str) -> list[dict[str, Any]]:
    """Step, question, reference and prediction of the first rows of best_predictions.jsonl, shortened."""
    rows = objects_of(read_slice(root.file(run, PREDICTIONS), 0, SLICE))
    texts = ("asked", "reference", "prediction")
    return [
        {"step": short(row.get("step")), **{name: shortened(str(row.get(name, "")), LONGEST_TEXT) for name in texts}}
        for row in islice(rows, MOST_PREDICTIONS)
    ]


def merged(root: Root, run: str) -> list[dict]:
    """The rows of metrics.jsonl with those of evaluation.jsonl, by step."""
    by_step: dict[int, dict] = {}
    for name in (METRICS, EVALUATIONS):
        path = root.file(run, name)
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
