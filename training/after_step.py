"""The work after an optimizer step: evaluation, checkpoints, resume states, and the end of the run.

A stop request takes precedence. Its sender may kill the ranks 30 s later, so only the resume state is written: an
evaluation ends between two batches, and the resumed run makes the evaluation and the checkpoint of the step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from checkpoints.position import Position
from checkpoints.write import BEST
from options.sections import OutputOptions
from parallel import ranks
from parallel.stop import Stopped, StopRequest
from training.metrics import MetricsLog


@dataclass(frozen=True)
class Outcome:
    """ends: whether the run ends here. received: the signal that ends it, or 0. saved: the checkpoint's name, or ""."""

    ends: bool = False
    received: int = 0
    saved: str = ""


def make_after_step(
    log: MetricsLog,
    save: Callable,
    keep_state: Callable,
    evaluate: Callable | None,
    stop: StopRequest,
    at: Callable[[str], None],
    *,
    options: OutputOptions,
    eval_step: int | None,
    samples_per_epoch: int,
    total_steps: int,
) -> Callable[[Position], Outcome]:
    """after_step(position) -> Outcome; every rank calls it after every step.

    Args:
        save: (name, epoch, step) -> writes a checkpoint. keep_state: see `training.saving.make_state_keeper`.
        evaluate: (step, epoch) -> Verdict; None without an evaluation set.
        at: called with the name of the next phase, equally often on every rank.
    """

    def after_step(position: Position) -> Outcome:
        step, epoch = position.step, position.epoch
        ends = step >= total_steps
        at_boundary = ends or position.samples == samples_per_epoch
        lines: tuple[str, ...] = ()
        saves = at_boundary or is_multiple(step, options.save_model_step)
        evaluates = at_boundary or is_multiple(step, eval_step)
        try:
            stop.check()
            if evaluate is not None and evaluates:
                verdict = evaluate(step, epoch)
                log.write_evaluation(verdict.row)
                lines = verdict.lines
                if verdict.is_best:
                    save(BEST, epoch, step)
                ends |= verdict.stops
        except Stopped as stopped:
            at(f"step {step}: saving")
            keep_state(replace(position, pending=(evaluate is not None and evaluates) or saves), stopping=True)
            return Outcome(ends=True, received=stopped.received)
        at(f"step {step}: saving")
        name = f"epoch-{epoch}-step-{step}" if saves or ends else ""
        if name:
            save(name, epoch, step)
        if ends or (is_multiple(step, options.save_state_step) if options.save_state_step else name):
            keep_state(replace(position, pending=False))
        ranks.say(*lines)
        return Outcome(ends=ends, saved=name)

    return after_step


def evaluate_base(log: MetricsLog, evaluate: Callable | None, start: Position, probe_path: str | None) -> Outcome:
    """Evaluate the probe set, if there is one, before step 1: forgetting is measured against this result."""
    if evaluate is None or probe_path is None or start.step:
        return Outcome()
    try:
        verdict = evaluate(0, 0)
        log.write_evaluation(verdict.row)
        ranks.say(*verdict.lines)
    except Stopped as stopped:
        return Outcome(ends=True, received=stopped.received)
    return Outcome()


def is_multiple(step: int, period: int | None) -> bool:
    """Whether `step` is a multiple of `period`; never for None."""
    return bool(period and step % period == 0)
