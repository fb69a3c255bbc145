"""`train.py --dry_run`: the data, the steps and the memory of a run, before any weight is loaded or file written.

The run's own code is asked throughout: the mode encodes the records, data/loading.py plans the steps, and the model
with what the method trains exists as shapes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from rich.console import Console

from data.features import describe_features
from data.loading import Step, plan_epoch
from data.mixing import mixed_rows
from data.sources import Source, scan_rows
from data.tally import account, rows_used
from doctor.data import DataReport, examine, show
from doctor.memory import describe_estimate, describe_setup, describe_suggestion
from doctor.sharing import describe_sharing
from errors import UserError
from memory.activations import read_sizes
from memory.checkpointing import choose_layers
from memory.estimate import estimate
from memory.setup import read_setup
from memory.suggestions import smaller_batches, suggest
from modes import Mode
from parameters import Parameter
from training.steps import count_steps, count_warmup
from training.summary import describe_plan

TRAINED = TASK, REPLAY = "--train_path", "--replay_path"


def dry_run(
    *,
    files: list[tuple[str, Source]],
    loss_on: str,
    mode: Mode,
    tokenizer,
    config,
    parameters: list[Parameter],
    ds_config: dict,
    precision: str,
    lora_dropout: bool,
    share_prompts: bool,
    cache_features: bool,
    max_len: int,
    max_src_len: int,
    is_skip: bool,
    micro_batch_size: int,
    accumulation: int,
    row_length: int | None,
    num_train_epochs: float,
    max_steps: int | None,
    warmup_steps: float | None,
    warmup_ratio: float,
    checkpoint_layers: int | str,
    ranks: int,
    seed: int,
    replay_ratio: float,
    on_gpu: bool,
    memory: int,
    gpu_memory: float | None,
) -> None:
    """Print what a run would do and take; one process does it for all ranks.

    Args:
        files: (flag, file of records); those of "--train_path" are trained on.
        loss_on: "all" or "last" of the assistant's messages.
        config: the model's, with the method's changes.
        parameters: of the prepared model.
        ds_config, precision: of `training.ds_config.resolve`.
        lora_dropout: whether LoRA drops inputs.
        share_prompts, cache_features: whether --share_prompts and --cache_frozen_features are on.
        row_length: tokens of a row of packed samples; None for a sample a row.
        replay_ratio: records of "--replay_path" mixed in, for each of "--train_path".
        checkpoint_layers: "auto" or how many layers are recomputed; 0 without --gradient_checkpointing.
        on_gpu: whether memory is that of GPUs, and not a CPU run's.
        memory: bytes that tensors of one rank may take.
        gpu_memory: GiB of one GPU, to suggest flags for; None suggests nothing.

    Raises:
        UserError: at the end if any record of any file cannot be used; --is_skip leaves nothing to train on.
    """
    console = Console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    encode = partial(mode.encode_batch, tokenizer, loss_on=loss_on)
    apart = mode.one_answer and loss_on == "all"
    reports = []
    scan = partial(scan_rows, roles=mode.roles, apart=apart)
    for flag, source in files:
        found = examine(source.path, lambda _, tally, source=source: scan(source, tally=tally), encode,
                        max_len=max_len, max_src_len=max_src_len, every_answer=loss_on == "all")  # fmt: skip
        reports.append((flag, found))
        say(flag, style="bold")
        show(found, console, tokenizer.convert_ids_to_tokens)
        say(account(found.tally, found.objects, rows_that_stay(found, is_skip)))

    rows = {flag: rows_trained([report for name, report in reports if name == flag], is_skip) for flag in TRAINED}
    lengths, supervised = (np.concatenate(column) for column in zip(*rows[TASK], *rows[REPLAY], strict=True))
    task, replay = ([len(kept) for kept, _ in rows[flag]] for flag in TRAINED)
    numbers = mixed_rows(sum(task), replay, replay_ratio, seed)
    lengths, supervised = lengths[numbers], supervised[numbers]
    if len(lengths):
        plan = show_plan(
            say, lengths, supervised, seed=seed, micro_batch_size=micro_batch_size, accumulation=accumulation,
            row_length=row_length, num_train_epochs=num_train_epochs, max_steps=max_steps,
            warmup_steps=warmup_steps, warmup_ratio=warmup_ratio, ranks=ranks,
        )  # fmt: skip
        if share_prompts and mode.causal_prompt:
            once_more = [
                (scan(source), rows_that_stay(report, is_skip))
                for name in TRAINED
                for (flag, source), (_, report) in zip(files, reports, strict=True)
                if flag == name
            ]
            encode_cut = partial(encode, max_len=max_len, max_src_len=max_src_len)
            if line := describe_sharing(once_more, plan, encode_cut, numbers):
                say(line)
        batches = smaller_batches(lengths, supervised, micro_batch_size, row_length)
        sizes = read_sizes(config, gated=mode.gated)
        setup = read_setup(
            ds_config, precision=precision, ranks=ranks, batch=batches[micro_batch_size], accumulation=accumulation,
            lora_dropout=lora_dropout, on_gpu=on_gpu,
        )  # fmt: skip
        if cache_features:
            needed = describe_features(int(lengths.sum()), sizes.hidden, setup.value_bytes)
            say(f"--cache_frozen_features, on disk: {needed}")
        recomputed, why = choose_layers(checkpoint_layers, parameters, sizes, setup, memory)
        setup = replace(setup, recomputed=recomputed)
        say(describe_setup(setup), style="bold")
        if checkpoint_layers:
            say(f"layers recomputed in backward: {recomputed} of {sizes.layers} ({why})")
        say(describe_estimate(estimate(parameters, sizes, setup), setup))
        if gpu_memory is not None:
            found = suggest(parameters, sizes, setup, memory, batches=batches)
            say(describe_suggestion(found, gpu_memory, memory, ranks), style="bold")
    stop_at_problems([report for _, report in reports])


def rows_trained(reports: list[DataReport], is_skip: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each file of a flag, the tokens of each row that is trained on, and those of them that count in the loss.

    Raises:
        UserError: --is_skip drops them all.
    """
    kept = [rows_that_stay(report, is_skip) for report in reports]
    samples = sum(map(len, kept))
    if samples and not any(stays.any() for stays in kept):
        raise UserError(
            f"--is_skip dropped all {samples} samples of {', '.join(str(report.path) for report in reports)}: raise "
            "--max_len or --max_src_len, or correct the file."
        )
    return [(report.kept[stays], report.supervised[stays]) for report, stays in zip(reports, kept, strict=True)]


def rows_that_stay(report: DataReport, is_skip: bool) -> np.ndarray:
    """bool [n]: those of the good records that are trained on."""
    return rows_used(report.prompt_cut | report.answer_cut, report.empty, is_skip)


def show_plan(
    say: Callable, lengths: np.ndarray, supervised: np.ndarray, *, seed: int, micro_batch_size: int,
    accumulation: int, row_length: int | None, num_train_epochs: float, max_steps: int | None,
    warmup_steps: float | None, warmup_ratio: float, ranks: int,
) -> list[Step]:  # fmt: skip
    """Print the steps; returns those of the first epoch and rank."""
    plan = plan_epoch(lengths, supervised, epoch=1, rank=0, seed=seed, micro_batch_size=micro_batch_size,
                      accumulation=accumulation, world_size=ranks, row_length=row_length)  # fmt: skip
    total_steps = count_steps(num_train_epochs, len(plan), max_steps)
    say(describe_plan(plan, world_size=ranks, micro_batch_size=micro_batch_size, accumulation=accumulation,
                      row_length=row_length, total_steps=total_steps,
                      warmup_steps=count_warmup(total_steps, warmup_steps, warmup_ratio)))  # fmt: skip
    return plan


def stop_at_problems(reports: list[DataReport]) -> None:
    """Raise UserError if any file has a record that cannot be used: how many, and the first."""
    count = sum(report.problem_count for report in reports)
    if count:
        first = next(report.problems[0] for report in reports if report.problems)
        raise UserError(f"records that cannot be used: {count:,}; the first: {first}")
