"""Two-dimensional positions of ChatGLM-6B, computed from the input ids on the device.

Prompt tokens, including [gMASK], have positions 0, 1, 2 … and block position 0. The answer begins with <sop>:
its tokens all have the position of their mask token, and block positions 1, 2, 3 …

Shapes: b batch, s sequence.
"""

from collections.abc import Sequence

import numpy as np
import torch

from modes.config import Config


def from_ids(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, config: Config) -> torch.Tensor:
    """Positions of whole sequences.

    The answer begins at the first <sop> directly after [gMASK] or [MASK], so that a <sop> in a user's text does
    not count. Without such a pair the official rule applies (the first <sop>; the first [gMASK], else the
    first [MASK]); without any <sop> everything is prompt.

    Args:
        input_ids: [b, s]. attention_mask: [b, s] with 0 for left padding, which is not counted; or None.

    Returns: [b, 2, s]; row 0 position, row 1 block position.
    """
    b, s = input_ids.shape
    index = torch.arange(s, device=input_ids.device).expand(b, s)
    padding = torch.zeros(b, 1, dtype=torch.long, device=input_ids.device)
    if attention_mask is not None:
        padding = attention_mask.long().argmax(dim=-1, keepdim=True)  # index of the first real token, [b, 1]

    gmask = input_ids == config.gmask_token_id
    mask = input_ids == config.mask_token_id
    sop = input_ids == config.bos_token_id
    behind_mask = torch.zeros_like(sop)
    behind_mask[:, 1:] = sop[:, 1:] & (gmask | mask)[:, :-1]
    paired = behind_mask.any(dim=-1, keepdim=True)  # [b, 1]
    begun = torch.where(paired, behind_mask, sop).cumsum(dim=-1) > 0  # [b, s]

    start = begun.long().argmax(dim=-1, keepdim=True)  # [b, 1], index of <sop>
    first_mask = torch.where(gmask.any(dim=-1, keepdim=True), gmask, mask).long().argmax(dim=-1, keepdim=True)
    mask_index = torch.where(paired, start - 1, first_mask)

    position = torch.where(begun, mask_index, index) - padding
    block = torch.where(begun, index - start + 1, 0)
    return torch.stack([position.clamp(min=0), block], dim=1)


def layout(config: Config, input_ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, int]:
    """(position ids [2, s], number of prompt tokens, which have bidirectional attention) of ids [s], as arrays."""
    position_ids = from_ids(torch.from_numpy(np.asarray(input_ids, np.int64))[None], None, config)[0].numpy()
    return position_ids, int((position_ids[1] == 0).sum())


def following(position_ids: torch.Tensor, count: int) -> torch.Tensor:
    """Positions [b, 2, count] of the tokens generated after those of `position_ids` [b, 2, s]."""
    position, block = position_ids[:, 0, -1:], position_ids[:, 1, -1:]  # [b, 1] each
    steps = torch.arange(1, count + 1, device=position_ids.device)
    begun = (block > 0).long()
    return torch.stack([position + steps * (1 - begun), block + steps * begun], dim=1)
