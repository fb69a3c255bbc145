"""Attention: of rectangular batches through transformers' interface, of samples that lie end to end by segments.

Shapes: b batch, s query length, t key length, n query heads, g key/value heads, d head size, p key/value prefix.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Segments(NamedTuple):
    """Samples that lie end to end in one row, and what their tokens see.

    layout: (length, parent, visible) of each: it sees its parent segment (-1: none) and itself, its first `visible`
    tokens both ways, the others causally; and a key/value prefix of its own, where there is one.
    masks: bool [1, 1, length - visible, keys] of each; None where plain causal attention says the same.
    """

    layout: list[tuple[int, int, int]]
    masks: list[torch.Tensor | None]


def make_segments(layout, prefix_length: int, device) -> Segments:
    """The masks of all segments, which are the same in every layer.

    Args:
        prefix_length: p.
    """
    masks = []
    for length, parent, visible in layout:
        before = prefix_length + (layout[parent][0] if parent >= 0 else 0)
        queries, keys = length - visible, before + length
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        masks.append(mask if queries and keys > queries else None)
    return Segments(layout, masks)


def attend(module, query, key, value, mask, prefix_key=None, prefix_value=None, cache=None):
    """Scaled dot-product attention with the backend in `module.config` (sdpa, eager, flash or flex).

    Args:
        module: the attention module; has `config`, `layer_idx`, `num_key_value_groups` (n // g) and `is_causal`.
        query: [b, n, s, d]. key, value: [b, g, s, d]; query head i reads key/value head i // (n // g).
        mask: what transformers' `create_causal_mask` made for this backend; None means plain causal. Or Segments,
            with b = 1: these are always attended to by torch's sdpa, one by one, so that no work is masked away.
        prefix_key, prefix_value: [b or segments, g, p, d], in front of the keys; or None.
        cache: transformers' cache, which the keys are added to; or None.

    Returns: [b, s, n * d].
    """
    b, n, s, d = query.shape
    if isinstance(mask, Segments):
        return _attend_segments(query, key, value, mask, prefix_key, prefix_value).reshape(b, s, n * d)
    if prefix_key is not None:
        key = torch.cat([prefix_key, key], dim=2)  # [b, g, p + s, d]
        value = torch.cat([prefix_value, value], dim=2)
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx)  # [b, g, t, d]
    implementation = module.config._attn_implementation
    if implementation == "sdpa" and mask is not None and module.num_key_value_groups > 1 and s > 1:
        # transformers' own function repeats keys and values when there is a mask; an expanded view needs no copy.
        output = _masked_grouped_sdpa(query, key, value, mask)
    else:
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        output, _ = function(module, query, key, value, mask, dropout=0.0, scaling=d**-0.5)
    return output.reshape(b, s, n * d)


def _attend_segments(query, key, value, segments, prefix_key, prefix_value):
    """Attention of each segment by itself: query [1, n, s, d], key and value [1, g, s, d]. Returns [1, s, n, d]."""
    grouped = query.shape[1] > key.shape[1]
    lengths = [length for length, _, _ in segments.layout]
    parts = [part for length, _, visible in segments.layout for part in (visible, length - visible) if part]
    queries = iter(query.split(parts, dim=2))  # one split: slices would each have a gradient as long as the row
    # values would be a view that keeps the whole projection alive for backward
    keys, values = key.split(lengths, dim=2), value.contiguous().split(lengths, dim=2)
    outputs = []
    for i, (length, parent, visible) in enumerate(segments.layout):
        seen = [(keys[j], values[j]) for j in (parent, i) if j >= 0]
        if prefix_key is not None:
            seen.insert(0, (prefix_key[i : i + 1], prefix_value[i : i + 1]))
        seen_keys, seen_values = (
            torch.cat(both, dim=2) if len(both) > 1 else both[0] for both in zip(*seen, strict=True)
        )
        if visible:
            both_ways = seen_keys.shape[2] - length + visible
            part = F.scaled_dot_product_attention(
                next(queries), seen_keys[:, :, :both_ways], seen_values[:, :, :both_ways], enable_gqa=grouped
            )
            outputs.append(part.transpose(1, 2))
        if visible == length:
            continue
        part, mask = next(queries), segments.masks[i]
        if mask is None:
            part = F.scaled_dot_product_attention(part, seen_keys, seen_values, is_causal=True, enable_gqa=grouped)
            outputs.append(part.transpose(1, 2))
        else:
            outputs.append(_masked_grouped_sdpa(part, seen_keys, seen_values, mask))
    return torch.cat(outputs, dim=1)


def _masked_grouped_sdpa(query, key, value, mask):
    """Grouped attention under a mask [b, 1, s, t]; query heads share views of key and value. Returns [b, s, n, d]."""
    b, n, s, d = query.shape
    g, t = key.shape[1], key.shape[2]
    if query.device.type == "cpu":
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return output.transpose(1, 2)
    # On CUDA, enable_gqa with a mask falls back to a kernel that writes out all scores; the memory-efficient one
    # reads views whose head stride is 0.
    query = query.reshape(b * g, n // g, s, d)
    key = key.reshape(b * g, 1, t, d).expand(-1, n // g, -1, -1)
    value = value.reshape(b * g, 1, t, d).expand(-1, n // g, -1, -1)
    mask = mask.expand(b, g, s, t).reshape(b * g, 1, s, t)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [b * g, n / g, s, d]
    return output.reshape(b, n, s, d).transpose(1, 2)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, with an additive mask and a float32 softmax; signature as transformers' interface asks.

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
