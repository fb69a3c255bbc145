"""Keys and values of answers that join and leave between steps, in rows of common tensors.

Shapes: r rows, g key/value heads, t tokens of the longest row, d head size.
"""

import torch
from transformers import Cache

ROOM = 64  # tokens by which the tensors grow


class RowCache(Cache):
    """Keys and values of rows with different lengths: a token of each is written behind its own row.

    The tensors of a layer are [places, g, room, d], of which the first r places are in use.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths = torch.zeros(0, dtype=torch.long)  # [r], of the rows without the tokens of this step
        self._stores: list[list[torch.Tensor]] = []  # of each layer: keys, values

    @property
    def rows(self) -> int:
        """Number of rows, r."""
        return len(self.lengths)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max()) if self.rows else 0

    def mask(self, device: torch.device) -> torch.Tensor:
        """Visible keys of a step's tokens: bool [r, 1, 1, t]."""
        end = self.get_seq_length() + 1
        return (torch.arange(end) <= self.lengths[:, None])[:, None, None].to(device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token [r, g, 1, d] of each row; return keys and values [r, g, t, d]."""
        r, end = self.rows, self.get_seq_length() + 1
        index = torch.arange(r, device=key_states.device), slice(None), self.lengths.to(key_states.device)
        for store, new in zip(self._stores[layer_idx], (key_states, value_states), strict=True):
            store[index] = new[:, :, 0]
        keys, values = self._stores[layer_idx]
        return keys[:r, :, :end], values[:r, :, :end]

    def join(self, cache: Cache) -> None:
        """Append a row: the keys and values of a computed prompt."""
        length = cache.get_seq_length()
        self._reserve(self.rows + 1, length + 1)
        for i, layer in enumerate(cache.layers):
            if i == len(self._stores):
                self._stores.append(
                    [new_store(part, self.rows + 1, length + ROOM) for part in (layer.keys, layer.values)]
                )
            for store, part in zip(self._stores[i], (layer.keys, layer.values), strict=True):
                store[self.rows, :, :length] = part[0]
        self.lengths = torch.cat([self.lengths, torch.tensor([length])])

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last, end = self.rows - 1, self.get_seq_length()
        if row < last:
            for store in (store for stores in self._stores for store in stores):
                store[row, :, :end] = store[last, :, :end]
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last]
        if not last:
            self._stores = []

    def grow(self) -> None:
        """After a step: every row has a token more, and room for the next."""
        self.lengths = self.lengths + 1
        self._reserve(self.rows, self.get_seq_length() + 1)

    def _reserve(self, rows: int, tokens: int) -> None:
        """Replace the tensors by larger ones if they have not this many places and tokens."""
        for stores in self._stores:
            for i, store in enumerate(stores):
                places, g, room, d = store.shape
                if rows > places or tokens > room:
                    larger = new_store(store, max(places, min(2 * places, rows + 8), rows), max(room, tokens + ROOM))
                    larger[: self.rows, :, :room] = store[: self.rows]
                    stores[i] = larger


def new_store(like: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """A tensor [rows, g, tokens, d] like [_, g, _, d]; zeros, because a masked value must be finite."""
    return like.new_zeros(rows, like.shape[1], tokens, like.shape[3])
