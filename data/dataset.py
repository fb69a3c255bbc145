"""`Dataset`, the interface of all datasets for the plan, the batches and the loop.

TokenizedDataset (data/tokenize.py) has one file's rows, MixedDataset (data/mixing.py) those of several, FeatureDataset
(data/features.py) adds the input of a block of the model.
"""

from typing import NotRequired, Protocol, TypedDict

import numpy as np
import torch


class Sample(TypedDict):
    """A row. labels: -100 for unsupervised tokens. features: the input of a block, only in a FeatureDataset."""

    input_ids: np.ndarray  # int64 [s]
    labels: np.ndarray  # int64 [s]
    features: NotRequired[torch.Tensor]  # [s, h]


class Dataset(Protocol):
    """Rows by number."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each row."""
        ...

    @property
    def supervised(self) -> np.ndarray:
        """int64 [n], tokens of each row that count in the loss."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def place(self, index: int) -> str:
        """file:line of a row."""
        ...
