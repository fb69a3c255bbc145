"""Select the tokens whose output is needed: in the last block, only these pass the projections after attention.

`keep` holds the numbers of tokens, counted through all rows of a batch: int64 [c, m]. None is all of them.

Shapes: b batch, s sequence, h hidden.
"""

import torch


def keep_only(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """The tokens `keep` [c, m] of [b, s, h]: [c, m, h]."""
    return x if keep is None else x.flatten(0, 1).index_select(0, keep.flatten()).view(*keep.shape, x.shape[-1])


def keep_of_logits(tokens: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor | None:
    """Convert `logits_to_keep` of transformers' generation for `tokens` [b, s, …] to `keep` [b, m].

    Args:
        logits_to_keep: number of last positions of each row (0: all), or their indices.
    """
    b, s = tokens.shape[:2]
    if s == 1 or (isinstance(logits_to_keep, int) and logits_to_keep == 0):
        return None
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return torch.arange(b * s, device=tokens.device).view(b, s)[:, kept]


def keep_behind_prefix(keep: torch.Tensor | None, x: torch.Tensor, index: torch.Tensor | slice) -> torch.Tensor | None:
    """`keep`, renumbered for rows with a prefix before the tokens.

    Args:
        x: [b, s', h], with prefix. index: where the tokens are in the second dimension.
    """
    if keep is None:
        return None
    return torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2])[:, index].flatten()[keep]
