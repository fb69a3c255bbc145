"""Paths of requests: names below the root, symbolic links resolved."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ApiError
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
            ApiError: it is no path (400), or lies outside of the root (403).
        """
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST or CONTROL.search(text):
            raise ApiError(400, f"{shown(str(text), 100)} is not a path: give one below the root.")
        try:
            path = (self.path / text.strip()).resolve()
        except (OSError, RuntimeError):  # a circle of links
            raise ApiError(400, f"{shown(text, 100)} cannot be resolved: give another path.") from None
        if path != self.path and self.path not in path.parents:
            raise ApiError(403, f"{shown(text, 100)} is outside of the root: choose one below it, or another --root.")
        return path

    def name(self, path: Path) -> str:
        """A path below the root, relative to it; "." is the root."""
        return path.relative_to(self.path).as_posix()


def for_command(path: Path) -> str:
    """A path in a command that runs in the repository: relative if it lies there, else absolute."""
    return os.fspath(path.relative_to(REPOSITORY)) if REPOSITORY in path.parents else os.fspath(path)
