"""The samples of a micro-batch -> one row in which they lie end to end, what they have in common only once.

There is no padding. Samples whose first tokens are the same, as those of a common instruction, share these: they stand
in front once, and each sample's own tokens see them and themselves. A token sees the same tokens at the same positions
as in a row of its own, so loss and gradient are the same, but for the noise of float sums (and dropout draws once for a
shared token). A model whose prompt sees itself in both directions has nothing to share.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data.dataset import Sample
from data.tokenize import IGNORE

# ids [s] -> (position ids [s] or [2, s], how many of the first tokens see one another both ways)
Layout = Callable[[np.ndarray], tuple[np.ndarray, int]]
MIN_SHARED = 8  # tokens: below that another segment costs more than it saves
MIN_SHARE = 1 / 32  # of the longest row: what stands behind a shared part is attended to under a mask


def collate(
    samples: Sequence[Sample], layout: Layout, share_prompts: bool = True, first_block: int = 0
) -> dict[str, Any]:
    """One row of T tokens; T is at most the samples' tokens.

    Args:
        samples: dicts of "input_ids" and "labels", integer arrays [s_i].
        layout: ids [s] -> (position ids [s] or [2, s], how many of the first tokens see one another both ways).
        share_prompts: whether a common beginning stands in the row once.
        first_block: where it is not 0, samples have "features" too, [s_i, h]: what goes into this block of the model.

    Returns:
        {"input_ids": int64 [1, T], "labels": int64 [1, T], -100 where nothing is learnt and at each segment's first
        token, "supervised": int64 [m], where something is learnt, "position_ids": int64 [1, T] or [1, 2, T],
        "segments": [(length, parent, visible), …]}. A segment sees its parent, if that is not -1, and itself: its first
        `visible` tokens both ways, the others causally. With features also {"inputs_embeds": [1, T, h], "first_block":
        int}.
    """
    pieces, batch = arrange(samples, layout, share_prompts)
    labels = [np.array(samples[i]["labels"][start:end]) for i, start, end in pieces]
    for part in labels:
        part[0] = IGNORE  # what stands in front of it in the row is not what comes before it
    row = _row(labels)
    batch |= {"labels": row, "supervised": (row[0] != IGNORE).nonzero()[:, 0]}
    if first_block:
        features = torch.cat([samples[i]["features"][start:end] for i, start, end in pieces])
        batch |= {"inputs_embeds": features[None], "first_block": first_block}
    return batch


def arrange(
    samples: Sequence[Sample], layout: Layout, share_prompts: bool
) -> tuple[list[tuple[int, int, int]], dict[str, Any]]:
    """How samples lie in a row: (sample, first token, end) of each segment, and a batch without what is learnt.

    The tokens of a sample are those of the segment's parent, if any, and its own; nothing is shared if any tokens see
    one another both ways. Arguments, "input_ids", "position_ids" and "segments" as in `collate`.
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
    """Samples by common beginnings: [(indices, how many of their first tokens are shared), …].

    Greedy, in lexicographic order: a sample joins the group before it where that saves more tokens than it loses. All
    of a shared part is prompt, and so is the token behind it: who predicts a label belongs to one sample.
    """
    rows = [np.asarray(sample["input_ids"]) for sample in samples]
    limits = []
    for sample in samples:
        learnt = np.flatnonzero(np.asarray(sample["labels"][1:]) != IGNORE)
        limits.append(int(learnt[0]) if len(learnt) else len(sample["labels"]) - 1)
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
    """How many tokens two rows begin with alike."""
    shorter = min(len(first), len(second))
    different = first[:shorter] != second[:shorter]
    return int(different.argmax()) if different.any() else shorter


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors of a batch on a device; what is no tensor stays, so that nobody waits for a GPU to read it."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
