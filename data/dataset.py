"""What every set of rows offers to the plan, the DataLoader and the loop: `Dataset`.

TokenizedDataset (data/tokenize.py) has one file's rows, MixedDataset (data/mixing.py) those of several, FeatureDataset
(data/features.py) adds what goes into a block of the model.
"""

from typing import NotRequired, Protocol, TypedDict

import numpy as np
import torch


class Sample(TypedDict):
    """A row. labels: -100 where nothing is supervised. features: what goes into a block, of a FeatureDataset alone."""

    input_ids: np.ndarray  # int64 [s]
    labels: np.ndarray  # int64 [s]
    features: NotRequired[torch.Tensor]  # [s, h]


class Dataset(Protocol):
    """Rows by their number."""

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
