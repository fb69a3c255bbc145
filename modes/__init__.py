"""Model generations: a folder each, whose `mode.py` declares what differs, and MODES, the table from --mode to it.

To add a generation, create a folder and add its name here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modes.mode import Mode

GENERATIONS = ("glm", "glm2", "glm3")


class Modes(Mapping[str, "Mode"]):
    """--mode -> Mode. A folder is imported on first access, so that the names need no torch."""

    def __getitem__(self, name: str) -> Mode:
        if name not in GENERATIONS:
            raise KeyError(name)
        mode: Mode = import_module(f"modes.{name}.mode").MODE
        return mode

    def __iter__(self) -> Iterator[str]:
        return iter(GENERATIONS)

    def __len__(self) -> int:
        return len(GENERATIONS)


MODES = Modes()
