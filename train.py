"""Fine-tune ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B with freeze, P-Tuning, LoRA or all parameters.

CUDA_VISIBLE_DEVICES=0 deepspeed --master_port 520 train.py --train_path data/spo_0.json \
    --model_name_or_path ChatGLM3-6B/ --mode glm3 --train_type lora --max_len 1560 --max_src_len 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 2 \
    --gradient_checkpointing --output_dir ./output-glm3
CUDA_VISIBLE_DEVICES=0,1,2,3 deepspeed --master_port 520 train.py ... --train_type all --ds_file ds_zero3_offload.json

The way of a batch: options → mode → tokenizer → batches → model → method → engine → the loop at the end of this file.
"""

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the directories given

import torch

from data.collate import collate
from data.loading import batches, plan_epoch
from data.tokenize import TokenizedDataset, tokenize_file
from errors import UserError, run
from methods import METHODS
from modes import MODES, Mode
from modes.directory import Base, check_mode, fingerprint, iterate_shards, read_base, side_files
from training import ranks
from training.checkpoint import copy_beside, make_record, remove_old, save_checkpoint, step_of
from training.ds_config import find_ds_file, read_ds_file, resolve
from training.engine import DTYPES, build_partitioned, checkpoint_blocks, start_engine, trained_tensors
from training.metrics import MetricsLog, peak_memory_bytes
from training.options import parse_options, validate
from training.resume import find_state, load_state, save_state
from training.stop import StopRequest
from training.summary import describe_trained


def make_dataset(
    mode: Mode,
    base: Base,
    base_fingerprint: str,
    tokenizer,
    *,
    train_path: str,
    max_len: int,
    max_src_len: int,
    is_skip: bool,
    cache_dir: str,
) -> tuple[TokenizedDataset, str]:
    """The tokenised training set, and what identifies it: made once per machine, memory-mapped by all of its ranks.

    Raises:
        UserError: a record is broken (file:line), or nothing is left to train on.
    """
    vocabulary = base.path / mode.tokenizer_class.vocab_files_names["vocab_file"]
    key = json.dumps([mode.name, mode.template, max_len, max_src_len, vocabulary.stat().st_size, base_fingerprint])
    encode_batch = partial(mode.encode_batch, tokenizer, max_len=max_len, max_src_len=max_src_len)
    tokenize = partial(tokenize_file, train_path, encode_batch, cache_dir, key=key)
    ranks.first_on_each_machine(tokenize)
    directory = tokenize()  # done already: every rank only asks where it is
    dataset = TokenizedDataset(directory)
    samples, cut = len(dataset), int(dataset.truncated.sum())
    if is_skip:
        dataset = dataset.select((~dataset.truncated).nonzero()[0])
    ranks.say(
        f"training data: {train_path}: {samples:,} samples, {cut:,} over --max_len {max_len} or --max_src_len "
        f"{max_src_len} {'dropped' if is_skip else 'cut'}; {int(dataset.lengths.sum()):,} tokens, "
        f"{int(dataset.supervised.sum()):,} of them supervised"
    )
    if not len(dataset):
        raise UserError(f"--is_skip dropped all {samples} samples of {train_path}: raise --max_len or --max_src_len.")
    return dataset, f"{directory.name[:16]}{' without what is cut' if is_skip else ''}"


def make_config(mode: Mode, base: Base, method, method_options: dict):
    """The model's config as the method wants it.

    Raises:
        UserError: the method's options do not fit the model. Its shapes are built for that, without memory.
    """
    config = mode.config_class.from_pretrained(base.path)
    method.configure(config, **method_options)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # `prepare` will warn again
        method.check(mode.model_class(config), **method_options)
    return config


def make_model(mode: Mode, base: Base, config, method, options: dict, ds_config: dict, precision: str, seed: int):
    """The base with what the method trains; partitioned over the ranks from the start under ZeRO-3."""
    if ds_config["zero_optimization"]["stage"] == 3:
        model = build_partitioned(mode.model_class, config, ds_config, iterate_shards(base))
    else:
        model = mode.model_class.from_pretrained(base.path, config=config, dtype=DTYPES[precision])
    ranks.seed_everything(seed)  # new tensors are the same on every rank, whatever the ZeRO stage
    return method.prepare(model, **options)


def describe_plan(plan: list, *, micro_batch_size: int, accumulation: int, total_steps: int, warmup_steps: int) -> str:
    """Every derived number of the run, once."""
    world = ranks.world_size()
    tokens = sum(step.num_tokens for step in plan) / len(plan)
    return (
        f"optimiser steps: {total_steps:,} ({len(plan):,} per epoch), {warmup_steps:,} of them warm-up\n"
        f"samples per step: {world * micro_batch_size * accumulation} ({world} ranks × {micro_batch_size} × "
        f"{accumulation} accumulated), tokens per step: {tokens:,.0f} on average"
    )


def make_saver(output_dir: Path, base: Base, model, method, *, save_total_limit: int | None, record: dict) -> Callable:
    """save(epoch, step); every rank calls it. `record` is what all checkpoints of the run say."""
    saved: list[Path] = []

    def write_files(directory: Path, tensors) -> None:
        method.save(directory, model, tensors)
        if record["train_type"] == "all":  # a complete model directory
            dtype = str(DTYPES[record["precision"]]).removeprefix("torch.")
            copy_beside(side_files(base), directory, {"torch_dtype": dtype})

    def save(epoch: int, step: int) -> None:
        directory = output_dir / f"epoch-{epoch}-step-{step}"
        record_of_step = {**record, "epoch": epoch, "step": step}
        save_checkpoint(directory, trained_tensors(model), write_files, record_of_step, ranks.is_main())
        ranks.say(f"saved {directory}")
        saved.append(directory)
        if ranks.is_main():
            saved[:] = remove_old(saved, save_total_limit)

    return save


def train(
    engine,
    dataset: TokenizedDataset,
    plan_of: Callable,
    log: MetricsLog,
    save: Callable,
    keep_state: Callable,
    *,
    position: dict,
    pad_id: int,
    total_steps: int,
    show_loss_step: int,
    save_model_step: int | None,
    save_state_step: int | None,
) -> int:
    """Run the optimiser steps from `position` on; returns the signal that stopped them, or 0 at their end.

    Args:
        position: step, epoch (from 1) and samples of that epoch that were seen.
        save: (epoch, step) -> a checkpoint. keep_state: (step=, epoch=, samples=) -> what a resumed run needs.
    """
    step, epoch, samples = position["step"], position["epoch"], position["samples"]
    world, stop = ranks.world_size(), StopRequest()
    tokens, started = 0, time.perf_counter()
    engine.train()
    while step < total_steps:
        plan = plan_of(epoch=epoch, skip=samples)
        for planned, micro_batches in batches(dataset, plan, partial(collate, pad_id=pad_id)):
            step_loss, lr = torch.zeros((), device=engine.device), engine.get_lr()[0]
            for i, batch in enumerate(micro_batches, start=1):
                batch = {name: tensor.to(engine.device, non_blocking=True) for name, tensor in batch.items()}
                engine.set_gradient_accumulation_boundary(i == len(planned.micro_batches))
                loss = engine(**batch, num_items_in_batch=planned.num_items, use_cache=False).loss
                # num_items counts the tokens of all ranks and micro-batches: only DeepSpeed's mean over ranks is undone
                engine.backward(loss * world, scale_wrt_gas=False)
                engine.step()
                step_loss += loss.detach()
            step += 1
            samples += planned.num_samples
            tokens += planned.num_tokens
            log.advance()
            if step % show_loss_step == 0 or step == total_steps:
                loss_of_step = ranks.sum_over_ranks(step_loss)  # nats per supervised token
                log.write(
                    step=step,
                    epoch=epoch,
                    loss=loss_of_step,
                    lr=lr,
                    grad_norm=engine.get_global_grad_norm(),
                    tokens_per_second=tokens / (time.perf_counter() - started),
                    peak_memory_bytes=peak_memory_bytes(),
                )
                tokens, started = 0, time.perf_counter()
            paused, received = time.perf_counter(), stop.agreed()
            ends = samples == len(dataset) or step == total_steps
            saves = ends or bool(save_model_step and step % save_model_step == 0)
            if saves:
                save(epoch, step)
            if received or (step % save_state_step == 0 if save_state_step else saves):
                keep_state(step=step, epoch=epoch, samples=samples)
            started += time.perf_counter() - paused  # tokens per second are those of training
            if received:
                return received
            if step == total_steps:
                break
        epoch, samples = epoch + 1, 0
    return 0


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    options = parse_options(argv)
    option_notes = validate(options, ranks.launched_rank())
    base = read_base(options.model_name_or_path)
    check_mode(base, options.mode)
    on_gpu = torch.cuda.is_available()
    ds_config, precision, ds_notes = resolve(
        read_ds_file(find_ds_file(options.ds_file)),
        micro_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        world_size=ranks.launched_world_size(),
        precision=options.precision,
        explicit=options.explicit,
        max_grad_norm=options.max_grad_norm,
        device_type="cuda" if on_gpu else "cpu",
        bf16_supported=on_gpu and torch.cuda.is_bf16_supported(),
        hidden_size=base.config["hidden_size"],
    )
    ranks.start_ranks()
    ranks.say(*option_notes, *ds_notes)

    mode, method = MODES[options.mode], METHODS[options.train_type]
    method_options = {name: vars(options)[name] for name in method.OPTIONS}
    config = make_config(mode, base, method, method_options)
    tokenizer = mode.tokenizer_class.from_pretrained(base.path)
    base_fingerprint = fingerprint(base)
    dataset, data_id = make_dataset(
        mode,
        base,
        base_fingerprint,
        tokenizer,
        train_path=options.train_path,
        max_len=options.max_len,
        max_src_len=options.max_src_len,
        is_skip=options.is_skip,
        cache_dir=options.data_cache_dir,
    )
    batch_sizes = {
        "micro_batch_size": options.per_device_train_batch_size,
        "accumulation": options.gradient_accumulation_steps,
    }
    plan_of = partial(
        plan_epoch,
        dataset.lengths,
        dataset.supervised,
        seed=options.seed,
        world_size=ranks.world_size(),
        rank=ranks.rank(),
        **batch_sizes,
    )
    plan = plan_of(epoch=1)
    output_dir = Path(options.output_dir)
    same = {
        "mode": options.mode,
        "train_type": options.train_type,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in method_options.items()},
        "precision": precision,
        "seed": options.seed,
        "training data": data_id,
        "base": base_fingerprint[:16],
    }
    stage = ds_config["zero_optimization"]["stage"]
    found = find_state(output_dir, options.resume_from_checkpoint, same) if stage else None
    position = {"step": 0, "epoch": 1, "samples": 0}
    if found:
        position = {name: found[1][name] for name in position}
    to_come = len(plan_of(epoch=position["epoch"], skip=position["samples"]))
    to_come += max(options.num_train_epochs - position["epoch"], 0) * len(plan)
    total_steps = options.max_steps or position["step"] + to_come
    if position["step"] >= total_steps:
        ranks.say(
            f"{output_dir} holds a finished run of {position['step']} steps, nothing is left to do: raise "
            "--num_train_epochs or --max_steps to go on, or give --resume_from_checkpoint none to start anew."
        )
        ranks.stop_ranks()
        return
    warmup_steps = int(options.warmup_ratio * total_steps)
    ranks.say(describe_plan(plan, total_steps=total_steps, warmup_steps=warmup_steps, **batch_sizes))

    model = make_model(mode, base, config, method, method_options, ds_config, precision, options.seed)
    ranks.say(f"{options.mode} {options.train_type}, {precision}, trained:", describe_trained(model))
    if options.gradient_checkpointing:
        ranks.say(f"layers recomputed in backward: {checkpoint_blocks(model, model.blocks)} of {len(model.blocks)}")
    engine = start_engine(
        model,
        ds_config,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
    )
    ranks.say(f"memory of rank 0 before the first step: {peak_memory_bytes() / 2**30:.2f} GiB at most")
    ranks.seed_everything(options.seed + ranks.rank())  # dropout differs between ranks
    if found:
        load_state(engine, model, *found)
        ranks.say(f"resumed from {found[0]}: epoch {position['epoch']}, after step {position['step']}")

    record = make_record(
        mode=options.mode,
        train_type=options.train_type,
        method=method_options,
        base_path=base.path,
        fingerprint=base_fingerprint,
        template=mode.template,
        options={name: value for name, value in vars(options).items() if name != "explicit"},
        precision=precision,
    )
    log = MetricsLog(output_dir, total_steps, enabled=ranks.is_main(), start_step=position["step"])
    keep = max(options.save_total_limit or 2, 1)
    received = train(
        engine,
        dataset,
        plan_of,
        log,
        make_saver(output_dir, base, model, method, save_total_limit=options.save_total_limit, record=record),
        partial(save_state, output_dir, engine, model, same=same, keep=keep),
        position=position,
        pad_id=tokenizer.pad_token_id,
        total_steps=total_steps,
        show_loss_step=options.show_loss_step,
        save_model_step=options.save_model_step,
        save_state_step=options.save_state_step,
    )
    log.close()
    if received:
        ranks.say(f"stopped by {signal.Signals(received).name}; the same command goes on from here")
    ranks.stop_ranks()
    if received:
        sys.exit(128 + received)
    newest = max(output_dir.glob("epoch-*-step-*"), key=step_of)
    if ranks.launched_rank() == 0:
        print(f"loss curve: {output_dir / 'loss.png'}")
        print(f"ask it: python predict.py --model_path {newest} --instruction ...")
        print(f"merge it: python merge_lora.py --ori_model_dir {base.path} --model_dir {newest}", flush=True)


if __name__ == "__main__":
    run(main)
