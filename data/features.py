"""The input of a block of the model for every token of a dataset, in a memory-mapped file."""

import os
from pathlib import Path

import numpy as np
import torch

from data.dataset import Dataset, Sample


class FeatureDataset:
    """Rows of a dataset with their "features" [s, h].

    Args:
        path: the file, created in its full size if it does not exist. Values are in row order.
        hidden_size: h. dtype: of the values.
    """

    def __init__(
        self,
        dataset: Dataset,
        path: str | os.PathLike,
        hidden_size: int,
        dtype: torch.dtype,
    ):
        self.dataset = dataset
        self.lengths, self.supervised, self.place = dataset.lengths, dataset.supervised, dataset.place
        self._starts = np.cumsum(dataset.lengths) - dataset.lengths
        values = int(dataset.lengths.sum()) * hidden_size
        self.features = torch.from_file(str(path), shared=True, size=values, dtype=dtype).view(-1, hidden_size)

    def __len__(self) -> int:
        return len(self.dataset)

    def of(self, index: int) -> torch.Tensor:
        """The features [s, h] of a row, to read or to write."""
        return self.features[self._starts[index] : self._starts[index] + self.lengths[index]]

    def __getitem__(self, index: int) -> Sample:
        return {**self.dataset[index], "features": self.of(index)}


def feature_bytes(dataset: Dataset, hidden_size: int, dtype: torch.dtype) -> int:
    """Size of the file of a dataset's features."""
    return int(dataset.lengths.sum()) * hidden_size * dtype.itemsize


def describe_features(tokens: int, hidden_size: int, value_bytes: int) -> str:
    """The size of a file of features, and its factors."""
    size = tokens * hidden_size * value_bytes
    return f"{tokens:,} tokens × {hidden_size:,} values × {value_bytes} bytes = {size / 1e9:,.3f} GB"


def is_whole(path: Path, size: int) -> bool:
    """Whether a complete file of features exists. It gets its name when it is complete."""
    return path.is_file() and path.stat().st_size == size
