"""Mix general records into the task's records, to reduce forgetting."""

import numpy as np

from data.dataset import Sample
from data.tokenize import TokenizedDataset


class MixedDataset:
    """Concatenated rows of several datasets, read like one TokenizedDataset."""

    def __init__(self, parts: list[TokenizedDataset]):
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.supervised = np.concatenate([part.supervised for part in parts])
        self.truncated = np.concatenate([part.truncated for part in parts])
        self.empty = np.concatenate([part.empty for part in parts])
        self.lines = np.concatenate([part.lines for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, index: int) -> tuple[TokenizedDataset, int]:
        """The part of a row, and the row's number in it."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part], index - int(self.ends[part]) + len(self.parts[part])

    def select(self, indices: np.ndarray | list[int]) -> "MixedDataset":
        """The rows at `indices`, part by part."""
        indices = np.asarray(indices, np.int64)
        starts = self.ends - np.array([len(part) for part in self.parts])
        chosen = [indices[(indices >= a) & (indices < b)] - a for a, b in zip(starts, self.ends, strict=True)]
        return MixedDataset([part.select(rows) for part, rows in zip(self.parts, chosen, strict=True)])

    def __getitem__(self, index: int) -> Sample:
        part, row = self.locate(index)
        return part[row]

    def place(self, index: int) -> str:
        """file:line of a row."""
        part, row = self.locate(index)
        return part.place(row)


def mix(task: TokenizedDataset, replay: TokenizedDataset, ratio: float, seed: int) -> MixedDataset:
    """`task`, followed by the rows of `replay` that `choose_rows` selects."""
    return MixedDataset([task, replay.select(choose_rows(len(task), len(replay), ratio, seed))])


def choose_rows(task: int, replay: int, ratio: float, seed: int) -> np.ndarray:
    """Choose the `replay` rows to mix into `task` rows: round(ratio * task), at least 1; all before any is repeated.

    Depends only on the seed: every rank and every resumed run chooses the same rows.
    """
    order = np.random.default_rng([seed % 2**32, 1]).permutation(replay)
    return np.resize(order, max(round(ratio * task), 1))


def mixed_rows(task: int, replay: list[int], ratio: float, seed: int) -> np.ndarray:
    """The rows of `mix` for datasets of these lengths, numbered through `task` and then every part of `replay`.

    Without replay only rows of the task.
    """
    task_rows = np.arange(task)
    if not task or not sum(replay):
        return task_rows
    chosen = choose_rows(task, sum(replay), ratio, seed)
    by_part = np.argsort(np.searchsorted(np.cumsum(replay), chosen, side="right"), kind="stable")
    return np.concatenate([task_rows, task + chosen[by_part]])
