"""Key/value cache for generation, with free space for new tokens and a prefix shared by all rows.

Shapes: b rows, g key/value heads, t tokens so far, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from modes.model import LanguageModel

ROOM = 64  # tokens of free space before a layer is copied


@dataclass(frozen=True)
class SharedPrompt:
    """The prefix shared by all prompts, computed once.

    tokens: number of its ids. cache: their keys and values, of one row; after a P-Tuning prefix.
    """

    tokens: int
    cache: Cache


class RoomyLayer(DynamicLayer):
    """One layer's keys and values with free space: a new token is written without copying the others.

    transformers' DynamicLayer concatenates at every token. Here `keys` and `values` are views of longer tensors, with
    the same values. It must be a class, because transformers' caches call their layers' methods.
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
    """Append `new` [b, g, n, d] to `filled` [b, g, t, d], which is a view of the start of `store`.

    Returns: (all filled values [b, g, t + n, d], the store that they are a view of).
    """
    t = filled.shape[-2] if filled.numel() else 0
    end = t + new.shape[-2]
    # a beam search replaces the view with another tensor
    if not t or filled.data_ptr() != store.data_ptr() or end > store.shape[-2]:
        store = new.new_empty(*new.shape[:-2], end + ROOM, new.shape[-1])
        if t:
            store[..., :t, :] = filled
    store[..., t:end, :] = new
    return store[..., :end, :], store


def batch_cache(rows: int, shared: Cache | None = None) -> Cache:
    """A cache for a batch of `rows`; with `shared`, a cache of one row, every row starts with its tokens."""
    cache = Cache(layer_class_to_replicate=RoomyLayer)
    for i, layer in enumerate(shared.layers if shared else ()):
        cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), i)
    return cache


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Number of ids that all prompts share at the start, without a prompt's last id, whose output starts the answer."""
    count = min(map(len, prompts)) - 1
    for ids in prompts[1:]:
        count = next((i for i in range(count) if ids[i] != prompts[0][i]), count)
    return count


def share_start(
    model: LanguageModel, prompts: Sequence[Sequence[int]], device: torch.device | str
) -> SharedPrompt | None:
    """Compute the prefix shared by all prompts once.

    Only for models with causal attention in prompts, as ChatGLM2 and ChatGLM3 (ChatGLM-6B's tokens attend to the whole
    prompt, so no part can be computed alone). None if it saves nothing.
    """
    tokens = count_shared(prompts) if len(prompts) > 1 else 0
    if not tokens:
        return None
    input_ids = torch.tensor([list(prompts[0][:tokens])], device=device)
    # position_ids and mask: none needed, one row without padding
    cache = model(input_ids=input_ids, past_key_values=batch_cache(1), use_cache=True, logits_to_keep=1).past_key_values
    return SharedPrompt(tokens, cache)
