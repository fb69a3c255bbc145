"""Paths below the root, symbolic links resolved, and their names relative to it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from runs.errors import Outside, Refused
from texts import shown

REPOSITORY = Path(__file__).resolve().parent.parent  # where train.py is; jobs run there
LONGEST = 1000  # characters of a path
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Root:
    """The directory that the page may read and write. path: absolute, without symbolic links."""

    path: Path

    @classmethod
    def at(cls, directory: str) -> "Root":
        """The root of --root."""
        return cls(Path(directory).resolve())

    def below(self, text: object) -> Path:
        """The path that a text names, relative to the root or absolute, without symbolic links.

        Raises:
            Refused: it is no path.
            Outside: it is outside of the root.
        """
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST or CONTROL.search(text):
            raise Refused(f"{shown(str(text), 100)} is not a path: give one below the root.")
        try:
            path = (self.path / text.strip()).resolve()
        except (OSError, RuntimeError):  # a circle of links
            raise Refused(f"{shown(text, 100)} cannot be resolved: give another path.") from None
        if path != self.path and self.path not in path.parents:
            raise Outside(f"{shown(text, 100)} is outside of the root: choose one below it, or another --root.")
        return path

    def name(self, path: Path) -> str:
        """A path below the root, relative to it; "." is the root."""
        return path.relative_to(self.path).as_posix()

    def is_hidden(self, path: Path) -> bool:
        """Whether a name on the way from the root to a path begins with a dot, so that the page does not show it."""
        return any(part.startswith(".") for part in path.relative_to(self.path).parts)

    def file(self, run: str, name: str) -> Path | None:
        """A regular file of a run directory, which may be a link to one below the root; None if it is not there.

        Raises:
            Refused, Outside: see `below`.
        """
        path = self.below(os.fspath(self.below(run) / name))
        return path if os.path.isfile(path) else None


def for_command(path: Path) -> str:
    """A path in a command that runs in the repository: relative if it lies there, else absolute."""
    return os.fspath(path.relative_to(REPOSITORY)) if REPOSITORY in path.parents else os.fspath(path)
