"""Rows of different lengths -> one rectangular batch."""

import numpy as np
import torch

from data.tokenize import IGNORE


def collate(samples: list[dict], pad_id: int, multiple: int = 8) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest row, rounded up to a multiple of `multiple`.

    The models are causal and a padded position's label is -100, so what stands behind a row changes nothing and no
    attention mask is needed.

    Args:
        samples: dicts of "input_ids" and "labels", integer arrays or lists [s_i].
        pad_id: token at padded positions.
        multiple: the width becomes a multiple of it (tensor cores like 8); 1 for none.

    Returns:
        {"input_ids": int64 [b, s], "labels": int64 [b, s], -100 where nothing is learnt}
    """
    longest = max(len(sample["input_ids"]) for sample in samples)
    width = -(-longest // multiple) * multiple
    input_ids = np.full((len(samples), width), pad_id, np.int64)
    labels = np.full((len(samples), width), IGNORE, np.int64)
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        input_ids[row, :length] = sample["input_ids"]
        labels[row, :length] = sample["labels"]
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
