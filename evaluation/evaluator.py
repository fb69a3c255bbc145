"""Evaluations during training: loss, answers and scores, the best step, early stopping.

    evaluate = make_evaluator(engine, [dev, probe], output_dir, metric="triples_f1", generate=…, patience=3)
    evaluate(0, 0)                      # only the probe set, before training
    verdict = evaluate(step, epoch)     # on all ranks, before the state of the step is saved
    verdict.is_best, verdict.stops

Rank 0 writes evaluation.jsonl, one row per evaluation, and best_predictions.jsonl.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from evaluation.loss import dev_loss
from evaluation.report import append_row, describe_row, describe_samples, read_history, write_report
from evaluation.tracking import direction_of, is_best, should_stop, values_of
from files import write_json_lines
from scores import SCORES, score_by_task
from texts import counted

HISTORY_FILE = "evaluation.jsonl"
PREDICTIONS_FILE = "best_predictions.jsonl"


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set: the dev set (prefix "") or the probe set (prefix "probe_").

    name: of its file.
    batches: () -> this rank's batches of the set, the same number on every rank (see `evaluation.loss.dev_loss`).
    asked, references: of the records to answer, the same on every rank; empty without a score.
    prompts: the token ids before the answer to each of them.
    tasks: the task of each, for a score of each task; empty for none.
    """

    prefix: str
    name: str
    batches: Callable[[], Iterable[dict[str, torch.Tensor]]]
    asked: Sequence[str] = ()
    references: Sequence[str] = ()
    prompts: Sequence[Sequence[int]] = ()
    tasks: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """The result of an evaluation, the same on all ranks.

    row: step, epoch and all metrics. is_best: better than all before. stops: the patience is exhausted.
    lines: lines to print on rank 0 after the step is saved.
    """

    row: dict
    is_best: bool
    stops: bool
    lines: tuple[str, ...]


def make_evaluator(
    engine: DeepSpeedEngine,
    sets: Sequence[EvaluationSet],
    output_dir: Path,
    *,
    metric: str,
    generate: Callable[[Sequence], list[str]],
    patience: int | None = None,
    start_step: int = -1,
    shown: int = 3,
    at: Callable[[str], None] = lambda mark: None,
) -> Callable[[int, int], Verdict]:
    """Return evaluate(step, epoch) -> Verdict; all ranks must create and call it.

    Args:
        metric: "dev_loss" or a score, which needs answers to the records of each set.
        generate: prompts -> answers on all ranks, see `generate_answers`.
        patience: consecutive evaluations without improvement before the run stops; None: never.
        start_step: the last valid step: later rows of an earlier run are deleted; -1: all of them.
        shown: number of predictions to print with their references.
        at: called with the name of the next phase, equally often on every rank; if it raises, no row is written.
    """
    assert metric == "dev_loss" or metric in SCORES
    is_main, history = dist.get_rank() == 0, _open_history(output_dir, start_step)

    def evaluate(step: int, epoch: int) -> Verdict:
        row: dict[str, float] = {"step": step, "epoch": epoch}
        samples: list[dict[str, str]] = []
        for part in sets:
            if step == 0 and not part.prefix:
                continue  # before training only the probe set matters
            before_batch = partial(at, f"evaluating {part.name}")
            row[f"{part.prefix or 'dev_'}loss"] = dev_loss(engine, part.batches(), before_batch)
            if metric == "dev_loss" or not part.prompts:
                continue
            answers = generate(part.prompts)
            scores = score_by_task(metric, answers, part.references, part.tasks) if is_main else None
            row |= {f"{part.prefix}{key}": value for key, value in _from_main(scores).items()}
            if not part.prefix:
                samples = [
                    {"asked": asked, "reference": reference, "prediction": answer}
                    for asked, reference, answer in zip(part.asked, part.references, answers, strict=True)
                ]
        history.append(row)
        values = values_of(history, metric)
        new_best = metric in row and is_best(values, direction_of(metric))
        if is_main:
            append_row(output_dir / HISTORY_FILE, row)
            if samples and new_best:
                write_json_lines(output_dir / PREDICTIONS_FILE, [{"step": step, **sample} for sample in samples])
        lines: tuple[str, ...] = (describe_row(row) + (" (the best so far)" if new_best else ""),)
        if samples and shown:
            lines += (describe_samples(samples, shown),)
        return Verdict(row, new_best, metric in row and should_stop(values, direction_of(metric), patience), lines)

    return evaluate


def _open_history(output_dir: Path, start_step: int) -> list[dict]:
    """The rows up to a step, on all ranks; later rows in the file, of an earlier run, are deleted."""
    is_main, path = dist.get_rank() == 0, output_dir / HISTORY_FILE
    history: list[dict] = _from_main(read_history(path, start_step) if is_main else None)
    if is_main:  # otherwise rows of steps that this run does not evaluate would stay
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, history)
        if not history:
            (output_dir / PREDICTIONS_FILE).unlink(missing_ok=True)
    return history


def stopped_early(output_dir: Path, step: int, metric: str, patience: int | None) -> bool:
    """Whether early stopping ended the run at a step. All ranks must call it."""
    is_main = dist.get_rank() == 0
    history = _from_main(read_history(output_dir / HISTORY_FILE, step) if is_main else None)
    return should_stop(values_of(history, metric), direction_of(metric), patience)


def write_final_report(output_dir: Path, metric: str, train_rows: Sequence[dict], patience: int | None) -> list[Path]:
    """Write evaluation.json, .md and .png from the files of the evaluations; on rank 0 only."""
    predictions, samples = output_dir / PREDICTIONS_FILE, []
    if predictions.exists():
        samples = [json.loads(line) for line in predictions.read_text(encoding="utf-8").split("\n") if line]
    history = read_history(output_dir / HISTORY_FILE)
    notes = []
    if patience is not None and should_stop(values_of(history, metric), direction_of(metric), patience):
        notes.append(f"Stopped early: {counted(patience, 'evaluation')} in a row without a better {metric}.")
    return write_report(
        output_dir,
        history,
        metric=metric,
        samples=samples,
        samples_step=samples[0]["step"] if samples else None,
        train_rows=train_rows,
        notes=notes,
    )


def _from_main(value: Any) -> Any:
    """Rank 0's value, on all ranks, so that their decisions do not differ by rounding."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
