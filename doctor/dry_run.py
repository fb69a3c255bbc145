"""`train.py --dry_run`: report data, steps and memory of a run without loading weights or writing files.

It uses the code of a run: the mode encodes the records, data/loading.py plans the steps, and the model with the
method's parameters is built as shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from rich.console import Console

from data.features import describe_features
from data.loading import Step, plan_epoch
from data.mixing import mixed_rows
from data.sources import Source, find_sources, scan_rows
from data.steps import count_steps, count_warmup
from data.tally import Tally, account, rows_used
from doctor.data import DataReport, examine, show
from doctor.memory import describe_estimate, describe_setup, describe_suggestion
from doctor.sharing import describe_sharing
from errors import UserError
from memory.activations import read_sizes
from memory.available import memory_of_rank
from memory.checkpointing import choose_layers
from memory.estimate import estimate
from memory.setup import read_setup
from memory.suggestions import Suggestion, smaller_batches, suggest
from modes import MODES
from modes.rows import Row
from options.train import TrainOptions
from parallel import launch
from training.command import Command
from training.datasets import Encoder
from training.places import record_files
from training.summary import describe_plan

TRAINED = TASK, REPLAY = "train_path", "replay_path"


@dataclass(frozen=True)
class Machine:
    """The machine of a run. ranks: of all machines. memory: usable bytes per rank, of its GPU or its share of RAM."""

    ranks: int
    memory: int
    on_gpu: bool

    @classmethod
    def of(cls, command: Command) -> Machine:
        """The machine of this run, or the one that --gpu_memory describes."""
        memory = memory_of_rank(launch.local_world_size(), command.options.safety.gpu_memory)
        return cls(launch.world_size(), memory, command.on_gpu)


@dataclass(frozen=True)
class Examined:
    """A file of a flag, and its report."""

    flag: str
    source: Source
    report: DataReport


@dataclass(frozen=True)
class MemoryReport:
    """The estimated memory of a run in lines, each with its style; with --gpu_memory the configuration that fits."""

    lines: list[tuple[str, str | None]]
    suggestion: Suggestion | None


def dry_run(command: Command, encoder: Encoder, machine: Machine) -> None:
    """Print data, steps and memory of a run; one process does it for all ranks.

    Raises:
        UserError: at the end if any record of any file cannot be used; --is_skip leaves nothing to train on.
    """
    console = Console()
    examined = show_files(command, encoder, console)
    numbers, lengths, supervised = rows_of_epoch(command.options, examined)
    if len(lengths):
        plan, description = plan_steps(command.options, machine, lengths, supervised)
        say(console, description)
        show_sharing(command, encoder, examined, plan, numbers, console)
        for line, style in estimate_memory(command, machine, lengths, supervised).lines:
            say(console, line, style)
    stop_at_problems([file.report for file in examined])


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line without markup."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def show_files(command: Command, encoder: Encoder, console: Console) -> list[Examined]:
    """Read and encode every file of records, and print its report."""
    examined = []
    for file in examine_files(command.options, encoder):
        say(console, f"--{file.flag}", "bold")
        show(file.report, console, encoder.tokenizer.convert_ids_to_tokens)
        say(console, account_of(file.report, command.options.data.is_skip))
        examined.append(file)
    return examined


def examine_files(options: TrainOptions, encoder: Encoder, limit: int | None = None) -> Iterator[Examined]:
    """Read and encode every file of records. limit: number of rows of a file, counted from its beginning."""
    for flag, source in sources_of(options):
        report = examine(
            source.path, scanner(encoder, source, limit), encode_rows(encoder), max_len=options.data.max_len,
            max_src_len=options.data.max_src_len, every_answer=encoder.every_answer,
        )  # fmt: skip
        yield Examined(flag, source, report)


def sources_of(options: TrainOptions) -> list[tuple[str, Source]]:
    """(flag, file) of every file of records.

    Raises:
        UserError: a registry cannot be read, or has no such name.
    """
    columns, data = options.columns.columns(), options.data
    return [
        (flag, source)
        for flag, paths in record_files(options).items()
        for source in find_sources(paths, data.dataset if flag == TASK else None, data.dataset_dir, columns)
    ]


def account_of(report: DataReport, is_skip: bool) -> str:
    """A line about all records of a file."""
    return account(report.tally, report.objects, rows_that_stay(report, is_skip))


def scanner(encoder: Encoder, source: Source, limit: int | None = None):
    """(path, tally) -> (line, record or UserError) of each row of a file, or of its first rows."""

    def scan(_: str, tally: Tally | None = None) -> Iterator[tuple[int, dict | UserError]]:
        roles = {name: mode.roles for name, mode in MODES.items()}
        rows = scan_rows(source, roles=encoder.mode.roles, apart=encoder.apart, generations=roles, tally=tally)
        return islice(rows, limit)

    return scan


def encode_rows(encoder: Encoder):
    """(records, max_len, max_src_len) -> one dict per row."""

    def encode(records: list[dict], max_len: int, max_src_len: int) -> list[Row]:
        return encoder.mode.encode_batch(
            encoder.tokenizer, records, max_len=max_len, max_src_len=max_src_len, loss_on=encoder.options.loss_on
        )

    return encode


def rows_of_epoch(options: TrainOptions, examined: list[Examined]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(numbers of an epoch's rows among those of all files; their tokens; their supervised tokens)."""
    data = options.data
    rows = {
        flag: rows_trained([file.report for file in examined if file.flag == flag], data.is_skip) for flag in TRAINED
    }
    lengths, supervised = (np.concatenate(column) for column in zip(*rows[TASK], *rows[REPLAY], strict=True))
    task, replay = ([len(kept) for kept, _ in rows[flag]] for flag in TRAINED)
    numbers = mixed_rows(sum(task), replay, data.replay_ratio, options.steps.seed)
    return numbers, lengths[numbers], supervised[numbers]


def plan_steps(
    options: TrainOptions, machine: Machine, lengths: np.ndarray, supervised: np.ndarray
) -> tuple[list[Step], str]:
    """(steps of the first epoch and rank, a description of all steps)."""
    steps, optimizer, row_length = options.steps, options.optimizer, options.row_length
    plan = plan_epoch(
        lengths, supervised, epoch=1, rank=0, seed=steps.seed, micro_batch_size=steps.per_device_train_batch_size,
        accumulation=steps.gradient_accumulation_steps, world_size=machine.ranks, row_length=row_length,
    )  # fmt: skip
    total_steps = count_steps(steps.num_train_epochs, len(plan), steps.max_steps)
    warmup_steps = count_warmup(total_steps, optimizer.warmup_steps, optimizer.warmup_ratio)
    return plan, describe_plan(plan, steps, machine.ranks, total_steps, warmup_steps, row_length)


def show_sharing(
    command: Command,
    encoder: Encoder,
    examined: list[Examined],
    plan: list[Step],
    numbers: np.ndarray,
    console: Console,
) -> None:
    """Print the number of tokens that --share_prompts saves, if any."""
    if not (command.options.compute.share_prompts and encoder.mode.causal_prompt):
        return
    data, encode = command.options.data, encode_rows(encoder)
    files = [
        (scanner(encoder, file.source)(file.source.path), rows_that_stay(file.report, data.is_skip))
        for flag in TRAINED
        for file in examined
        if file.flag == flag
    ]

    def encode_cut(records: list[dict]) -> list[dict]:
        return encode(records, data.max_len, data.max_src_len)

    line = describe_sharing(files, plan, encode_cut, numbers)
    if line:
        say(console, line)


def estimate_memory(command: Command, machine: Machine, lengths: np.ndarray, supervised: np.ndarray) -> MemoryReport:
    """The estimated memory of a run, and with --gpu_memory the flags that fit."""
    options, ds, parameters = command.options, command.ds, command.shapes.parameters
    steps, compute, gpu_memory = options.steps, options.compute, options.safety.gpu_memory
    batch_size = steps.per_device_train_batch_size
    batches = smaller_batches(lengths, supervised, batch_size, options.row_length)
    sizes = read_sizes(command.shapes.config, gated=MODES[command.base.mode].gated)
    setup = read_setup(
        ds.config, precision=ds.precision, ranks=machine.ranks, batch=batches[batch_size],
        accumulation=steps.gradient_accumulation_steps, lora_dropout=options.method.drops_inputs,
        on_gpu=machine.on_gpu,
    )  # fmt: skip
    lines: list[tuple[str, str | None]] = []
    if compute.cache_frozen_features:
        needed = describe_features(int(lengths.sum()), sizes.hidden, setup.value_bytes)
        lines.append((f"--cache_frozen_features, on disk: {needed}", None))
    asked = compute.checkpoint_layers if compute.gradient_checkpointing else 0
    recomputed, reason = choose_layers(asked, parameters, sizes, setup, machine.memory)
    setup = replace(setup, recomputed=recomputed)
    lines.append((describe_setup(setup), "bold"))
    if asked:
        lines.append((f"layers recomputed in backward: {recomputed} of {sizes.layers} ({reason})", None))
    lines.append((describe_estimate(estimate(parameters, sizes, setup), setup), None))
    if gpu_memory is None:
        return MemoryReport(lines, None)
    suggestion = suggest(parameters, sizes, setup, machine.memory, batches=batches)
    lines.append((describe_suggestion(suggestion, gpu_memory, machine.memory, machine.ranks), "bold"))
    return MemoryReport(lines, suggestion)


def rows_trained(reports: list[DataReport], is_skip: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each file of a flag, the tokens and the supervised tokens of each training row.

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
    """bool [n]: the valid records to train on."""
    return rows_used(report.prompt_cut | report.answer_cut, report.empty, is_skip)


def stop_at_problems(reports: list[DataReport]) -> None:
    """Raise UserError if any file has an unusable record, with their number and the first error."""
    count = sum(report.problem_count for report in reports)
    if count:
        first = next(report.problems[0] for report in reports if report.problems)
        raise UserError(f"records that cannot be used: {count:,}; the first: {first}")
