"""P-Tuning: a trained prefix of the sequence, as keys and values of every layer or as embeddings only.

`config.pre_seq_len` enables it, `config.prefix_projection` adds the MLP, `config.prefix_layers` sets its position:
"all" (P-Tuning v2, https://arxiv.org/abs/2110.07602, as the official code has it) or "embedding" (P-Tuning,
https://arxiv.org/abs/2103.10385: trained input vectors).

Shapes: b batch, p prefix length, s sequence length, l layers, g key/value heads, d head size, h hidden size.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from errors import UserError
from modes.config import Config
from modes.segments import Layout

DROPOUT = 0.1  # on the prefix while training, as official


def is_on(config: Config) -> bool:
    """Whether the model has a prefix of either kind."""
    return bool(config.pre_seq_len)


def is_embedding(config: Config) -> bool:
    """Whether the prefix is only before the embeddings."""
    return is_on(config) and config.prefix_layers == "embedding"


class Table(nn.Embedding):
    """An embedding with its own initialization."""


class Projection(nn.Linear):
    """A linear layer with its own initialization."""


class PrefixEncoder(nn.Module):
    """Trained table [p, width], and with `projection` the MLP after it. Official parameter names.

    Args:
        length: p.
        width: of the output; 2 * l * g * d for keys and values, h for embeddings.
        projection: embedding [p, embedding_width], then Linear(embedding_width, hidden), tanh, Linear(hidden, width).
    """

    def __init__(self, length: int, width: int, projection: bool, embedding_width: int, hidden: int):
        super().__init__()
        self.length = length
        self.projection = projection
        if projection:
            self.embedding = Table(length, embedding_width)
            self.trans = nn.Sequential(Projection(embedding_width, hidden), nn.Tanh(), Projection(hidden, width))
        else:
            self.embedding = Table(length, width)

    def forward(self, device: torch.device) -> torch.Tensor:
        """Returns [p, width]."""
        prefix = self.embedding(torch.arange(self.length, device=device))
        return self.trans(prefix) if self.projection else prefix


class Initializers(Protocol):
    """torch.nn.init, or transformers.initialization, which skips tensors that were loaded from a checkpoint."""

    def normal_(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def uniform_(self, tensor: torch.Tensor, a: float, b: float) -> torch.Tensor: ...


def init_part(part: Table | Projection, init: Initializers) -> None:
    """Initialize a Table or Projection from torch's default distributions."""
    if isinstance(part, Table):
        init.normal_(part.weight)
    else:
        bound = part.in_features**-0.5
        init.uniform_(part.weight, -bound, bound)
        init.uniform_(part.bias, -bound, bound)


def init_prefix(encoder: PrefixEncoder) -> None:
    """Reinitialize a PrefixEncoder; the caller sets the seed."""
    for part in encoder.modules():
        if isinstance(part, (Table, Projection)):
            init_part(part, nn.init)


def key_values(
    encoder: PrefixEncoder, config: Config, inputs_embeds: torch.Tensor, b: int, training: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The prefix as keys and values of every layer.

    Args:
        inputs_embeds: defines device and dtype.
        b: rows or segments; each prefix has its own dropout.

    Returns: list of l pairs (key, value), each [b, g, p, d].
    """
    prefix = encoder(inputs_embeds.device).to(inputs_embeds.dtype)  # [p, 2 * l * g * d]
    prefix = prefix.view(1, encoder.length, 2 * config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    prefix = F.dropout(prefix.expand(b, -1, -1, -1, -1), DROPOUT, training)
    per_layer = prefix.permute(2, 0, 3, 1, 4)  # [2 * l, b, g, p, d], keys and values in alternation
    return list(zip(per_layer[0::2], per_layer[1::2], strict=True))


def prepend_embeddings(encoder: PrefixEncoder, inputs_embeds: torch.Tensor, training: bool) -> torch.Tensor:
    """Prepend the prefix to the embeddings: [b, s, h] -> [b, p + s, h]."""
    prefix = encoder(inputs_embeds.device).to(inputs_embeds.dtype)  # [p, h]
    prefix = F.dropout(prefix.expand(inputs_embeds.shape[0], -1, -1), DROPOUT, training)
    return torch.cat([prefix, inputs_embeds], dim=1)


def prepend_to_segments(
    encoder: PrefixEncoder, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, layout: Layout, training: bool
) -> tuple[torch.Tensor, torch.Tensor, Layout, torch.Tensor]:
    """Prepend the prefix to each sample of a row with concatenated samples.

    Args:
        inputs_embeds: [1, s, h]. position_ids: [1, s] or [1, 2, s], the first row counted without prefix.
        layout: (length, parent, visible) of each segment, see modes/segments.py; a segment without parent starts a
            sample.

    Returns: (embeddings [1, s', h], position ids [1, s'] or [1, 2, s'], layout, index [s] of the given tokens in it).
    """
    p, device = encoder.length, inputs_embeds.device
    samples = sum(parent < 0 for _, parent, _ in layout)
    prefix = encoder(device).to(inputs_embeds.dtype)  # [p, h]
    prefixes = F.dropout(prefix.expand(samples, -1, -1), DROPOUT, training).flatten(0, 1)  # [samples * p, h]
    parts: list[torch.Tensor] = []
    begun, seen = 0, len(prefixes)  # of all prefixes and then all tokens
    for length, parent, _ in layout:
        if parent < 0:
            parts.append(torch.arange(begun, begun + p, device=device))
            begun += p
        parts.append(torch.arange(seen, seen + length, device=device))
        seen += length
    order = torch.cat(parts)
    front = front_positions(position_ids, p).repeat(*[1] * (position_ids.ndim - 2), samples)
    embeddings = torch.cat([prefixes, inputs_embeds[0]]).index_select(0, order)
    positions = torch.cat([front, shift_positions(position_ids, p)[0]], dim=-1).index_select(-1, order)
    longer = [(length + p * (parent < 0), parent, visible + p * (visible > 0)) for length, parent, visible in layout]
    return embeddings[None], positions[None], longer, (order >= len(prefixes)).nonzero()[:, 0]


def front_positions(position_ids: torch.Tensor, p: int) -> torch.Tensor:
    """Positions of the prefix itself, [p] or [2, p] as for tokens; its block position is 0, as in a prompt."""
    front = torch.arange(p, device=position_ids.device)
    return front if position_ids.ndim == 2 else torch.stack([front, torch.zeros_like(front)])


def shift_positions(position_ids: torch.Tensor, p: int) -> torch.Tensor:
    """Positions [b, s] or [b, 2, s] of tokens after a prefix; block positions stay."""
    shift = p if position_ids.ndim == 2 else torch.tensor([[p], [0]], device=position_ids.device)
    return position_ids + shift


def prepend_ones(attention_mask: torch.Tensor | None, columns: int) -> torch.Tensor | None:
    """Prepend `columns` visible positions to a 2D mask [b, s]: [b, columns + s]. None stays None."""
    return None if attention_mask is None else F.pad(attention_mask, (columns, 0), value=1)


def causal_mask(
    config: Config,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    columns: int,
    position_ids: torch.Tensor | None = None,
    block_sequence_ids: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """transformers' causal mask, with `columns` more visible keys before it (a key/value prefix; 0 for none).

    Args:
        inputs_embeds: [b, s, h]. attention_mask: [b, tokens so far] (1 real, 0 padding) or None.
        cache: transformers cache or None. A filled one also contains the prefix.
        position_ids: [b, s], only if they separate packed sequences.
        block_sequence_ids: [b, s], 0 for tokens with bidirectional attention, -1 for the others.

    Returns: a mask in the form of the attention backend.
    """
    filled = cache is not None and cache.get_seq_length() > 0
    if not columns or filled:
        mask = prepend_ones(attention_mask, columns)
        return create_causal_mask(
            config, inputs_embeds, mask, cache, position_ids=position_ids, block_sequence_ids=block_sequence_ids
        )
    implementation = config._attn_implementation
    if "flash" in implementation:
        # Flash attention aligns queries with the last keys, so it needs only the padding.
        return create_causal_mask(config, inputs_embeds, prepend_ones(attention_mask, columns), None)
    if implementation not in ("sdpa", "eager"):
        raise UserError(f"A key/value prefix does not work with {implementation} attention: use sdpa or eager.")
    mask = create_causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        None,
        position_ids=position_ids,
        block_sequence_ids=block_sequence_ids,
        allow_is_causal_skip=False,
    )
    # "Visible" is True in sdpa's boolean masks and 0 in eager's additive ones.
    return F.pad(mask, (columns, 0), value=mask.dtype == torch.bool)
