"""Fine-tune ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B with freeze, P-Tuning, LoRA or all parameters.

CUDA_VISIBLE_DEVICES=0 deepspeed --master_port 520 train.py --train_path data/spo_0.json \
    --model_name_or_path ChatGLM3-6B/ --mode glm3 --train_type lora --max_len 1560 --max_src_len 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 2 \
    --gradient_checkpointing --output_dir ./output-glm3
CUDA_VISIBLE_DEVICES=0,1,2,3 deepspeed --master_port 520 train.py ... --train_type all --ds_file ds_zero3_offload.json

From Python: `main(["--model_name_or_path", …])`, or `run(options)` with `options.train.train_options(…)`.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from errors import UserError, run_program
from memory.pinned import bounded_rounding
from options.train import TrainOptions
from training.early import refuse_early

if __name__ == "__main__":
    run_program(refuse_early)  # answers --help, --version and mistyped flags before torch is loaded
    gc.disable()  # imports leave no garbage, and the collector would take a fifth of their time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are local
os.environ.update(bounded_rounding())

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else DeepSpeed prints a guess

from checkpoints.position import Position
from checkpoints.resume import Start, find_start
from checkpoints.state_copies import find_keepers
from data.collate import to_device
from data.loading import Step
from doctor.dry_run import Machine, dry_run
from evaluation.sets import prepare_evaluator
from methods.hooks import Hooks
from modes.directory import fingerprint
from parallel import ranks
from parallel.loss_scaling import can_lower_scale
from parallel.lost_peer import explain_lost_peer
from parallel.stop import describe_stop
from training.after_step import Outcome, evaluate_base, make_after_step
from training.agreement import agree_on_base
from training.check import check, read_command
from training.command import Command
from training.datasets import Encoder, TrainingData, open_data
from training.ending import finish, last_evaluated, nothing_is_left
from training.engine import start_engine
from training.features import cache_features
from training.guards import REMEDY, SKIPS_ALLOWED, describe_nonfinite, explain_full_memory
from training.metrics import MetricsLog, Throughput, peak_memory_bytes
from training.models import prepare_model
from training.run import join_ranks
from training.saving import SAVES_NOTHING, check_disk, make_savers
from training.start import begin, say_plan
from training.trackers import open_trackers


def train(
    engine,
    data: TrainingData,
    start: Start,
    hooks: Hooks,
    log: MetricsLog,
    after_step: Callable[[Position], Outcome],
    keep_state: Callable[[Position], None],
    *,
    at: Callable[[str], None],
    show_loss_step: int,
    on_nonfinite: str,
) -> Outcome:
    """Run all optimizer steps after `start`; returns the outcome of the last one.

    Args:
        after_step: see `make_after_step`. keep_state: (position) -> writes a resume state.
        at: called with the name of the next phase, equally often on every rank.

    Raises:
        UserError: a step was not finite, or a disk is full.
    """
    position, skipped, throughput = start.position, 0, Throughput()
    engine.train()
    outcome = after_step(position) if position.pending else Outcome()
    while not outcome.ends:
        for planned, micro_batches in data.steps_of(position.epoch, position.samples):
            step, lr, scale_can_fall = position.step + 1, engine.get_lr()[0], can_lower_scale(engine)
            losses = take_step(engine, planned, micro_batches, hooks, step, at)
            if engine.was_step_applied():
                skipped = 0
                hooks.after_step(step)
            else:
                problem = describe_nonfinite(
                    step, losses, planned.micro_batches, data.rows.place, only_losses=scale_can_fall
                )
                skipped += problem is not None
                if problem and (on_nonfinite == "stop" or skipped > SKIPS_ALLOWED):
                    keep_state(position)
                    raise UserError(f"{problem}; the step was not applied: {REMEDY}.")
                ranks.say(*[f"{problem}; skipped"] if problem else [])
            position = position.after(planned.num_samples)
            throughput.add(planned.num_tokens)
            log.advance()
            if step % show_loss_step == 0 or step == start.total_steps:
                log.write(
                    step=step,
                    epoch=position.epoch,
                    loss=ranks.sum_over_ranks(torch.stack(losses).sum()),  # nats per supervised token
                    lr=lr,
                    grad_norm=engine.get_global_grad_norm(),
                    tokens_per_second=throughput.read(),
                    peak_memory_bytes=peak_memory_bytes(),
                )
            with throughput.paused():
                outcome = after_step(position)
            if outcome.ends:
                break
        position = Position(position.step, position.epoch + 1)
    return outcome


def take_step(
    engine, planned: Step, micro_batches: Iterator[dict], hooks: Hooks, step: int, at: Callable[[str], None]
) -> list[torch.Tensor]:
    """Run forward and backward of this rank's micro-batches and one optimizer step; returns their scalar losses."""
    losses, count = [], len(planned.micro_batches)
    at(f"step {step}: reading data")
    for i, batch in enumerate(micro_batches, start=1):
        at(f"step {step}: micro-batch {i} of {count}")
        engine.set_gradient_accumulation_boundary(i == count)
        loss = engine(**to_device(batch, engine.device), num_items_in_batch=planned.num_items, use_cache=False).loss
        # num_items counts the tokens of all ranks and micro-batches, so only DeepSpeed's mean over ranks is undone
        engine.backward((loss + hooks.penalty(count)) * ranks.world_size(), scale_wrt_gas=False)
        if i == count:
            hooks.before_step(step)
        engine.step()
        losses.append(loss.detach())
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the flags of a command line."""
    run_command(lambda: read_command(argv))


def run(options: TrainOptions, *, saves: bool = True) -> None:
    """Train from Python, with options of `options.train.train_options`.

    Args:
        saves: False writes neither checkpoints nor resume states.

    Raises:
        UserError: all problems of the options.
    """
    run_command(lambda: check(options), saves=saves)


def run_command(read: Callable[[], Command], *, saves: bool = True) -> None:
    """Execute a run from its command to its reports; every rank calls it."""
    with join_ranks(read) as (command, run):
        options, base, output_dir = command.options, command.base, Path(command.options.output.output_dir)
        encoder = Encoder(base, options.data, options.columns)
        if options.safety.dry_run:
            ranks.work_first(lambda: dry_run(command, encoder, Machine.of(command)), ranks.is_main())
            return
        agree_on_base(base)
        data, evaluation = open_data(command, encoder)
        identity, keepers = command.identity(data.identity), find_keepers(output_dir)
        start = find_start(
            options.output, identity, data.plan, options.steps, steps_per_epoch=len(data.first_epoch),
            keepers=keepers, at=run.at,
        )  # fmt: skip
        evaluated = last_evaluated(start)
        if nothing_is_left(start, output_dir, options.evaluation, evaluates=bool(evaluation.sets)):
            return
        say_plan(data, start, options.optimizer)
        if saves:
            check_disk(command)
        trackers = open_trackers(options.output.report_to, output_dir, start.position.step, options.flat())
        model = prepare_model(command, data, resumes=start.state is not None, at=run.at)
        engine = start_engine(model, command.ds, options.optimizer, start.total_steps, options.method.rate_factors())
        hooks = options.method.hooks(engine, model, start.total_steps, ranks.world_size())
        begin(start, engine, model, hooks, seed=options.steps.seed, at=run.at)
        cache_dir = Path(options.data.cache_dir)
        data = cache_features(
            engine, data, command.first_block, cache_dir, key=[fingerprint(base)], precision=command.ds.precision,
            at=run.at,
        )  # fmt: skip
        step = start.position.step
        log = MetricsLog(output_dir, start.total_steps, trackers, enabled=ranks.is_main(), start_step=step)
        save, keep_state = SAVES_NOTHING
        if saves:
            save, keep_state = make_savers(command, engine, model, hooks, identity=identity, keepers=keepers, at=run.at)
        stop = run.accept_stops(output_dir, start)
        evaluate = prepare_evaluator(
            engine, evaluation, options.evaluation, output_dir, batch_size=options.steps.per_device_train_batch_size,
            start_step=evaluated, at=stop.checked(run.at),
        )  # fmt: skip
        after_step = make_after_step(
            log, save, keep_state, evaluate, stop, run.at, options=options.output,
            eval_step=options.evaluation.eval_step, samples_per_epoch=len(data.rows), total_steps=start.total_steps,
        )  # fmt: skip
        ranks.say(*describe_stop(command.save_bytes[1]))
        outcome = evaluate_base(log, evaluate, start.position, options.evaluation.probe_path)
        if not outcome.ends:
            outcome = train(
                engine, data, start, hooks, log, after_step, keep_state, at=run.at,
                show_loss_step=options.output.show_loss_step, on_nonfinite=options.safety.on_nonfinite,
            )  # fmt: skip
        log.close()
        finish(command, outcome, evaluates=bool(evaluation.sets))
        run.conclude("stopped" if outcome.received else "finished")
    if outcome.received:
        sys.exit(128 + outcome.received)


if __name__ == "__main__":
    gc.freeze()  # what was imported stays
    gc.enable()
    run_program(explain_lost_peer(explain_full_memory(main)))
