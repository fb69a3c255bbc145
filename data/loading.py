"""Which rank trains on which sample, and when.

An epoch is planned before it starts, as a list of optimizer steps. `world_size * micro_batch_size * accumulation`
consecutive samples of the shuffled order are one step, whatever the three factors are: 4 x 1, 1 x 4 and 2 ranks x 2
train on the same samples in the same step. The order within a step does not matter, because the loss is a mean over its
tokens: samples are sorted by length, so that all ranks get micro-batches of similar length.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from data.collate import Layout, collate
from data.dataset import Dataset, Sample
from data.packing import pack
from data.tokenize import IGNORE

Item = TypeVar("Item")
Result = TypeVar("Result")
Batch = dict[str, Any]  # the result of `data.collate.collate`
AHEAD = 2  # micro-batches that each background thread prepares in advance
FILLER = -1  # in a plan: an unsupervised sample, so that all ranks run the same number of passes


@dataclass(frozen=True)
class Step:
    """One optimizer step, with the micro-batches of this rank.

    micro_batches: this rank's samples, a list per forward pass; the same number on every rank; [FILLER] if none.
    num_items: supervised tokens of the whole step: all micro-batches of all ranks.
    num_tokens: tokens of the whole step without padding.
    num_samples: samples of the whole step. num_rows: packed rows (--packing), else the samples.
    """

    micro_batches: list[list[int]]
    num_items: int
    num_tokens: int
    num_samples: int
    num_rows: int


def plan_epoch(
    lengths: np.ndarray,
    supervised: np.ndarray,
    *,
    epoch: int,
    seed: int,
    micro_batch_size: int,
    accumulation: int,
    world_size: int,
    rank: int,
    skip: int = 0,
    row_length: int | None = None,
) -> list[Step]:
    """The optimizer steps of one epoch for one rank: every sample exactly once over all ranks.

    The order depends only on (seed, epoch). The last step may be smaller: it has as few micro-batches as its samples
    need, the same number on every rank.

    Args:
        lengths: int [n], tokens per sample.
        supervised: int [n], supervised tokens per sample.
        micro_batch_size: samples of a micro-batch; with `row_length`, rows of samples.
        skip: samples of the epoch that were trained on before, in steps of any size.
        row_length: maximum tokens of a packed row (--packing); None for one sample per row.
    """
    assert 0 <= rank < world_size and len(lengths) == len(supervised)
    lengths, supervised = np.asarray(lengths), np.asarray(supervised)
    order = np.random.default_rng([seed % 2**32, epoch]).permutation(len(lengths))
    if row_length is None:
        rows, order = order[skip:, None].tolist(), order[skip:]
    else:
        rows = pack(lengths, order, row_length, np.random.default_rng([seed % 2**32, epoch, 1]))
        rows = rows[np.searchsorted(np.cumsum([len(row) for row in rows]), skip, side="right") :]
        order = np.array([i for row in rows for i in row], np.int64)
    if not rows:
        return []
    size = world_size * micro_batch_size * accumulation
    first = np.cumsum([0, *map(len, rows[:-1])])  # of each row in `order`
    tokens = np.add.reduceat(lengths[order], first, dtype=np.int64).tolist()
    num_items = np.add.reduceat(supervised[order], first[::size], dtype=np.int64).tolist()

    steps = []
    for k, start in enumerate(range(0, len(rows), size)):
        # longest first: if memory is too small, the first pass of the first step fails
        group = sorted(range(start, min(start + size, len(rows))), key=lambda row: -tokens[row])
        passes = -(-len(group) // (world_size * micro_batch_size))
        slices = _split([rows[row] for row in group], passes * world_size)
        num_tokens, num_samples = sum(tokens[row] for row in group), sum(len(rows[row]) for row in group)
        steps.append(Step(slices[rank::world_size], num_items[k], num_tokens, num_samples, len(group)))
    return steps


def _split(group: list[list[int]], parts: int) -> list[list[int]]:
    """Split the rows of `group` into `parts` consecutive parts whose numbers of rows differ by at most one.

    Returns the samples of each part; a filler for an empty one.
    """
    small, larger = divmod(len(group), parts)
    pieces, at = [], 0
    for part in range(parts):
        count = small + (part < larger)
        pieces.append([i for row in group[at : at + count] for i in row] or [FILLER])
        at += count
    return pieces


def prepare(dataset: Dataset, shortest: int, collate_fn: Callable[[Sequence[Sample]], Batch], rows: list[int]) -> Batch:
    """Collate rows on the CPU; in pinned memory if there is a GPU.

    Args:
        shortest: the row used for FILLER, without labels.
    """
    samples: list[Sample] = []
    for row in rows:
        sample = dataset[shortest if row == FILLER else row]
        samples.append({**sample, "labels": np.full_like(sample["labels"], IGNORE)} if row == FILLER else sample)
    batch = collate_fn(samples)
    if not torch.cuda.is_available():
        return batch
    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _start_thread(gpu: int | None) -> None:
    """Set up a background thread, which otherwise uses GPU 0 and as many OpenMP threads as the main thread."""
    torch.set_num_threads(1)
    if gpu is not None:
        torch.cuda.set_device(gpu)


def map_ahead(work: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Generator[Result, None, None]:
    """Like map(work, items), computed in advance by background threads.

    The results keep the order of the items; at most `AHEAD` per thread are waiting. Exceptions of `work` are raised
    here, in order. The threads end with the iterator: at its end, at an exception, or when it is closed.

    Args:
        num_threads: 0 computes each result in this thread, when it is requested.
    """
    if num_threads == 0:
        yield from map(work, items)
        return
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    waiting: deque[Future] = deque()
    threads = ThreadPoolExecutor(num_threads, "batches", _start_thread, (gpu,))
    try:
        for item in items:
            waiting.append(threads.submit(work, item))
            if len(waiting) > AHEAD * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def batches(
    dataset: Dataset,
    plan: list[Step],
    collate_fn: Callable[[Sequence[Sample]], Batch],
    *,
    first_step: int = 0,
    num_workers: int = 0,
) -> Iterator[tuple[Step, Iterator[Batch]]]:
    """Iterate over (step, iterator over the step's micro-batches on the CPU), from `first_step` of the plan on.

    Micro-batches that the caller does not read are dropped before the next step. Pinned memory only with a GPU.

    Args:
        num_workers: background threads that prepare micro-batches in advance; see `map_ahead`. They draw no random
            numbers, so dropout and losses are the same for any number of threads. They are not processes, which would
            receive the signals that stop a run, and share the memory of an offloaded optimizer copy-on-write.
    """
    plan = plan[first_step:]
    if not plan:
        return
    shortest = int(np.argmin(dataset.lengths))

    def micro_batch(rows: list[int]) -> Batch:
        return prepare(dataset, shortest, collate_fn, rows)

    loader = map_ahead(micro_batch, (rows for step in plan for rows in step.micro_batches), num_workers)
    try:
        for step in plan:
            micro_batches = islice(loader, len(step.micro_batches))
            yield step, micro_batches
            for _ in micro_batches:
                pass
    finally:
        loader.close()


def group_by_length(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, so that too little memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class Batches:
    """Converts the rows of a plan to micro-batches.

    layout: ids [s] -> (position ids, number of first tokens with bidirectional attention), see `collate`.
    share_prompts: whether a common prompt prefix is in a row once.
    num_workers: background threads, see `batches`.
    first_block: the block where training starts, if rows have features; else 0.
    """

    layout: Layout
    share_prompts: bool
    num_workers: int
    first_block: int = 0

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Concatenate samples in one row."""
        return collate(samples, self.layout, self.share_prompts, self.first_block)

    def read(self, dataset: Dataset, plan: list[Step]) -> Iterator[tuple[Step, Iterator[Batch]]]:
        """(step, its micro-batches on the CPU) of a plan."""
        return batches(dataset, plan, self.collate, num_workers=self.num_workers)
