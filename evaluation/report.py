"""Reports of evaluations: evaluation.jsonl during the run, then a report and curves.

    append_row(output_dir / "evaluation.jsonl", {"step": 100, "epoch": 1, "dev_loss": 0.71, "triples_f1": 0.52})
    history = read_history(output_dir / "evaluation.jsonl")
    write_report(output_dir, history, metric="triples_f1", samples=samples, train_rows=rows_of_metrics_jsonl)

A row has step, epoch and the metrics: dev_loss and probe_loss (nats per supervised token), scores (0 to 1), scores of
the probe set with the prefix "probe_". A number that is not finite is null.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.tracking import best_index, direction_of
from files import whole_file, write_json, write_text
from texts import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 400  # maximum characters of a text in the Markdown report and on the terminal
FILES = ("evaluation.json", "evaluation.md", "evaluation.png")


def append_row(path: Path, row: dict) -> None:
    """Append an evaluation; it is on the disk when this returns."""
    with path.open("a+b") as file:
        file.seek(-min(1, file.seek(0, os.SEEK_END)), os.SEEK_END)
        if file.read(1) not in (b"", b"\n"):  # a killed run left the last line unfinished
            file.write(b"\n")
        line = json.dumps(_jsonable(row), allow_nan=False, ensure_ascii=False)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_history(path: Path, up_to_step: int | None = None) -> list[dict]:
    """The rows of evaluation.jsonl or metrics.jsonl in step order; [] without the file.

    A resumed or restarted run continues from an earlier step and replaces all later rows. Invalid lines are ignored,
    such as an unfinished last line of a killed run.

    Args:
        up_to_step: ignore later rows.
    """
    rows = rows_of(path.read_bytes() if path.exists() else b"")
    return [row for row in rows if up_to_step is None or row["step"] <= up_to_step]


def rows_of(content: bytes) -> list[dict]:
    """The rows in lines of evaluation.jsonl or metrics.jsonl, in step order; see `read_history`."""
    rows: list[dict] = []
    for row in objects_of(content):
        if isinstance(row.get("step"), int):
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
            rows.append(row)
    return rows


def objects_of(content: bytes) -> Iterator[dict]:
    """The JSON objects in lines of a file, one by one; invalid lines are ignored."""
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # the latter: thousands of brackets
            continue
        if isinstance(value, dict):
            yield value


def describe_row(row: dict) -> str:
    """One line about an evaluation."""
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in row.items() if name not in ("step", "epoch"))
    return f"evaluation at step {row['step']}: {numbers}"


def describe_samples(samples: Sequence[dict], count: int) -> str:
    """The first predictions with their references, for the terminal.

    Args:
        samples: {"asked", "reference", "prediction"}.
    """
    blocks = []
    for sample in samples[:count]:
        parts = {"asked": sample["asked"], "should say": sample["reference"], "says": sample["prediction"]}
        blocks.append("\n".join(f"  {name}: {_indented(shortened(text, SHOWN))}" for name, text in parts.items()))
    return "\n\n".join(blocks)


def write_report(
    directory: Path,
    history: Sequence[dict],
    *,
    metric: str,
    samples: Sequence[dict] = (),
    samples_step: int | None = None,
    train_rows: Sequence[dict] = (),
    notes: Sequence[str] = (),
    shown: int = 10,
) -> list[Path]:
    """Write evaluation.json, evaluation.md and evaluation.png, each atomically. Returns their paths.

    Args:
        history: rows of evaluation.jsonl, in step order.
        metric: selects the best step; lower is better for a loss. Rows may lack it.
        samples: {"asked", "reference", "prediction"}, all in the JSON file, the first `shown` in the Markdown.
        samples_step: the step of these predictions.
        train_rows: rows of metrics.jsonl ("step", "loss").
        notes: sentences at the top of the report, such as why the run stopped.
    """
    direction, best = direction_of(metric), find_best(history, metric)
    report = {
        "metric": metric,
        "better": direction,
        "best": best,
        "forgetting": forgetting(history, best),
        "notes": list(notes),
        "evaluations": list(history),
        "samples_step": samples_step,
        "samples": list(samples),
    }
    paths = [directory / name for name in FILES]
    write_json(paths[0], _jsonable(report))
    write_text(paths[1], markdown(report, shown))
    with whole_file(paths[2]) as temporary:
        draw_curves(temporary, history, train_rows, metric)
    return paths


def find_best(history: Sequence[dict], metric: str) -> dict | None:
    """The row of the best step, the first of equal ones; None if there is none."""
    rows = [row for row in history if metric in row]
    index = best_index([row[metric] for row in rows], direction_of(metric))
    return None if index is None else rows[index]


def forgetting(history: Sequence[dict], best: dict | None) -> dict[str, dict]:
    """{"probe_…": {"first", "best", "last"}}: the probe set's metrics at the first, best and last evaluation."""
    rows = [row for row in history if any(name.startswith("probe_") for name in row)]
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("probe_"))
    return {
        name: {"first": rows[0].get(name), "best": (best or {}).get(name), "last": rows[-1].get(name)} for name in names
    }


def markdown(report: dict, shown: int) -> str:
    """The Markdown report."""
    metric, best, history = report["metric"], report["best"], report["evaluations"]
    lines = ["# Evaluation", ""]
    for note in report["notes"]:
        lines += [note, ""]
    if best is None:
        lines += [f"No evaluation gave a finite {metric}.", ""]
    else:
        lines += [f"Best step: {best['step']} (epoch {best['epoch']}), {metric} {_number(best[metric])}.", ""]
    names = list(dict.fromkeys(name for row in history for name in row if name not in ("step", "epoch")))
    table = [["step", "epoch", *names, ""]]
    for row in history:
        marked = "**{}**" if row is best else "{}"
        cells = [str(row["step"]), str(row["epoch"]), *(_number(row[name]) if name in row else "" for name in names)]
        table.append([*(marked.format(cell) if cell else "" for cell in cells), "best" if row is best else ""])
    lines += [*_table(table), ""]
    if report["forgetting"]:
        lines += ["## Forgetting", "", "The probe set at the first evaluation, the best step and the last.", ""]
        rows = [
            [name, *(_number(values[when]) for when in ("first", "best", "last"))]
            for name, values in report["forgetting"].items()
        ]
        lines += [*_table([["", "first", "best", "last"], *rows]), ""]
    if report["samples"]:
        step = "" if report["samples_step"] is None else f" at step {report['samples_step']}"
        lines += [f"## Predictions{step}", ""]
        for number, sample in enumerate(report["samples"][:shown], start=1):
            lines += [f"### {number}", ""]
            parts = {"Asked": sample["asked"], "Reference": sample["reference"], "Prediction": sample["prediction"]}
            for name, text in parts.items():
                lines += [f"{name}:", "", *_fenced(shortened(text, SHOWN)), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def draw_curves(path: Path, history: Sequence[dict], train_rows: Sequence[dict], metric: str) -> None:
    """Plot losses (training, dev, probe) over the steps, and below them the metric if it is a score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, needed only on rank 0
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5 if direction_of(metric) == "lower" else 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1 if direction_of(metric) == "lower" else 2, sharex=True, squeeze=False)[:, 0]
    curves = [("training loss", train_rows, "loss", "tab:blue", 0.5), ("dev loss", history, "dev_loss", "tab:red", 1)]
    curves.append(("probe loss", history, "probe_loss", "tab:green", 1))
    for label, rows, name, color, alpha in curves:
        _draw(panels[0], rows, name, label, color, alpha)
    panels[0].set_ylabel("loss (nats per supervised token)")
    if len(panels) == 2:
        _draw(panels[1], history, metric, metric, "tab:red", 1)
        _draw(panels[1], history, f"probe_{metric}", f"probe {metric}", "tab:green", 1)
        panels[1].set_ylabel(metric)
    best = find_best(history, metric)
    for axes in panels:
        if best is not None:
            axes.axvline(best["step"], color="grey", linestyle=":", label=f"best step {best['step']}")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    panels[-1].set_xlabel("optimizer step")
    figure.savefig(path, format="png", dpi=120)


def _draw(axes: "Axes", rows: Sequence[dict], name: str, label: str, color: str, alpha: float) -> None:
    points = [(row["step"], row[name]) for row in rows if _is_finite(row.get(name))]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, alpha=alpha, label=label, marker="." if len(points) < 50 else None)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: float | None) -> str:
    return f"{value:.4f}" if _is_finite(value) else "–"


def _jsonable(value: object) -> object:
    """Replace numbers that are not finite by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def _table(rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first row is its header."""
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _fenced(text: str) -> list[str]:
    """A fenced block for any text, including one with fences."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}text", text, fence]


def _indented(text: str) -> str:
    return "\n    ".join(text.splitlines()) if text.strip() else "(nothing)"
