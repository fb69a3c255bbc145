"""The end of a run: nothing left to do, stopped by a signal, or finished."""

import signal
from pathlib import Path

from checkpoints.resume import Start
from checkpoints.write import BEST
from evaluation.evaluator import stopped_early, write_final_report
from evaluation.report import read_history
from options.sections import EvaluationOptions
from parallel import ranks
from texts import counted
from training.after_step import Outcome
from training.command import Command


def last_evaluated(start: Start) -> int:
    """The last step whose evaluation is complete; -1 for none."""
    return start.position.step - start.position.pending if start.state else -1


def nothing_is_left(start: Start, output_dir: Path, options: EvaluationOptions, *, evaluates: bool) -> bool:
    """Whether the run in the directory is finished; if it is, prints how to continue. Every rank calls it."""
    step, pending = start.position.step, start.position.pending
    finished = step >= start.total_steps and not pending
    if evaluates:
        finished |= stopped_early(
            output_dir, last_evaluated(start), options.eval_metric, options.early_stopping_patience
        )
    if finished:
        ranks.say(
            f"{output_dir} has a finished run of {counted(step, 'step')}: raise --num_train_epochs or "
            "--max_steps to continue it, or give --resume_from_checkpoint none to restart from step 0."
        )
    return finished


def finish(command: Command, outcome: Outcome, *, evaluates: bool) -> None:
    """Write the evaluation report and print the next commands; on rank 0."""
    output_dir, options = Path(command.options.output.output_dir), command.options.evaluation
    if evaluates and ranks.is_main():
        train_rows = read_history(output_dir / "metrics.jsonl")
        write_final_report(output_dir, options.eval_metric, train_rows, options.early_stopping_patience)
    if outcome.received:
        ranks.say(f"stopped by {signal.Signals(outcome.received).name}; run the same command again to resume")
        return
    newest = output_dir / (BEST if evaluates else outcome.saved)
    ranks.say(
        f"loss curve: {output_dir / 'loss.png'}",
        f"ask it: python predict.py --model_path {newest} --instruction ...",
        f"merge it: python merge_lora.py --ori_model_dir {command.base.path} --model_dir {newest}",
    )
