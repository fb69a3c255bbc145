"""Keys and values of a batch that generates: with room to grow, and with a beginning that all rows share.

Shapes: b rows, g key/value heads, t tokens so far, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from modes.model import LanguageModel

ROOM = 64  # tokens that fit in before a layer is copied again


@dataclass(frozen=True)
class SharedPrompt:
    """What all prompts begin with, computed once.

    tokens: how many ids that is. cache: their keys and values, of one row; behind a prefix of P-Tuning.
    """

    tokens: int
    cache: Cache


class RoomyLayer(DynamicLayer):
    """One layer's keys and values in front of free room: a new token is written, the others are not copied.

    transformers' DynamicLayer concatenates at every token; `keys` and `values` are the same numbers here, as views of
    something longer. It must be a class, because transformers' caches call their layers' methods.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [b, g, new tokens, d] each; return keys and values [b, g, t, d]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_store, self.value_store = self.keys, self.values
        self.keys, self.key_store = append(self.keys, self.key_store, key_states)
        self.values, self.value_store = append(self.values, self.value_store, value_states)
        return self.keys, self.values


def append(filled: torch.Tensor, store: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write `new` [b, g, n, d] behind `filled` [b, g, t, d], a view of the beginning of `store` while it is in use.

    Returns: (everything filled [b, g, t + n, d], the store that it is a view of).
    """
    t = filled.shape[-2] if filled.numel() else 0
    end = t + new.shape[-2]
    # a beam search puts a tensor of its own in the place of the view
    if not t or filled.data_ptr() != store.data_ptr() or end > store.shape[-2]:
        store = new.new_empty(*new.shape[:-2], end + ROOM, new.shape[-1])
        if t:
            store[..., :t, :] = filled
    store[..., t:end, :] = new
    return store[..., :end, :], store


def batch_cache(rows: int, shared: Cache | None = None) -> Cache:
    """A cache for a batch of `rows`; with `shared`, a cache of one row, every row begins with what that holds."""
    cache = Cache(layer_class_to_replicate=RoomyLayer)
    for i, layer in enumerate(shared.layers if shared else ()):
        cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), i)
    return cache


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many ids all prompts begin with, one left over in each: its output is where an answer begins."""
    count = min(map(len, prompts)) - 1
    for ids in prompts[1:]:
        count = next((i for i in range(count) if ids[i] != prompts[0][i]), count)
    return count


def share_start(
    model: LanguageModel, prompts: Sequence[Sequence[int]], device: torch.device | str
) -> SharedPrompt | None:
    """Compute once what all prompts begin with.

    Only for a model whose prompt tokens do not see what stands behind them, as ChatGLM2 and ChatGLM3 (ChatGLM-6B's see
    the whole prompt, so that no part of it is computed without the rest). None where nothing is gained.
    """
    tokens = count_shared(prompts) if len(prompts) > 1 else 0
    if not tokens:
        return None
    input_ids = torch.tensor([list(prompts[0][:tokens])], device=device)
    # position_ids and mask: none needed, one row without padding
    cache = model(input_ids=input_ids, past_key_values=batch_cache(1), use_cache=True, logits_to_keep=1).past_key_values
    return SharedPrompt(tokens, cache)
