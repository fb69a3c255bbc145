"""Which sample is learnt when, and by which rank.

An epoch is planned before it starts, as a list of optimiser steps. `world_size * micro_batch_size * accumulation`
consecutive samples of the shuffled order are one step, however that product is made up: 4 x 1, 1 x 4 and 2 ranks x 2
learn the same samples in the same step. Within a step the order is free, because the loss is a mean over its tokens:
the samples are sorted by length, which gives all ranks micro-batches of like length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.packing import pack
from data.tokenize import IGNORE, TokenizedDataset

FILLER = -1  # in a plan: a sample that is computed, so that all ranks do the same number of passes, and not learnt


@dataclass(frozen=True)
class Step:
    """One optimiser step as one rank sees it.

    micro_batches: this rank's samples, a list per forward pass; as many on every rank; [FILLER] where none is left.
    num_items: tokens that count in the loss, of the whole step: all micro-batches of all ranks.
    num_tokens: tokens of the whole step without padding.
    num_samples: samples of the whole step. num_rows: rows that they are packed in (--packing), else the samples.
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
    """The optimiser steps of one epoch for one rank: every sample exactly once over all ranks.

    The order depends on (seed, epoch) only. When the samples do not divide, the last step is smaller: it has as few
    micro-batches as hold its samples, the same number on every rank.

    Args:
        lengths: int [n], tokens per sample.
        supervised: int [n], tokens per sample that count in the loss.
        micro_batch_size: samples of a micro-batch; with `row_length`, rows of samples.
        skip: samples of the epoch that were seen already, in however large steps.
        row_length: tokens that the samples of a row may have together (--packing); None for a sample a row.
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
        # longest first: what does not fit into memory fails in the first step's first pass
        group = sorted(range(start, min(start + size, len(rows))), key=lambda row: -tokens[row])
        passes = -(-len(group) // (world_size * micro_batch_size))
        slices = _split([rows[row] for row in group], passes * world_size)
        num_tokens, num_samples = sum(tokens[row] for row in group), sum(len(rows[row]) for row in group)
        steps.append(Step(slices[rank::world_size], num_items[k], num_tokens, num_samples, len(group)))
    return steps


def _split(group: list[list[int]], parts: int) -> list[list[int]]:
    """The samples of the rows of `group`, in `parts` consecutive pieces whose rows differ by one at most; a filler
    where one is empty."""
    small, larger = divmod(len(group), parts)
    pieces, at = [], 0
    for part in range(parts):
        count = small + (part < larger)
        pieces.append([i for row in group[at : at + count] for i in row] or [FILLER])
        at += count
    return pieces


class _Rows(Dataset):
    """A dataset in which FILLER is a row too: the shortest real one, with nothing to learn."""

    def __init__(self, dataset: TokenizedDataset):
        self.dataset = dataset
        self.shortest = int(np.argmin(dataset.lengths))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index != FILLER:
            return self.dataset[index]
        sample = self.dataset[self.shortest]
        return {**sample, "labels": np.full_like(sample["labels"], IGNORE)}


def batches(
    dataset: TokenizedDataset,
    plan: list[Step],
    collate_fn: Callable[[list[dict]], dict[str, torch.Tensor]],
    *,
    first_step: int = 0,
    num_workers: int = 0,
) -> Iterator[tuple[Step, Iterator[dict[str, torch.Tensor]]]]:
    """Iterate over (step, iterator over the step's micro-batches on the CPU), from `first_step` of the plan on.

    Micro-batches that the caller leaves are read and dropped before the next step. Pinned memory with a GPU only.
    """
    plan = plan[first_step:]
    if not plan:
        return
    loader = iter(
        DataLoader(
            _Rows(dataset),
            batch_sampler=[rows for step in plan for rows in step.micro_batches],
            collate_fn=collate_fn,
            generator=torch.Generator(),  # its own: opening a loader must not move the generator of the dropouts
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )
    )
    for step in plan:
        micro_batches = islice(loader, len(step.micro_batches))
        yield step, micro_batches
        for _ in micro_batches:
            pass
