"""Files of records → tokenised datasets, on all ranks of a run."""

import json
from collections.abc import Callable
from functools import partial

from data.mixing import mix
from data.tokenize import TokenizedDataset, tokenize_file
from errors import UserError
from modes import Mode
from modes.directory import Base
from training import ranks


def make_dataset(
    mode: Mode,
    base: Base,
    base_fingerprint: str,
    tokenizer,
    *,
    flag: str,
    path: str,
    max_len: int,
    max_src_len: int,
    is_skip: bool,
    cache_dir: str,
) -> tuple[TokenizedDataset, str]:
    """A tokenised file, and what identifies it: made once per machine, memory-mapped by all of its ranks.

    Args:
        flag: the one that named the file.

    Raises:
        UserError: a record is broken (file:line), or nothing in the file can be learnt.
    """
    vocabulary = base.path / mode.tokenizer_class.vocab_files_names["vocab_file"]
    key = json.dumps([mode.name, mode.template, max_len, max_src_len, vocabulary.stat().st_size, base_fingerprint])
    encode_batch = partial(mode.encode_batch, tokenizer, max_len=max_len, max_src_len=max_src_len)
    tokenize = partial(tokenize_file, path, encode_batch, cache_dir, key=key)
    ranks.work_first(tokenize, ranks.local_rank() == 0)
    directory = tokenize()  # done already: every rank only asks where it is
    dataset = TokenizedDataset(directory, path)
    samples, cut = len(dataset), int(dataset.truncated.sum())
    if is_skip:
        dataset = dataset.select((~dataset.truncated).nonzero()[0])
    ranks.say(
        f"--{flag} {path}: {samples:,} samples, {cut:,} over --max_len {max_len} or --max_src_len {max_src_len} "
        f"{'dropped' if is_skip else 'cut'}; {int(dataset.lengths.sum()):,} tokens, "
        f"{int(dataset.supervised.sum()):,} of them supervised"
    )
    if not len(dataset):
        raise UserError(f"--is_skip dropped all {samples} samples of {path}: raise --max_len or --max_src_len.")
    return dataset, f"{directory.name[:16]}{' without what is cut' if is_skip else ''}"


def make_training_set(open_dataset: Callable, *, train_path, replay_path, replay_ratio, is_skip, seed) -> tuple:
    """The training set, records to replay mixed in, and what identifies it."""
    dataset, data_id = open_dataset(flag="train_path", path=train_path, is_skip=is_skip)
    if not replay_path:
        return dataset, data_id
    replay, replay_id = open_dataset(flag="replay_path", path=replay_path, is_skip=is_skip)
    mixed = mix(dataset, replay, replay_ratio, seed)
    added = len(mixed) - len(dataset)
    ranks.say(f"of the {len(replay):,} records to replay, {added:,} are mixed in")
    return mixed, f"{data_id} and {added} of {replay_id}"
