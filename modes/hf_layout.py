"""The layout of transformers' own class of an architecture, which engines load without remote code.

A base directory has the official layout (official tensor names and config keys), or this one. Both are read; a
generation's `Mode.hf` converts between them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modes.config import Config


@dataclass(frozen=True, eq=False)
class HfLayout:
    """The class in transformers that computes what a generation computes.

    architecture, model_type: as in its config.json.
    names: (config) -> for each official tensor its names in this layout; several are parts of its rows, in order.
    part_rows: (config) -> numbers of rows of a tensor with several parts.
    to_hf: (config) -> the keys of config.json that describe the model. Raises UserError for a model that the class
        cannot compute.
    to_official: keys of this layout -> official keys. Raises UserError for a missing key or an unknown value.
    check: raises UserError unless a generation's config computes what the keys of this layout describe.
    """

    architecture: str
    model_type: str
    names: Callable[[Config], Mapping[str, tuple[str, ...]]]
    part_rows: Callable[[Config], tuple[int, ...]]
    to_hf: Callable[[Config], dict[str, Any]]
    to_official: Callable[[Mapping[str, Any]], dict[str, Any]]
    check: Callable[[Config, Mapping[str, Any]], None]

    def split(self, config: Config, name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """(name, tensor) pairs in this layout of an official tensor, or of any with the same rows [out, …]."""
        names = self.names(config)[name]
        parts = tensor.split(self.part_rows(config)) if len(names) > 1 else (tensor,)
        return list(zip(names, parts, strict=True))

    def join(
        self, config: Config, shards: Iterable[tuple[Any, Mapping[str, torch.Tensor]]]
    ) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
        """The inverse of `split` for weight files (file, tensors by name): a tensor comes with its last part's file.

        Names that are not in this layout stay as they are.
        """
        sources = self.names(config)
        waiting: dict[str, torch.Tensor] = {}
        known = {name for names in sources.values() for name in names}
        for file, shard in shards:
            waiting.update((name, tensor) for name, tensor in shard.items() if name in known)
            ready = {name: names for name, names in sources.items() if all(part in waiting for part in names)}
            joined = {name: _cat([waiting.pop(part) for part in parts]) for name, parts in ready.items()}
            yield file, joined | {name: tensor for name, tensor in shard.items() if name not in known}


def _cat(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
