"""`train.py --dry_run`: the data, the steps and the memory of a run, before any weight is loaded or file written.

The run's own code is asked throughout: the mode encodes the records, data/loading.py plans the steps, and the model
with what the method trains exists as shapes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from rich.console import Console

from data.loading import plan_epoch
from data.sources import Source, scan_rows
from doctor.activations import Batch, read_sizes
from doctor.data import DataReport, examine, show
from doctor.memory import GIB, describe, estimate
from doctor.setup import Setup, read_setup
from doctor.step import blocks_in_graph, largest_batch
from doctor.suggestions import smaller_batches, suggest, usable
from errors import UserError
from modes import Mode
from training.summary import describe_plan

TRAINING = "--train_path"


def dry_run(
    *,
    files: list[tuple[str, Source]],
    loss_on: str,
    mode: Mode,
    tokenizer,
    config,
    parameters: list[tuple],
    ds_config: dict,
    precision: str,
    lora_dropout: bool,
    max_len: int,
    max_src_len: int,
    is_skip: bool,
    micro_batch_size: int,
    accumulation: int,
    num_train_epochs: int,
    max_steps: int | None,
    warmup_ratio: float,
    gradient_checkpointing: bool,
    ranks: int,
    seed: int,
    on_gpu: bool,
    gpu_memory: float | None,
) -> None:
    """Print what a run would do and take; one process does it for all ranks.

    Args:
        files: (flag, file of records); those of "--train_path" are trained on.
        loss_on: "all" or "last" of the assistant's messages.
        config: the model's, with the method's changes.
        parameters: (name, shape, is it trained) of every parameter of the prepared model.
        ds_config, precision: of `training.ds_config.resolve`.
        lora_dropout: whether LoRA drops inputs.
        on_gpu: whether memory is that of GPUs, and not a CPU run's.
        gpu_memory: GiB of one GPU, to suggest flags for; None suggests nothing.

    Raises:
        UserError: at the end if any record of any file cannot be used; --is_skip leaves nothing to train on.
    """
    console = Console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    encode = partial(mode.encode_batch, tokenizer, loss_on=loss_on)
    apart = mode.one_answer and loss_on == "all"
    reports = []
    for flag, source in files:
        scan = lambda _, source=source: scan_rows(source, roles=mode.roles, apart=apart)  # noqa: E731
        reports.append((flag, examine(source.path, scan, encode, max_len=max_len, max_src_len=max_src_len)))
        say(flag, style="bold")
        show(reports[-1][1], console, tokenizer.convert_ids_to_tokens)

    trained = [rows_trained(report, is_skip) for flag, report in reports if flag == TRAINING]
    lengths, supervised = (np.concatenate(column) for column in zip(*trained, strict=True))
    if len(lengths):
        batch = show_plan(
            say, lengths, supervised, seed=seed, micro_batch_size=micro_batch_size, accumulation=accumulation,
            num_train_epochs=num_train_epochs, max_steps=max_steps, warmup_ratio=warmup_ratio, ranks=ranks,
        )  # fmt: skip
        sizes = read_sizes(config, gated=mode.name != "glm")
        blocks = blocks_in_graph(parameters, sizes)
        setup = read_setup(
            ds_config, precision=precision, ranks=ranks, batch=batch, accumulation=accumulation,
            recomputed=blocks if gradient_checkpointing else 0, lora_dropout=lora_dropout, on_gpu=on_gpu,
        )  # fmt: skip
        say(describe_setup(setup), style="bold")
        say(describe(estimate(parameters, sizes, setup), setup))
        if gpu_memory is not None:
            batches = smaller_batches(batch, micro_batch_size, int(supervised.max()))
            found = suggest(parameters, sizes, setup, int(gpu_memory * GIB), batches=batches, recomputed=blocks)
            say(describe_suggestion(found, gpu_memory, ranks), style="bold")
    stop_at_problems([report for _, report in reports])


def rows_trained(report: DataReport, is_skip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row that is trained on, and those of them that count in the loss.

    Raises:
        UserError: --is_skip drops them all.
    """
    stays = ~(report.prompt_cut | report.answer_cut) if is_skip else np.ones(len(report.kept), bool)
    if len(stays) and not stays.any():
        raise UserError(
            f"--is_skip dropped all {len(stays)} samples of {report.path}: raise --max_len or --max_src_len."
        )
    return report.kept[stays], report.supervised[stays]


def show_plan(
    say: Callable, lengths: np.ndarray, supervised: np.ndarray, *, seed: int, micro_batch_size: int,
    accumulation: int, num_train_epochs: int, max_steps: int | None, warmup_ratio: float, ranks: int,
) -> Batch:  # fmt: skip
    """Print the steps; returns the most that any micro-batch of any rank asks for."""
    plan_of = partial(plan_epoch, lengths, supervised, seed=seed, micro_batch_size=micro_batch_size,
                      accumulation=accumulation, world_size=ranks)  # fmt: skip
    plan = plan_of(epoch=1, rank=0)
    total_steps = max_steps or num_train_epochs * len(plan)
    say(describe_plan(plan, world_size=ranks, micro_batch_size=micro_batch_size, accumulation=accumulation,
                      total_steps=total_steps, warmup_steps=int(warmup_ratio * total_steps)))  # fmt: skip
    epochs = -(-total_steps // len(plan))
    micro_batches = (
        micro_batch
        for epoch in range(1, epochs + 1)
        for rank in range(ranks)
        for step in plan_of(epoch=epoch, rank=rank)
        for micro_batch in step.micro_batches
    )
    return largest_batch(micro_batches, lengths, supervised)


def describe_setup(setup: Setup) -> str:
    """What an estimate is of, in a line."""
    offload = ", optimiser offloaded" if setup.offload_optimizer else ""
    offload += ", weights offloaded" if setup.offload_param else ""
    kind = "GPU" if setup.on_gpu else "CPU"
    batch = f"{setup.batch.rows} rows of {setup.batch.length:,} tokens, {setup.batch.supervised:,} of them supervised"
    return (
        f"memory, estimated for {setup.ranks} {kind} ranks, {setup.precision}, ZeRO-{setup.stage}{offload}, "
        f"{setup.recomputed} layers recomputed, a micro-batch of {batch}"
    )


def describe_suggestion(found, gpu_memory: float, ranks: int) -> str:
    """The flags that fit, or how far the smallest configuration is from fitting."""
    peak = found.estimate.gpu_peak / GIB
    where = f"{ranks} × {gpu_memory:g} GiB (--gpu_memory)"
    if found.fits:
        host = found.estimate.host_peak * ranks / GIB
        ram = f" and {host:.1f} GiB of RAM for all" if host > 0.05 else ""
        return f"fits {where}, {peak:.1f} GiB each{ram}: {found.flags()}"
    return (
        f"nothing fits {where}: of a card {usable(int(gpu_memory * GIB)) / GIB:.1f} GiB are for tensors, the smallest "
        f"configuration takes {peak:.1f} GiB ({found.flags()}); lower --max_len, or take more or larger cards"
    )


def stop_at_problems(reports: list[DataReport]) -> None:
    """Raise UserError if any file has a record that cannot be used: how many, and the first."""
    count = sum(report.problem_count for report in reports)
    if count:
        first = next(report.problems[0] for report in reports if report.problems)
        raise UserError(f"records that cannot be used: {count:,}; the first: {first}")
