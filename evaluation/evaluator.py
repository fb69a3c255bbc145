"""One evaluation after the other while a model trains: loss, answers, scores; which is the best; when to stop.

    evaluate = make_evaluator(engine, [dev, probe], output_dir, metric="triples_f1", generate=…, patience=3)
    evaluate(0, 0)                      # the probe set alone, before training
    verdict = evaluate(step, epoch)     # on all ranks, before the state of the step is kept
    verdict.is_best, verdict.stops

Written on rank 0 alone: evaluation.jsonl, a row per evaluation, and best_predictions.jsonl.
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
from evaluation.scores import SCORES, score_by_task
from evaluation.tracking import direction_of, is_best, should_stop, values_of
from files import write_json_lines

HISTORY_FILE = "evaluation.jsonl"
PREDICTIONS_FILE = "best_predictions.jsonl"


@dataclass(frozen=True)
class EvaluationSet:
    """What is evaluated: the dev set (prefix "") or the probe set (prefix "probe_").

    name: of its file.
    batches: () -> this rank's batches of the whole set, as many on every rank (see `evaluation.loss.dev_loss`).
    asked, references: of the records that are answered, the same on every rank; empty where nothing is scored.
    prompts: the token ids in front of the answer to each of them.
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
    """What an evaluation found, the same on all ranks.

    row: step, epoch and all figures. is_best: better than all before it. stops: patience is at its end.
    lines: what to print on rank 0 once the step is saved.
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
    """evaluate(step, epoch) -> Verdict; all ranks must make it and call it.

    Args:
        metric: "dev_loss" or a score; a score is made of answers to the records of each set.
        generate: prompts -> answers on all ranks, `generate_answers` with all but its prompts given.
        patience: evaluations in a row without a better one until the run should stop; None: never.
        start_step: the last step whose row stands: later rows of an earlier run are forgotten; -1: all of them.
        shown: predictions printed beside their references.
        at: is called with what comes next, as often on every rank; what it raises ends an evaluation without a row.
    """
    assert metric == "dev_loss" or metric in SCORES
    is_main, path = dist.get_rank() == 0, output_dir / HISTORY_FILE
    history: list[dict] = _from_main(read_history(path, start_step) if is_main else None)
    if is_main:  # rows of steps that this run will not come by would stay
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, history)
        if not history:
            (output_dir / PREDICTIONS_FILE).unlink(missing_ok=True)

    def evaluate(step: int, epoch: int) -> Verdict:
        row: dict[str, float] = {"step": step, "epoch": epoch}
        samples: list[dict[str, str]] = []
        for part in sets:
            if step == 0 and not part.prefix:
                continue  # what the base makes of the probe set is what can be forgotten
            before_batch = partial(at, f"evaluating {part.name}")
            row[f"{part.prefix or 'dev_'}loss"] = dev_loss(engine, part.batches(), before_batch)
            if metric == "dev_loss" or not part.prompts:
                continue
            answers = generate(part.prompts)
            scores = score_by_task(metric, answers, part.references, part.tasks) if is_main else None
            row |= {f"{part.prefix}{key}": value for key, value in _from_main(scores).items()}
            if not part.prefix:
                texts = zip(part.asked, part.references, answers, strict=True)
                samples = [dict(zip(("asked", "reference", "prediction"), three, strict=True)) for three in texts]
        history.append(row)
        values = values_of(history, metric)
        new_best = metric in row and is_best(values, direction_of(metric))
        if is_main:
            append_row(path, row)
            if samples and new_best:
                write_json_lines(output_dir / PREDICTIONS_FILE, [{"step": step, **sample} for sample in samples])
        lines: tuple[str, ...] = (describe_row(row) + (" (the best so far)" if new_best else ""),)
        if samples and shown:
            lines += (describe_samples(samples, shown),)
        return Verdict(row, new_best, metric in row and should_stop(values, direction_of(metric), patience), lines)

    return evaluate


def stopped_early(output_dir: Path, step: int, metric: str, patience: int | None) -> bool:
    """Whether the evaluations up to a step told the run to stop there. All ranks must call it."""
    is_main = dist.get_rank() == 0
    history = _from_main(read_history(output_dir / HISTORY_FILE, step) if is_main else None)
    return should_stop(values_of(history, metric), direction_of(metric), patience)


def write_final_report(output_dir: Path, metric: str, train_rows: Sequence[dict], patience: int | None) -> list[Path]:
    """evaluation.json, .md and .png from the files of the evaluations; for rank 0 alone."""
    predictions, samples = output_dir / PREDICTIONS_FILE, []
    if predictions.exists():
        samples = [json.loads(line) for line in predictions.read_text(encoding="utf-8").split("\n") if line]
    history = read_history(output_dir / HISTORY_FILE)
    early = should_stop(values_of(history, metric), direction_of(metric), patience)
    return write_report(
        output_dir,
        history,
        metric=metric,
        samples=samples,
        samples_step=samples[0]["step"] if samples else None,
        train_rows=train_rows,
        notes=[f"Stopped early: {patience} evaluations in a row without a better {metric}."] if early else [],
    )


def _from_main(value: Any) -> Any:
    """Rank 0's value, on all ranks: what they decide by must not differ in the last digit."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
