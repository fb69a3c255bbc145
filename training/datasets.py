"""Files of records → tokenised datasets, on all ranks of a run."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from data.formats import Columns
from data.mixing import MixedDataset, mix
from data.sources import Source, find_sources, read_rows
from data.tally import account, rows_used
from data.tokenize import TokenizedDataset, tokenize_file
from errors import UserError
from modes import Mode
from modes.directory import Base
from training import launch, ranks
from training.agreement import agree


def make_dataset(
    mode: Mode,
    base: Base,
    base_fingerprint: str,
    tokenizer,
    *,
    flag: str,
    path: str | None,
    dataset: str | None = None,
    dataset_dir: str = "",
    columns: Columns,
    loss_on: str,
    max_len: int,
    max_src_len: int,
    is_skip: bool,
    cache_dir: str,
) -> tuple[TokenizedDataset | MixedDataset, str, Callable[[], Iterator[dict]]]:
    """(tokenised files, what identifies them, () -> the record of each row unless `is_skip` dropped some).

    Each file is tokenised once per machine and memory-mapped by all of its ranks.

    Args:
        flag: the one that named the files.
        path: files, separated by commas. dataset, dataset_dir: names in a registry, see data/sources.py.
        loss_on: "all" trains on every message of the assistant, "last" on the last one.

    Raises:
        UserError: a record is broken (file:line), or nothing is left to train on.
    """
    vocabulary = base.path / mode.tokenizer_class.vocab_files_names["vocab_file"]
    encode = partial(mode.encode_arrays, tokenizer, max_len=max_len, max_src_len=max_src_len, loss_on=loss_on)
    rows = {"roles": mode.roles, "apart": mode.one_answer and loss_on == "all"}
    fixed = [mode.name, mode.template, max_len, max_src_len, vocabulary.stat().st_size, base_fingerprint, loss_on]

    def tokenize(source: Source) -> TokenizedDataset:
        key = json.dumps([*fixed, asdict(source.columns)])
        read = lambda _, tally: read_rows(source, **rows, tally=tally)  # noqa: E731
        every = loss_on == "all"
        work = partial(tokenize_file, source.path, encode, cache_dir, key=key, read=read, every_answer=every)
        ranks.work_first(work, launch.local_rank() == 0)
        directory = work()  # done already: every rank only asks where it is
        names.append(directory.name[:16])
        return TokenizedDataset(directory, source.path)

    names: list[str] = []
    sources = find_sources(path, dataset, dataset_dir, columns)
    parts = [tokenize(source) for source in sources]
    found = parts[0] if len(parts) == 1 else MixedDataset(parts)
    samples, cut, empty = len(found), int(found.truncated.sum()), int(found.empty.sum())
    kept = [rows_used(part.truncated, part.empty, is_skip) for part in parts]
    for source, part, stays in zip(sources, parts, kept, strict=True):
        ranks.say(f"--{flag} {source.path}: {account(part.tally, part.objects, stays)}")
    if is_skip:
        parts = [part.select(stays.nonzero()[0]) for part, stays in zip(parts, kept, strict=True)]
        found = parts[0] if len(parts) == 1 else MixedDataset(parts)
    listed = ", ".join(source.path for source in sources)
    ranks.say(
        f"--{flag} {listed}: {samples:,} samples, {cut:,} over --max_len {max_len} or --max_src_len {max_src_len} "
        f"{'dropped' if is_skip else 'cut'}, {empty:,} with an empty answer"
        f"{' dropped' if is_skip and empty else ''}; {int(found.lengths.sum()):,} tokens, "
        f"{int(found.supervised.sum()):,} of them supervised"
    )
    agree({f"the content of --{flag}": " ".join(names)}, "copy the same files to every machine")
    if not len(found):
        raise UserError(
            f"--is_skip dropped all {samples} samples of {listed} ({cut} too long, {empty} with an empty answer): "
            "raise --max_len or --max_src_len, or correct the file."
        )
    read_all = lambda: (record for source in sources for _, record in read_rows(source, **rows))  # noqa: E731
    return found, f"{' '.join(names)}{' without what is cut' if is_skip else ''}", read_all


def make_training_set(open_dataset: Callable, *, replay_path, replay_ratio, is_skip, seed, **train) -> tuple:
    """The training set, records to replay mixed in, and what identifies it.

    Args:
        train: path, dataset and dataset_dir of the records to train on.
    """
    found, data_id, _ = open_dataset(flag="train_path", is_skip=is_skip, **train)
    if not replay_path:
        return found, data_id
    replay, replay_id, _ = open_dataset(flag="replay_path", path=replay_path, is_skip=is_skip)
    mixed = mix(found, replay, replay_ratio, seed)
    added = len(mixed) - len(found)
    ranks.say(
        f"{added:,} records to replay are mixed in, taken from {len(replay):,}"
        + (", some repeatedly" if added > len(replay) else "")
    )
    return mixed, f"{data_id} and {added} of {replay_id}"
