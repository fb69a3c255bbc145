"""Fine-tune ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B with freeze, P-Tuning, LoRA or all parameters.

CUDA_VISIBLE_DEVICES=0 deepspeed --master_port 520 train.py --train_path data/spo_0.json \
    --model_name_or_path ChatGLM3-6B/ --mode glm3 --train_type lora --max_len 1560 --max_src_len 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 2 \
    --gradient_checkpointing --output_dir ./output-glm3
CUDA_VISIBLE_DEVICES=0,1,2,3 deepspeed --master_port 520 train.py ... --train_type all --ds_file ds_zero3_offload.json

The way of a batch: options → mode → tokenizer → batches → model → method → engine → the loop at the end of this file.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memory.pinned import bounded_rounding

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the directories given
os.environ.update(bounded_rounding())

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # no guess to report

from checkpoints.position import Position
from checkpoints.record import make_record
from checkpoints.resume import find_start
from checkpoints.state import extra_tensors, load_state
from checkpoints.state_copies import find_keepers
from checkpoints.write import BEST
from data.collate import collate, to_device
from data.formats import Columns
from data.loading import batches, plan_epoch
from data.mixing import MixedDataset
from data.sources import find_sources
from data.tokenize import TokenizedDataset
from doctor.dry_run import dry_run
from errors import UserError, run
from evaluation.evaluator import stopped_early, write_final_report
from evaluation.report import read_history
from evaluation.sets import make_evaluation_sets, prepare_evaluator
from memory.available import memory_of_rank
from memory.checkpointing import plan_layers
from methods import METHODS, make_hooks, rate_factors
from methods.hooks import Hooks
from methods.start import check_start, describe_start, load_start
from modes import MODES, Mode
from modes.directory import fingerprint
from parameters import trained_values
from training import launch, ranks
from training.after_step import Outcome, evaluate_base, make_after_step
from training.agreement import agree_on_base, agree_on_command, agree_on_start
from training.command import read_command
from training.datasets import make_dataset, make_training_set
from training.ds_config import fit_buckets
from training.engine import DTYPES, checkpoint_blocks, start_engine
from training.features import cache_features, first_trained_block
from training.guards import REMEDY, SKIPS_ALLOWED, check_space, describe_nonfinite, explain_full_memory, save_bytes
from training.kernels import choose_attention, use_kernels
from training.loss_scaling import can_lower_scale
from training.lost_peer import explain_lost_peer
from training.metrics import MetricsLog, peak_memory_bytes
from training.models import make_model, plan_model
from training.options import RECORD_FILES
from training.saving import make_saver, make_state_keeper
from training.steps import count_warmup
from training.stop import StopRequest, describe_stop
from training.summary import describe_plan, describe_trained
from training.trackers import open_trackers
from training.watchdog import Watchdog


def train(
    engine,
    dataset: TokenizedDataset | MixedDataset,
    plan_of: Callable,
    read_batches: Callable,
    log: MetricsLog,
    keep_state: Callable,
    after_step: Callable[..., Outcome],
    at: Callable[[str], None],
    hooks: Hooks,
    *,
    position: Position,
    total_steps: int,
    show_loss_step: int,
    on_nonfinite: str,
) -> Outcome:
    """Run the optimizer steps from `position` on; returns what came of the last one.

    Args:
        read_batches: plan -> (step, its micro-batches as the model takes them) by turns.
        keep_state: (position) -> what a resumed run needs. after_step: see `make_after_step`.
        at: is told what comes next, as often on every rank.

    Raises:
        UserError: a step was not finite, or a disk is full.
    """
    step, epoch, samples = position.step, position.epoch, position.samples
    world = ranks.world_size()
    tokens, started, skipped = 0, time.perf_counter(), 0
    engine.train()
    outcome = after_step(position) if position.pending else Outcome()
    while not outcome.ends:
        plan = plan_of(epoch=epoch, skip=samples)
        for planned, micro_batches in read_batches(plan):
            losses, lr, scale_can_fall = [], engine.get_lr()[0], can_lower_scale(engine)
            at(f"step {step + 1}: reading data")
            for i, batch in enumerate(micro_batches, start=1):
                at(f"step {step + 1}: micro-batch {i} of {len(planned.micro_batches)}")
                batch = to_device(batch, engine.device)
                engine.set_gradient_accumulation_boundary(i == len(planned.micro_batches))
                loss = engine(**batch, num_items_in_batch=planned.num_items, use_cache=False).loss
                # num_items counts the tokens of all ranks and micro-batches: only DeepSpeed's mean over ranks is undone
                engine.backward((loss + hooks.penalty(len(planned.micro_batches))) * world, scale_wrt_gas=False)
                if i == len(planned.micro_batches):
                    hooks.before_step(step + 1)
                engine.step()
                losses.append(loss.detach())
            step += 1
            if engine.was_step_applied():
                skipped = 0
                hooks.after_step(step)
            else:
                rows, where = planned.micro_batches, dataset.place
                problem = describe_nonfinite(step, losses, rows, where, only_losses=scale_can_fall)
                skipped += problem is not None
                if problem and (on_nonfinite == "stop" or skipped > SKIPS_ALLOWED):
                    keep_state(Position(step - 1, epoch, samples))
                    raise UserError(f"{problem}; the step was not applied: {REMEDY}.")
                if problem:
                    ranks.say(f"{problem}; skipped")
            samples += planned.num_samples
            tokens += planned.num_tokens
            log.advance()
            if step % show_loss_step == 0 or step == total_steps:
                log.write(
                    step=step,
                    epoch=epoch,
                    loss=ranks.sum_over_ranks(torch.stack(losses).sum()),  # nats per supervised token
                    lr=lr,
                    grad_norm=engine.get_global_grad_norm(),
                    tokens_per_second=tokens / (time.perf_counter() - started),
                    peak_memory_bytes=peak_memory_bytes(),
                )
                tokens, started = 0, time.perf_counter()
            paused = time.perf_counter()
            outcome = after_step(Position(step, epoch, samples))
            started += time.perf_counter() - paused  # tokens per second are those of training
            if outcome.ends:
                break
        epoch, samples = epoch + 1, 0
    return outcome


def look_only(options, mode: Mode, config, parameters, tokenizer, ds_config: dict, precision: str, columns) -> None:
    """--dry_run: what the run would do and take; for one rank."""
    paths = {flag: vars(options)[flag] for flag in RECORD_FILES}
    sources = {flag: find_sources(path, None, "", columns) for flag, path in paths.items()}
    sources["train_path"] += find_sources(None, options.dataset, options.dataset_dir, columns)
    dry_run(
        files=[(f"--{flag}", source) for flag, listed in sources.items() for source in listed],
        loss_on=options.loss_on, mode=mode, tokenizer=tokenizer, config=config, parameters=parameters,
        ds_config=ds_config, precision=precision,
        lora_dropout=options.train_type == "lora" and options.lora_dropout > 0,
        share_prompts=options.share_prompts,
        cache_features=options.cache_frozen_features,
        max_len=options.max_len, max_src_len=options.max_src_len, is_skip=options.is_skip,
        micro_batch_size=options.per_device_train_batch_size, accumulation=options.gradient_accumulation_steps,
        row_length=options.max_len if options.packing else None,
        num_train_epochs=options.num_train_epochs, max_steps=options.max_steps,
        warmup_steps=options.warmup_steps, warmup_ratio=options.warmup_ratio,
        checkpoint_layers=options.checkpoint_layers if options.gradient_checkpointing else 0,
        ranks=ranks.world_size(), seed=options.seed, replay_ratio=options.replay_ratio,
        on_gpu=torch.cuda.is_available() or options.gpu_memory is not None,
        memory=memory_of_rank(launch.local_world_size(), options.gpu_memory), gpu_memory=options.gpu_memory,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    launch.adopt()
    options, base, ds_config, precision, notes = ranks.start_after(partial(read_command, argv))
    watchdog = Watchdog(60 * options.timeout_minutes, ranks.peers(), ranks.cpu_group())
    ranks.say(*notes)
    agree_on_command(options, ds_config, precision)

    mode, method = MODES[options.mode], METHODS[options.train_type]
    method_options = {name: vars(options)[name] for name in method.OPTIONS}
    config, parameters = plan_model(mode, base, method, method_options)
    attention = choose_attention(options.attn_implementation, precision, config.head_dim)
    if options.init_adapter:
        adapter = Path(options.init_adapter)
        of_base = (parameters, mode.model_class, config)
        ranks.work_first(partial(check_start, adapter, options.train_type, method_options, *of_base), mine=True)
        agree_on_start(adapter)
        ranks.say(*describe_start(adapter, base.path, base.config))
    first_block = first_trained_block(parameters) if options.cache_frozen_features else 0
    trained = trained_values(parameters)
    ds_config = fit_buckets(ds_config, trained)
    tokenizer = mode.tokenizer_class.from_pretrained(base.path)
    lengths = {"max_len": options.max_len, "max_src_len": options.max_src_len}
    batch_sizes = {
        "micro_batch_size": options.per_device_train_batch_size,
        "accumulation": options.gradient_accumulation_steps,
    }
    columns = Columns(
        prompt=options.prompt_column,
        response=options.response_column,
        history=options.history_column,
        prefix=options.source_prefix,
    )
    if options.dry_run:
        look = partial(look_only, options, mode, config, parameters, tokenizer, ds_config, precision, columns)
        ranks.work_first(look, ranks.is_main())
        watchdog.close()
        ranks.stop_ranks()
        return

    base_fingerprint = fingerprint(base)
    agree_on_base(mode, base, base_fingerprint)
    open_dataset = partial(
        make_dataset,
        mode,
        base,
        base_fingerprint,
        tokenizer,
        columns=columns,
        loss_on=options.loss_on,
        **lengths,
        cache_dir=options.data_cache_dir,
    )
    layout = partial(mode.layout, config)
    collate_fn = partial(collate, layout=layout, share_prompts=options.share_prompts)
    num_workers = options.dataloader_num_workers
    if num_workers is None:
        num_workers = int(torch.cuda.is_available())
    read_batches = partial(batches, num_workers=num_workers)
    dataset, data_id = make_training_set(
        open_dataset,
        path=options.train_path,
        dataset=options.dataset,
        dataset_dir=options.dataset_dir,
        replay_path=options.replay_path,
        replay_ratio=options.replay_ratio,
        is_skip=options.is_skip,
        seed=options.seed,
    )
    sets, generation = make_evaluation_sets(
        mode,
        tokenizer,
        partial(read_batches, collate_fn=collate_fn),
        open_dataset,
        {"dev_path": options.dev_path, "probe_path": options.probe_path},
        metric=options.eval_metric,
        samples=options.eval_samples,
        every_answer=options.loss_on == "all",
        task_key=options.task_key,
        **lengths,
        micro_batch_size=options.per_device_train_batch_size,
        seed=options.seed,
        world_size=ranks.world_size(),
        rank=ranks.rank(),
    )
    row_length = options.max_len if options.packing else None
    plan_of = partial(
        plan_epoch,
        dataset.lengths,
        dataset.supervised,
        seed=options.seed,
        world_size=ranks.world_size(),
        rank=ranks.rank(),
        row_length=row_length,
        **batch_sizes,
    )
    plan = plan_of(epoch=1)
    output_dir = Path(options.output_dir)
    identity = {
        "mode": options.mode,
        "train_type": options.train_type,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in method_options.items()},
        "precision": precision,
        "seed": options.seed,
        "training data": data_id,
        "base": base_fingerprint[:16],
        "quantization_bit": options.quantization_bit,
        "packing": row_length,
    }
    keepers = find_keepers(output_dir)
    start = find_start(
        output_dir,
        options.resume_from_checkpoint,
        identity,
        plan_of,
        steps_per_epoch=len(plan),
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        keepers=keepers,
        at=watchdog.at,
    )
    state, position, total_steps = start.state, start.position, start.total_steps
    evaluated = position.step - position.pending if state else -1  # the last step whose evaluation stands
    early = sets and stopped_early(output_dir, evaluated, options.eval_metric, options.early_stopping_patience)
    if (position.step >= total_steps and not position.pending) or early:
        ranks.say(
            f"{output_dir} holds a finished run of {position.step} steps, nothing is left to do: raise "
            "--num_train_epochs or --max_steps to continue it, or give --resume_from_checkpoint none to restart from "
            "step 0."
        )
        watchdog.close()
        ranks.stop_ranks()
        return
    warmup_steps = count_warmup(total_steps, options.warmup_steps, options.warmup_ratio)
    ranks.say(
        describe_plan(
            plan,
            world_size=ranks.world_size(),
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            row_length=row_length,
            **batch_sizes,
        )
    )
    checkpoint_bytes, state_bytes = save_bytes(trained, DTYPES[precision].itemsize, **method_options)
    check_space(output_dir, checkpoint_bytes + state_bytes, "a checkpoint with its resume state")
    if options.gradient_checkpointing:
        recomputed, why = plan_layers(
            options.checkpoint_layers, ranks.smallest(memory_of_rank(launch.local_world_size())), parameters,
            config=config, gated=mode.gated, ds_config=ds_config, precision=precision,
            lora_dropout=method_options.get("lora_dropout", 0) > 0, on_gpu=torch.cuda.is_available(),
            lengths=dataset.lengths, supervised=dataset.supervised, ranks=ranks.world_size(), row_length=row_length,
            **batch_sizes,
        )  # fmt: skip
    flags = {name: value for name, value in vars(options).items() if name != "explicit"}
    trackers = open_trackers(options.report_to, output_dir, position.step, flags)
    watchdog.at("loading the weights")
    model = make_model(
        mode,
        base,
        config,
        method,
        method_options,
        ds_config,
        precision,
        options.seed,
        options.quantization_bit,
        options.double_quantization,
    )
    use_kernels(model, attention, options.torch_compile)
    if options.init_adapter and not state:
        load_start(model, Path(options.init_adapter), options.train_type)
    kernels = f"{attention} attention" + ", compiled layers" * options.torch_compile
    ranks.say(f"{options.mode} {options.train_type}, {precision}, {kernels}, trained:", describe_trained(model))
    if options.gradient_checkpointing:
        count = checkpoint_blocks(model, model.blocks, recomputed)
        ranks.say(f"layers recomputed in backward: {count} of {len(model.blocks)} ({why})")
    engine = start_engine(
        model,
        ds_config,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        rate_factors=rate_factors(method_options),
    )
    ranks.set_timeouts()  # of the groups that DeepSpeed has made
    hooks = make_hooks(method_options, engine, model, total_steps, ranks.world_size())
    ranks.say(f"memory of rank 0 before the first step: {peak_memory_bytes() / 2**30:.2f} GiB at most")
    ranks.seed_everything(options.seed + ranks.rank())  # dropout differs between ranks
    if state:
        load_state(engine, model, state, at=watchdog.at)
        hooks.load_state(extra_tensors(state.directory))
        ranks.say(f"resumed from {state.directory}: epoch {position.epoch}, after step {position.step}")

    if first_block:
        dataset = cache_features(
            engine,
            dataset,
            Path(options.data_cache_dir),
            key=[base_fingerprint, data_id, options.seed],
            first_block=first_block,
            layout=layout,
            share_prompts=options.share_prompts,
            batch_size=options.per_device_train_batch_size,
            precision=precision,
            at=watchdog.at,
        )
        collate_fn = partial(collate_fn, first_block=first_block)
    record = make_record(
        mode=options.mode,
        train_type=options.train_type,
        method=method_options,
        base_path=base.path,
        fingerprint=base_fingerprint,
        template=mode.template,
        options=flags,
        precision=precision,
    )
    log = MetricsLog(output_dir, total_steps, trackers, enabled=ranks.is_main(), start_step=position.step)
    saving = {"save_total_limit": options.save_total_limit, "at": watchdog.at}
    save = make_saver(output_dir, base, model, method, record=record, needed=checkpoint_bytes, **saving)
    keep_state = make_state_keeper(
        output_dir, engine, model, hooks, identity=identity, needed=state_bytes, keepers=keepers, **saving
    )
    stop = StopRequest(ranks.cpu_group())
    evaluate = prepare_evaluator(
        engine,
        sets,
        output_dir,
        mode=mode,
        tokenizer=tokenizer,
        generation=generation,
        metric=options.eval_metric,
        batch_size=options.per_device_train_batch_size,
        patience=options.early_stopping_patience,
        start_step=evaluated,
        at=stop.checked(watchdog.at),
    )
    after_step = make_after_step(
        log,
        save,
        keep_state,
        evaluate,
        stop,
        watchdog.at,
        samples_per_epoch=len(dataset),
        total_steps=total_steps,
        save_model_step=options.save_model_step,
        save_state_step=options.save_state_step,
        eval_step=options.eval_step,
    )
    ranks.say(*describe_stop(state_bytes))
    outcome = evaluate_base(log, evaluate) if options.probe_path and not position.step else Outcome()
    if not outcome.ends:
        outcome = train(
            engine,
            dataset,
            plan_of,
            partial(read_batches, dataset, collate_fn=collate_fn),
            log,
            keep_state,
            after_step,
            watchdog.at,
            hooks,
            position=position,
            total_steps=total_steps,
            show_loss_step=options.show_loss_step,
            on_nonfinite=options.on_nonfinite,
        )
    watchdog.close()
    log.close()
    if sets and ranks.is_main():
        train_rows = read_history(output_dir / "metrics.jsonl")
        write_final_report(output_dir, options.eval_metric, train_rows, options.early_stopping_patience)
    if outcome.received:
        ranks.say(f"stopped by {signal.Signals(outcome.received).name}; the same command goes on from here")
    ranks.stop_ranks()
    if outcome.received:
        sys.exit(128 + outcome.received)
    if launch.rank() == 0:
        print(f"loss curve: {output_dir / 'loss.png'}")
        newest = output_dir / (BEST if sets else outcome.saved)
        print(f"ask it: python predict.py --model_path {newest} --instruction ...")
        print(f"merge it: python merge_lora.py --ori_model_dir {base.path} --model_dir {newest}", flush=True)


if __name__ == "__main__":
    run(explain_lost_peer(explain_full_memory(main)))
