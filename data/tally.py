"""What became of every object of a file: no record is lost without a word."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from data.values import quoted


@dataclass
class Tally:
    """Counts of a file's objects while it is read.

    read: objects, broken ones included. refused: those that are no record.
    formats: name of a format -> records. ignored: further key -> records that hold something under it.
    """

    read: int = 0
    refused: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, ignored: Iterable[str] = ()) -> None:
        """Add a record of a format, with the keys of it that are not used."""
        self.formats[name] = self.formats.get(name, 0) + 1
        for key in ignored:
            self.ignored[key] = self.ignored.get(key, 0) + 1

    def describe(self) -> str:
        """The formats and the keys that are not used, in one line."""
        named = [f"{name} ({count:,})" if len(self.formats) > 1 else name for name, count in self.formats.items()]
        text = f"format {', '.join(named)}" if named else "no known format"
        return text + (f"; keys not used: {quoted(self.ignored)}" if self.ignored else "")


def rows_used(truncated: np.ndarray, empty: np.ndarray, is_skip: bool) -> np.ndarray:
    """bool [n]: the rows that are trained on; --is_skip drops those that are cut or have an empty answer."""
    return ~(truncated | empty) if is_skip else np.ones(len(empty), bool)


def account(tally: Tally, objects: np.ndarray, kept: np.ndarray) -> str:
    """A line about all objects of a file: used + dropped + refused are those that were read, which is asserted.

    Args:
        objects: int [n], the number in the file of each row's object. kept: bool [n], the rows that are used.
    """
    used = np.unique(objects[kept])
    dropped = np.setdiff1d(objects, used)
    assert tally.read == len(used) + len(dropped) + tally.refused, "a record is neither used nor dropped nor refused"
    return (
        f"{tally.read:,} records read = {len(used):,} used + {len(dropped):,} dropped + {tally.refused:,} refused; "
        f"{tally.describe()}"
    )
