"""What runs write while they train: new points of the curves, evaluations, predictions, and all of it as CSV.

Nothing is kept between calls: each answer comes from the files of the run directories. A cursor is a byte offset.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation.report import objects_of, rows_of
from runs.log import LOG_FILE
from runs.places import Root
from runs.reading import LARGEST, encodable, read_slice, size_of, stamp
from texts import shortened

METRICS, EVALUATIONS, PREDICTIONS = "metrics.jsonl", "evaluation.jsonl", "best_predictions.jsonl"
SLICE = 2**22  # bytes of a file in an answer
MOST_PREDICTIONS, LONGEST_TEXT = 50, 4000  # rows, and characters of each text
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a text would begin a formula in a spreadsheet


def short(value: object) -> float | int | None:
    """A number for JSON, in six significant digits if it has a fraction; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def numbers_of(row: Mapping[str, object]) -> dict[str, float | int | None]:
    """The numbers of a row by their names."""
    return {encodable(name): short(value) for name, value in row.items()}


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
        "newest": numbers_of(rows[-1]) if rows else None,
        "evaluations": new_evaluations(root.file(run, EVALUATIONS), mark),
        "log": size_of(root.file(run, LOG_FILE)),
    }


def new_evaluations(path: Path | None, mark: str) -> dict[str, Any] | None:
    """{mark, rows} of evaluation.jsonl, which a resumed run replaces; None if it is as it was at a mark."""
    now = str(stamp(path)) if path else ""
    if now == mark:
        return None
    rows = rows_of(read_slice(path, 0, SLICE))
    return {"mark": now, "rows": [numbers_of(row) for row in rows]}


def predictions_of(root: Root, run: str) -> list[dict[str, Any]]:
    """Step, question, reference and prediction of the first rows of best_predictions.jsonl, shortened."""
    rows = objects_of(read_slice(root.file(run, PREDICTIONS), 0, SLICE))
    texts = ("asked", "reference", "prediction")
    return [
        {"step": short(row.get("step")), **{name: excerpt(row.get(name, "")) for name in texts}}
        for row in islice(rows, MOST_PREDICTIONS)
    ]


def excerpt(value: object) -> str:
    """The beginning of a text."""
    return encodable(shortened(str(value), LONGEST_TEXT))


def merged(root: Root, run: str) -> list[dict]:
    """The rows of metrics.jsonl with those of evaluation.jsonl, by step."""
    by_step: dict[int, dict] = {}
    for name in (METRICS, EVALUATIONS):
        path = root.file(run, name)
        for row in rows_of(read_slice(path, 0, size_of(path))):
            by_step[row["step"]] = by_step.get(row["step"], {}) | row
    return [by_step[step] for step in sorted(by_step)]


def as_csv(runs: dict[str, list[dict]]) -> str:
    """One line for each run and step; all columns that any row has. A name that looks like a formula is quoted."""
    names = dict.fromkeys(["step", *(name for rows in runs.values() for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", *map(quoted, map(encodable, names))])
    for run, rows in runs.items():
        writer.writerows([quoted(run), *(cell(row.get(name)) for name in names)] for row in rows)
    return text.getvalue()


def quoted(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def cell(value: object) -> object:
    """A number as it is; nothing for everything else."""
    return "" if short(value) is None else value
