"""Attention of concatenated samples in one row (b = 1): each sample attends only to itself and its prefix.

A segment is a sample, or a prompt prefix shared by several samples, which have it as their parent. It attends to its
parent (-1: none), to itself (bidirectionally within its first `visible` tokens, else causally) and to its own key/value
prefix, if there is one. A layout is a list of (length, parent, visible).

There are two implementations: torch's sdpa, segment by segment, for every device and precision; and torch's kernel for
sequences of any lengths (flash attention), all segments in one call, for half precision on a GPU.

Shapes: s tokens of the row, n query heads, g key/value heads, d head size, p key/value prefix.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from compatibility import varlen_attention

Layout = list[tuple[int, int, int]]  # (length, parent, visible) of each segment
Prepared = TypeVar("Prepared")  # an implementation's data about a layout, used in every layer


class Segments(NamedTuple, Generic[Prepared]):
    """A layout, an implementation of attention, and its plan for the layout."""

    layout: Layout
    prepared: Prepared
    attend: "Attend[Prepared]"


# (query [1, n, s, d], key and value [1, g, s, d], segments, prefixes [segments, g, p, d] or None) -> [1, s, n, d]
Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Segments[Prepared], torch.Tensor | None, torch.Tensor | None],
    torch.Tensor,
]
# (prepares (layout, p, device), computes attention by it)
Implementation = tuple[Callable[[Layout, int, torch.device], Prepared], Attend[Prepared]]


class Call(NamedTuple):
    """One call of the kernel for sequences of any lengths: query sequence i attends to key sequence i.

    queries: int64, rows of the queries (None: all, in order). keys: rows of the keys, counted after the concatenated
    prefixes. ends_q, ends_k: int32 [sequences + 1], the start of each sequence, and the end of the last. longest_q,
    longest_k: tokens. causal: whether the mask is causal, aligned to the last query and the last key.
    """

    queries: torch.Tensor | None
    keys: torch.Tensor | None
    ends_q: torch.Tensor
    ends_k: torch.Tensor
    longest_q: int
    longest_k: int
    causal: bool


def make_masks(layout: Layout, prefix_length: int, device: torch.device) -> list[torch.Tensor | None]:
    """The masks of all segments: bool [1, 1, length - visible, keys] each, None for plain causal ones."""
    masks: list[torch.Tensor | None] = []
    for length, parent, visible in layout:
        before = prefix_length + (layout[parent][0] if parent >= 0 else 0)
        queries, keys = length - visible, before + length
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        masks.append(mask if queries and keys > queries else None)
    return masks


def attend_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments[list[torch.Tensor | None]],
    prefix_key: torch.Tensor | None,
    prefix_value: torch.Tensor | None,
) -> torch.Tensor:
    """Attention segment by segment with torch's sdpa, without masked work. Returns [1, s, n, d]."""
    lengths = [length for length, _, _ in segments.layout]
    parts = [part for length, _, visible in segments.layout for part in (visible, length - visible) if part]
    queries = iter(query.split(parts, dim=2))  # one split, because each slice would have a gradient as long as the row
    # a view of values would keep the whole projection in memory for backward
    keys, values = key.split(lengths, dim=2), value.contiguous().split(lengths, dim=2)
    if prefix_key is not None or any(parent >= 0 for _, parent, _ in segments.layout):
        keys = _in_front(prefix_key, keys, segments.layout)
        values = _in_front(prefix_value, values, segments.layout)
    outputs = []
    for i, (length, _, visible) in enumerate(segments.layout):
        if visible:
            both_ways = keys[i].shape[2] - length + visible
            outputs.append(grouped_sdpa(next(queries), keys[i][:, :, :both_ways], values[i][:, :, :both_ways]))
        if visible < length:
            mask = segments.prepared[i]
            outputs.append(grouped_sdpa(next(queries), keys[i], values[i], mask, is_causal=mask is None))
    return torch.cat(outputs, dim=1)


def _in_front(prefix: torch.Tensor | None, parts: Sequence[torch.Tensor], layout: Layout) -> tuple[torch.Tensor, ...]:
    """Keys of each segment, [1, g, tokens, d], as views of one copy: its prefix, its parent and itself."""
    seen: list[torch.Tensor] = []
    sizes: list[int] = []
    for i, (_, parent, _) in enumerate(layout):
        pieces = [] if prefix is None else [prefix[i : i + 1]]
        pieces += [parts[j] for j in (parent, i) if j >= 0]
        seen += pieces
        sizes.append(sum(piece.shape[2] for piece in pieces))
    return torch.cat(seen, dim=2).split(sizes, dim=2)


def grouped_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """torch's sdpa of query [b, n, s, d] and key and value [b, g, t, d], mask [b, 1, s, t]. Returns [b, s, n, d]."""
    n, g = query.shape[1], key.shape[1]
    capability = torch.cuda.get_device_capability(query.device) if query.device.type == "cuda" else None
    if g == n or takes_groups(query.device.type, query.dtype, capability, g, masked=mask is not None):
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=g < n
        )
        return output.transpose(1, 2)
    return expanded_sdpa(query, key, value, mask, is_causal)


def flash_runs(device_type: str, dtype: torch.dtype, capability: tuple[int, int] | None) -> bool:
    """Whether torch's flash attention is available: half precision on an NVIDIA GPU since Ampere.

    Args:
        capability: (major, minor) of the GPU; None for other devices.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    return device_type == "cuda" and half and capability is not None and capability >= (8, 0)


def takes_groups(
    device_type: str, dtype: torch.dtype, capability: tuple[int, int] | None, groups: int, masked: bool
) -> bool:
    """Whether sdpa is fast with `enable_gqa`, if there are more query heads than the `groups` key/value heads.

    On a CPU its backward uses one thread per key/value head. On a GPU only flash attention supports groups, and it
    accepts no mask; otherwise torch falls back to the kernel that materializes all scores.
    """
    if device_type == "cpu":
        return groups >= torch.get_num_threads()
    return flash_runs(device_type, dtype, capability) and not masked


def expanded_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """As `grouped_sdpa`, with groups as rows of a batch, where all query heads read one view with head stride 0."""
    b, n, s, d = query.shape
    g, t = key.shape[1], key.shape[2]
    query = query.reshape(b * g, n // g, s, d)
    key = key.reshape(b * g, 1, t, d).expand(-1, n // g, -1, -1)
    value = value.reshape(b * g, 1, t, d).expand(-1, n // g, -1, -1)
    if mask is not None and b > 1:
        mask = mask.expand(b, g, s, t).reshape(b * g, 1, s, t)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
    return output.reshape(b, n, s, d).transpose(1, 2)  # from [b * g, n / g, s, d]


def make_calls(layout: Layout, prefix_length: int, device: torch.device) -> tuple[list[Call], torch.Tensor | None]:
    """The kernel calls for a layout: one for tokens with bidirectional attention, one for the others.

    Returns: (calls, int64 [s], position of each token of the row in their outputs, or None if it is unchanged).
    """
    lengths, in_front = [length for length, _, _ in layout], prefix_length * len(layout)
    starts = np.cumsum([0, *lengths])
    causal: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # queries, keys
    both_ways: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for i, (length, parent, visible) in enumerate(layout):
        own_tokens = np.arange(length) + starts[i]
        before = [np.arange(prefix_length) + prefix_length * i]
        before += [np.arange(lengths[parent]) + starts[parent] + in_front] if parent >= 0 else []
        for (queries, keys), first, end in ((both_ways, 0, visible), (causal, visible, length)):
            if first < end:
                queries.append(own_tokens[first:end])
                keys.append(np.concatenate([*before, own_tokens[:end] + in_front]))

    def on_device(values: np.ndarray, dtype: type) -> torch.Tensor:  # without synchronizing with the GPU
        return torch.from_numpy(np.asarray(values, dtype)).to(device, non_blocking=True)

    def rows(sequences: list[np.ndarray], total: int) -> torch.Tensor | None:
        indices = np.concatenate(sequences)
        return None if np.array_equal(indices, np.arange(total)) else on_device(indices, np.int64)

    calls = [
        Call(
            rows(queries, starts[-1]),
            rows(keys, starts[-1] + in_front),
            on_device(np.cumsum([0, *map(len, queries)]), np.int32),
            on_device(np.cumsum([0, *map(len, keys)]), np.int32),
            max(map(len, queries)),
            max(map(len, keys)),
            is_causal,
        )
        for (queries, keys), is_causal in ((both_ways, False), (causal, True))
        if queries
    ]
    order = np.concatenate([*both_ways[0], *causal[0]])
    return calls, on_device(np.argsort(order), np.int64) if len(calls) > 1 else None


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments[tuple[list[Call], torch.Tensor | None]],
    prefix_key: torch.Tensor | None,
    prefix_value: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of all segments with torch's kernel for sequences of any lengths. Returns [1, s, n, d]."""
    from torch.nn.attention.varlen import varlen_attn  # only for GPUs, and the import is slow

    return attend_in_calls(varlen_attn, query, key, value, segments, prefix_key, prefix_value)


def attend_in_calls(
    kernel: Callable,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments[tuple[list[Call], torch.Tensor | None]],
    prefix_key: torch.Tensor | None,
    prefix_value: torch.Tensor | None,
) -> torch.Tensor:
    """As `attend_varlen`, with a kernel of any signature that torch.nn.attention.varlen.varlen_attn has had."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [s, n or g, d]
    if prefix_key is not None and prefix_value is not None:
        key = torch.cat([prefix_key.transpose(1, 2).flatten(0, 1), key])  # [segments * p + s, g, d]
        value = torch.cat([prefix_value.transpose(1, 2).flatten(0, 1), value])
    outputs, (calls, places) = [], segments.prepared
    for call in calls:
        queries = query if call.queries is None else query.index_select(0, call.queries)
        keys, values = (x if call.keys is None else x.index_select(0, call.keys) for x in (key, value))
        sizes = (call.ends_q, call.ends_k, call.longest_q, call.longest_k)
        # a view of values would keep the whole projection in memory for backward
        output = varlen_attention(kernel, queries, keys, values.contiguous(), *sizes, call.causal)
        outputs.append(output)  # [tokens, n, d]
    return outputs[0][None] if places is None else torch.cat(outputs).index_select(0, places)[None]


SDPA: Implementation[list[torch.Tensor | None]] = (make_masks, attend_by_segment)
VARLEN: Implementation[tuple[list[Call], torch.Tensor | None]] = (make_calls, attend_varlen)
# Any: each prepares its own type
IMPLEMENTATIONS: dict[str, Implementation[Any]] = {"sdpa": SDPA, "varlen": VARLEN}


def make_segments(
    layout: Layout, prefix_length: int, device: torch.device, implementation: Implementation[Any] = SDPA
) -> Segments[Any]:
    """The data about a layout for all layers.

    Args:
        prefix_length: p. implementation: one of IMPLEMENTATIONS.
    """
    prepare, attend = implementation
    return Segments(layout, prepare(layout, prefix_length, device), attend)


def varlen_runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel of "varlen", flash attention, supports this."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return flash_runs(device.type, dtype, capability) and head_dim % 8 == 0 and head_dim <= 256
