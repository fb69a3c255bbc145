"""Keys and values of answers that join and leave between steps, in rows of common tensors.

Shapes: r rows, g key/value heads, t tokens of the longest row, d head size.
"""

import torch
from transformers import Cache

ROOM = 64  # tokens by which the tensors grow
PLACES = 8  # rows by which they grow


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

    def join(self, cache: Cache, index: int, real: torch.Tensor) -> None:
        """Append a row: the keys and values of a computed prompt.

        Args:
            cache: of a padded batch of prompts. index: of the prompt.
            real: bool [t], false for its padding.
        """
        length = int(real.sum())
        if not self._stores:
            first = [(layer.keys[:0], layer.values[:0]) for layer in cache.layers]  # [0, g, t, d] each
            self._stores = [[enlarged(part, PLACES, length + ROOM) for part in parts] for parts in first]
        self._reserve(self.rows + 1, length + 1)
        for layer, stores in zip(cache.layers, self._stores, strict=True):
            for store, part in zip(stores, (layer.keys, layer.values), strict=True):
                store[self.rows, :, :length] = part[index][:, real]
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
        """Replace the tensors by larger ones unless they have this many places and tokens."""
        places, _, room, _ = self._stores[0][0].shape
        if rows > places or tokens > room:
            size = max(places, rows + PLACES if rows > places else 0), max(room, tokens + ROOM if tokens > room else 0)
            for stores in self._stores:
                stores[:] = [enlarged(store, *size) for store in stores]


def enlarged(store: torch.Tensor, places: int, room: int) -> torch.Tensor:
    """A tensor [places, g, room, d] that begins with `store`; the rest is 0, because masked values must be finite."""
    larger = store.new_zeros(places, store.shape[1], room, store.shape[3])
    larger[: len(store), :, : store.shape[2]] = store[:, :, :room]
    return larger
