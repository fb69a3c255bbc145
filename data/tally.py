"""Counts of a file's objects, so that no record is lost silently."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from data.values import quoted


@dataclass
class Tally:
    """Counts of a file's objects during reading.

    read: objects, including broken ones. refused: those that are not a record.
    formats: name of a format -> records. ignored: unused key -> records where it is not empty.
    """

    read: int = 0
    refused: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, ignored: Iterable[str] = ()) -> None:
        """Add a record of a format, with its unused keys."""
        self.formats[name] = self.formats.get(name, 0) + 1
        for key in ignored:
            self.ignored[key] = self.ignored.get(key, 0) + 1

    def describe(self) -> str:
        """The formats and the unused keys, in one line."""
        named = [f"{name} ({count:,})" if len(self.formats) > 1 else name for name, count in self.formats.items()]
        text = f"format {', '.join(named)}" if named else "no known format"
        return text + (f"; keys not used: {quoted(self.ignored)}" if self.ignored else "")


def rows_used(truncated: np.ndarray, empty: np.ndarray, is_skip: bool) -> np.ndarray:
    """bool [n]: the rows to train on; --is_skip drops truncated ones and those with an empty answer."""
    return ~(truncated | empty) if is_skip else np.ones(len(empty), bool)


def account(tally: Tally, objects: np.ndarray, kept: np.ndarray) -> str:
    """A line about all objects of a file; asserts that used + dropped + refused are all objects.

    Args:
        objects: int [n], the number in the file of each row's object. kept: bool [n], the used rows.
    """
    used = np.unique(objects[kept])
    dropped = np.setdiff1d(objects, used)
    assert tally.read == len(used) + len(dropped) + tally.refused, "a record is neither used nor dropped nor refused"
    return (
        f"{tally.read:,} records read = {len(used):,} used + {len(dropped):,} dropped + {tally.refused:,} refused; "
        f"{tally.describe()}"
    )
