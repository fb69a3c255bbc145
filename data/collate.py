"""Concatenate the samples of a micro-batch in one row, with shared prompt prefixes only once.

There is no padding. Samples with the same first tokens, such as a common instruction, share them: these tokens are in
the row once, and each sample's own tokens attend to them and to themselves. Every token attends to the same tokens at
the same positions as in a row of its own, so loss and gradient are equal up to floating-point rounding (and dropout
draws once for a shared token). Models with a bidirectional prompt cannot share anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data.dataset import Sample
from data.tokenize import IGNORE

# ids [s] -> (position ids [s] or [2, s], number of first tokens with bidirectional attention)
Layout = Callable[[np.ndarray], tuple[np.ndarray, int]]
MIN_SHARED = 8  # tokens; below this another segment costs more than it saves
MIN_SHARE = 1 / 32  # fraction of the longest row; the tokens after a shared part need a mask in attention


def collate(
    samples: Sequence[Sample], layout: Layout, share_prompts: bool = True, first_block: int = 0
) -> dict[str, Any]:
    """Concatenate samples in one row of T tokens, at most their total.

    Args:
        samples: dicts of "input_ids" and "labels", integer arrays [s_i].
        layout: ids [s] -> (position ids [s] or [2, s], number of first tokens with bidirectional attention).
        share_prompts: whether a common prefix is in the row once.
        first_block: if not 0, samples also have "features" [s_i, h], the input of this block of the model.

    Returns:
        {"input_ids": int64 [1, T], "labels": int64 [1, T], -100 for unsupervised tokens and each segment's first token,
        "supervised": int64 [m], positions of the others, "position_ids": int64 [1, T] or [1, 2, T],
        "segments": [(length, parent, visible), …]}. A segment attends to its parent, if that is not -1, and to itself:
        its first `visible` tokens bidirectionally, the others causally. With features also {"inputs_embeds": [1, T, h],
        "first_block": int}.
    """
    pieces, batch = arrange(samples, layout, share_prompts)
    labels = [np.array(samples[i]["labels"][start:end]) for i, start, end in pieces]
    for part in labels:
        part[0] = IGNORE  # the previous token in the row is not its predecessor
    row = _row(labels)
    batch |= {"labels": row, "supervised": (row[0] != IGNORE).nonzero()[:, 0]}
    if first_block:
        features = torch.cat([samples[i]["features"][start:end] for i, start, end in pieces])
        batch |= {"inputs_embeds": features[None], "first_block": first_block}
    return batch


def arrange(
    samples: Sequence[Sample], layout: Layout, share_prompts: bool
) -> tuple[list[tuple[int, int, int]], dict[str, Any]]:
    """The layout of a row: (sample, first token, end) of each segment, and a batch without labels.

    A sample consists of the tokens of the segment's parent, if any, and its own. Nothing is shared with bidirectional
    attention. Arguments, "input_ids", "position_ids" and "segments" as in `collate`.
    """
    ids = [np.asarray(sample["input_ids"]) for sample in samples]
    layouts = [layout(row) for row in ids]
    shares = share_prompts and len(samples) > 1 and not any(visible for _, visible in layouts)
    groups = group_by_prompt(samples) if shares else [([i], 0) for i in range(len(samples))]
    pieces: list[tuple[int, int, int]] = []
    segments: list[tuple[int, int, int]] = []
    for members, shared in groups:
        parent = -1
        if shared:
            parent = len(segments)
            pieces.append((members[0], 0, shared))
            segments.append((shared, -1, 0))
        for i in members:
            pieces.append((i, shared, len(ids[i])))
            segments.append((len(ids[i]) - shared, parent, layouts[i][1]))
    return pieces, {
        "input_ids": _row([ids[i][start:end] for i, start, end in pieces]),
        "position_ids": _row([layouts[i][0][..., start:end] for i, start, end in pieces]),
        "segments": segments,
    }


def _row(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts, axis=-1).astype(np.int64))[None]


def group_by_prompt(samples: Sequence[Sample]) -> list[tuple[list[int], int]]:
    """Group samples by common prefixes: [(indices, number of shared first tokens), …].

    Greedy, in lexicographic order: a sample joins the previous group if that saves more tokens than it loses. The
    shared part and the token after it belong to the prompt, so that each label is predicted within its own sample.
    """
    rows = [np.asarray(sample["input_ids"]) for sample in samples]
    limits = []
    for sample in samples:
        supervised = np.flatnonzero(np.asarray(sample["labels"][1:]) != IGNORE)
        limits.append(int(supervised[0]) if len(supervised) else len(sample["labels"]) - 1)
    least = max(MIN_SHARED, int(MIN_SHARE * max(map(len, rows), default=0)))
    groups: list[tuple[list[int], int]] = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i].tolist()):
        if groups:
            members, shared = groups[-1]
            common = min(shared, limits[i], common_length(rows[members[-1]], rows[i]))
            if common >= least and len(members) * common >= (len(members) - 1) * shared:
                groups[-1] = ([*members, i], common)
                continue
        groups.append(([i], limits[i]))
    return [(members, shared if len(members) > 1 else 0) for members, shared in groups]


def common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common prefix of two rows."""
    shorter = min(len(first), len(second))
    different = first[:shorter] != second[:shorter]
    return int(different.argmax()) if different.any() else shorter


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to a device; other values stay on the CPU, so that reading them needs no GPU wait."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
