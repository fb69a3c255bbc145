"""Attention: of rectangular batches through transformers' interface, of concatenated samples by segments.

Shapes: b batch, s query length, t key length, n query heads, g key/value heads, d head size, p key/value prefix.
"""

from typing import Any, Protocol

import torch
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modes.config import Config
from modes.paged import PagedCache
from modes.segments import Segments, grouped_sdpa


class AttentionModule(Protocol):
    """The attributes of a module that transformers' attention functions read."""

    config: Config
    layer_idx: int
    is_causal: bool
    num_key_value_groups: int  # query heads per key/value head, n // g


def attend(
    module: AttentionModule,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | Segments | None,
    prefix_key: torch.Tensor | None = None,
    prefix_value: torch.Tensor | None = None,
    cache: Cache | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention with the backend in `module.config` (sdpa, eager, flash or flex).

    Args:
        module: the attention module.
        query: [b, n, s, d]. key, value: [b, g, s, d]; query head i reads key/value head i // (n // g).
        mask: the result of transformers' `create_causal_mask` for this backend; None means plain causal. Or Segments,
            with b = 1 and their own implementation.
        prefix_key, prefix_value: [b or segments, g, p, d], before the keys; or None.
        cache: transformers' cache, to which keys and values are appended; or None.

    Returns: [b, s, n * d].
    """
    b, n, s, d = query.shape
    if isinstance(mask, Segments):
        return mask.attend(query, key, value, mask, prefix_key, prefix_value).reshape(b, s, n * d)
    if prefix_key is not None and prefix_value is not None:
        key = torch.cat([prefix_key, key], dim=2)  # [b, g, p + s, d]
        value = torch.cat([prefix_value, value], dim=2)
    implementation = module.config._attn_implementation
    # an attention function other than sdpa writes to the pages itself
    paged = cache.arguments if isinstance(cache, PagedCache) and implementation != "sdpa" else {}
    if cache is not None and not paged:
        key, value = cache.update(key, value, module.layer_idx)  # [b, g, t, d]
    # transformers' own function repeats keys and values if there is a mask, where an expanded view needs no copy; and
    # without a mask it sets `enable_gqa`, for which not every GPU has a fused kernel
    use_grouped = s > 1 if mask is not None else query.device.type == "cuda"
    if implementation == "sdpa" and module.num_key_value_groups > 1 and use_grouped:
        output = grouped_sdpa(query, key, value, mask, is_causal=mask is None and s > 1)
    else:
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        output, _ = function(module, query, key, value, mask, dropout=0.0, scaling=d**-0.5, **paged)
    return output.reshape(b, s, n * d)


def eager_attention(
    module: AttentionModule,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, with an additive mask and a float32 softmax, and the signature of transformers' interface.

    Returns: (output [b, s, n, d], weights [b, n, s, t]).
    """
    b, n, s, d = query.shape
    g, t = key.shape[1], key.shape[2]
    query = query.reshape(b, g, n // g, s, d)
    scores = query @ key.unsqueeze(2).transpose(-1, -2) * scaling  # [b, g, n / g, s, t]
    if attention_mask is not None:
        scores = scores + attention_mask.unsqueeze(2)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = weights @ value.unsqueeze(2)  # [b, g, n / g, s, d]
    return output.reshape(b, n, s, d).transpose(1, 2), weights.reshape(b, n, s, t)
