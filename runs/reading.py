"""Parts of files that a run may be writing at this moment, or anybody else wrote; a missing file is an empty one."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from runs.errors import Outside

TAIL = 2**16  # bytes at the end of a file that are read
LARGEST_FILE = 2**20  # bytes of a file that is read as a whole
LARGEST = 1e300  # numbers beyond it are none


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read: no link, which may lead out of the root, and no pipe, which would never end.

    Raises:
        OSError: it cannot be opened, or is no such file.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    file = open(path, "rb", opener=lambda name, given: os.open(name, given | flags))  # noqa: SIM115 (the caller closes)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def encodable(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON and YAML can escape, and no answer can carry."""
    return text.encode(errors="replace").decode()


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def number(content: dict[str, Any], name: str, otherwise: float = 0.0) -> float:
    """The number of a name, where it is one."""
    value = content.get(name)
    return float(value) if isinstance(value, (int, float)) and abs(value) < LARGEST else otherwise


def stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does; (0, 0) without it."""
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


def tail(path: Path, start: int = 0) -> bytes:
    """The end of a file, at most from a byte on; nothing of a link or pipe."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(max(size - TAIL, start), size))
            return file.read()
    except OSError:
        return b""


def size_of(path: Path | None) -> int:
    """Bytes of a file; 0 for none."""
    return path.stat().st_size if path else 0


def read_slice(path: Path | None, start: int, count: int) -> bytes:
    """At most `count` bytes from an offset; b"" beyond the end, or without a file.

    Raises:
        Outside: it may not be read.
    """
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            file.seek(min(start, file.seek(0, os.SEEK_END)))
            return file.read(count)
    except OSError as error:
        raise Outside(f"{path.name} cannot be read ({error.strerror}): change its permissions.") from None
