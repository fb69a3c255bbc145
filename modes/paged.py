"""transformers' paged cache of continuous batching, passed through the model in the place of a cache.

A row then holds new tokens of many requests, one after another: b = 1, and a mask [1, 1, s, t] separates them.
"""

from typing import Any

import torch
from transformers import Cache


class PagedCache(Cache):
    """The arguments of transformers' continuous batching for one forward pass.

    arguments: for an attention function that updates the cache itself, as flash attention does.
    """

    def __init__(self, arguments: dict[str, Any]):
        super().__init__(layers=[])
        self.arguments = arguments

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values [1, g, s, d]; return those of all requests in the row, [1, g, t, d]."""
        return self.arguments["cache"].update(key_states, value_states, layer_idx, dict(self.arguments))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens before the row: unknown, because each request has its own."""
        return 0
