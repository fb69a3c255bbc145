"""Tokenize files of records to datasets, on all ranks of a run."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from data.dataset import Dataset
from data.loading import Batches, Step, plan_epoch
from data.mixing import MixedDataset, mix
from data.sources import RecordSet, Source, find_sources, read_rows
from data.tally import Tally, account, rows_used
from data.tokenize import TokenizedDataset, tokenize_file
from errors import UserError
from evaluation.sets import Evaluation, make_evaluation
from modes import MODES
from modes.directory import Base, fingerprint
from modes.mode import Mode
from modes.tokenizer import Tokenizer
from options.sections import ColumnOptions, DataOptions, StepOptions
from parallel import launch, ranks
from parallel.agreement import agree
from texts import counted
from training.command import Command


@dataclass(frozen=True)
class Encoder:
    """Converts the records of a run to rows of tokens."""

    base: Base
    options: DataOptions
    columns: ColumnOptions

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base's."""
        return self.base.make_tokenizer()

    @property
    def mode(self) -> Mode:
        """The base's generation."""
        return MODES[self.base.mode]

    @property
    def every_answer(self) -> bool:
        """Whether all answers of a conversation are supervised."""
        return self.options.loss_on == "all"

    def encode(self, records: list[dict]) -> dict:
        """The rows of records as flat arrays, see `data.tokenize.tokenize_file`."""
        options = self.options
        return self.mode.encode_arrays(
            self.tokenizer, records, max_len=options.max_len, max_src_len=options.max_src_len, loss_on=options.loss_on
        )  # fmt: skip

    @property
    def apart(self) -> bool:
        """Whether each of a conversation's answers gets its own row."""
        return self.mode.one_answer and self.every_answer

    def read(self, source: Source, tally: Tally | None = None) -> Iterator[tuple[int, dict]]:
        """(line, record) of each row of a file."""
        roles = {name: mode.roles for name, mode in MODES.items()}
        return read_rows(source, roles=self.mode.roles, apart=self.apart, generations=roles, tally=tally)

    def key(self, source: Source) -> str:
        """Everything besides the file that affects its rows."""
        options, mode = self.options, self.mode
        fixed = [mode.name, mode.template, options.max_len, options.max_src_len, self.base.vocabulary.stat().st_size]
        return json.dumps([*fixed, fingerprint(self.base), options.loss_on, asdict(source.columns)])

    def tokenize(self, source: Source) -> Path:
        """The directory of a file's rows; tokenizes the file if the cache does not have them."""

        def read(_, tally: Tally) -> Iterator[tuple[int, dict]]:
            return self.read(source, tally)

        return tokenize_file(
            source.path, self.encode, self.options.cache_dir, key=self.key(source), read=read,
            every_answer=self.every_answer,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainingData:
    """The rows to train on, and their division into steps and micro-batches.

    identity: identifies the data. row_length: tokens per row of packed samples; None without packing.
    """

    rows: Dataset
    identity: str
    steps: StepOptions
    row_length: int | None
    batches: Batches

    @cached_property
    def first_epoch(self) -> list[Step]:
        """The optimizer steps of the first epoch, by which a run is counted and described."""
        return self.plan(1)

    def plan(self, epoch: int, skip: int = 0) -> list[Step]:
        """The optimizer steps of an epoch (from 1), after its first `skip` samples."""
        return plan_epoch(
            self.rows.lengths, self.rows.supervised, epoch=epoch, seed=self.steps.seed, skip=skip,
            micro_batch_size=self.steps.per_device_train_batch_size,
            accumulation=self.steps.gradient_accumulation_steps,
            world_size=ranks.world_size(), rank=ranks.rank(), row_length=self.row_length,
        )  # fmt: skip

    def steps_of(self, epoch: int, skip: int) -> Iterator[tuple[Step, Iterator[dict]]]:
        """(step, its micro-batches on the CPU) of an epoch, after its first samples if it was interrupted."""
        return self.batches.read(self.rows, self.plan(epoch, skip))


def open_records(
    encoder: Encoder, flag: str, path: str | None, *, dataset: str | None = None, is_skip: bool = False
) -> RecordSet:
    """Tokenize the files of a flag. Each is tokenized once per machine, and memory-mapped by all its ranks.

    Args:
        flag: the one that names the files.
        path: comma-separated files. dataset: names in a registry, see data/sources.py.

    Raises:
        UserError: a record is broken (file:line), or no sample is left.
    """
    options = encoder.options
    sources = find_sources(path, dataset, options.dataset_dir, encoder.columns.columns())
    directories = [tokenize_on_all(encoder, source) for source in sources]
    parts = [TokenizedDataset(directory, source.path) for directory, source in zip(directories, sources, strict=True)]
    rows = joined(parts)
    samples, cut, empty = len(rows), int(rows.truncated.sum()), int(rows.empty.sum())
    kept = [rows_used(part.truncated, part.empty, is_skip) for part in parts]
    for source, part, stays in zip(sources, parts, kept, strict=True):
        ranks.say(f"--{flag} {source.path}: {account(part.tally, part.objects, stays)}")
    if is_skip:
        rows = joined([part.select(stays.nonzero()[0]) for part, stays in zip(parts, kept, strict=True)])
    listed = ", ".join(source.path for source in sources)
    ranks.say(
        f"--{flag} {listed}: {counted(samples, 'sample')}, {cut:,} over --max_len {options.max_len} or --max_src_len "
        f"{options.max_src_len} {'dropped' if is_skip else 'truncated'}, {empty:,} with an empty answer"
        f"{' dropped' if is_skip and empty else ''}; {int(rows.lengths.sum()):,} tokens, "
        f"{int(rows.supervised.sum()):,} of them supervised"
    )
    identity = " ".join(directory.name[:16] for directory in directories)
    agree({f"the content of --{flag}": identity}, "copy the same files to every machine")
    if not len(rows):
        raise UserError(
            f"--is_skip dropped all {samples} samples of {listed} ({cut} too long, {empty} with an empty answer): "
            "raise --max_len or --max_src_len, or correct the file."
        )

    def records() -> Iterator[dict]:
        return (record for source in sources for _, record in encoder.read(source))

    return RecordSet(listed, rows, f"{identity}{' without what is cut' if is_skip else ''}", records)


def tokenize_on_all(encoder: Encoder, source: Source) -> Path:
    """The directory of a file's rows; the first rank of each machine creates it while the others wait."""
    ranks.work_first(lambda: encoder.tokenize(source), launch.local_rank() == 0)
    return encoder.tokenize(source)  # already there: this only finds the path


def joined(parts: list[TokenizedDataset]) -> TokenizedDataset | MixedDataset:
    """Concatenate datasets."""
    return parts[0] if len(parts) == 1 else MixedDataset(parts)


def open_training_records(encoder: Encoder, seed: int) -> tuple[TokenizedDataset | MixedDataset, str]:
    """(the rows to train on, including replayed records; the identity of the data)."""
    options = encoder.options
    task = open_records(encoder, "train_path", options.train_path, dataset=options.dataset, is_skip=options.is_skip)
    if not options.replay_path:
        return task.rows, task.identity
    replay = open_records(encoder, "replay_path", options.replay_path, is_skip=options.is_skip)
    mixed = mix(task.rows, replay.rows, options.replay_ratio, seed)
    added = len(mixed) - len(task.rows)
    ranks.say(
        f"{counted(added, 'replayed record')} mixed in, from {len(replay.rows):,}"
        + (", some repeatedly" if added > len(replay.rows) else "")
    )
    return mixed, f"{task.identity} and {added} of {replay.identity}"


def open_data(command: Command, encoder: Encoder) -> tuple[TrainingData, Evaluation]:
    """The training data of a run, and its evaluation sets. Every rank calls it.

    Raises:
        UserError: a record is broken (file:line), or no sample is left.
    """
    options, mode = command.options, encoder.mode
    num_workers = options.compute.dataloader_num_workers
    if num_workers is None:
        num_workers = int(torch.cuda.is_available())
    config = command.shapes.config

    def layout(ids: np.ndarray) -> tuple[np.ndarray, int]:
        return mode.layout(config, ids)

    batches = Batches(layout, options.compute.share_prompts, num_workers)
    rows, identity = open_training_records(encoder, options.steps.seed)
    paths = {"dev_path": options.evaluation.dev_path, "probe_path": options.evaluation.probe_path}
    prefixes = {"dev_path": "", "probe_path": "probe_"}  # of the metrics' names
    record_sets = {prefixes[flag]: open_records(encoder, flag, path) for flag, path in paths.items() if path}
    evaluation = make_evaluation(
        record_sets, mode, encoder.tokenizer, batches, evaluation=options.evaluation, data=options.data,
        steps=options.steps,
    )  # fmt: skip
    return TrainingData(rows, identity, options.steps, options.row_length, batches), evaluation
