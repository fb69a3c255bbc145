"""Parts of files that a run may be writing at this moment; a missing file is an empty one."""

import json
import math
import os
from pathlib import Path
from typing import Any

from runs.errors import Outside

TAIL = 2**16  # bytes at the end of a file that are read


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def number(content: dict[str, Any], name: str, otherwise: float = 0.0) -> float:
    """The number of a name, where it is one."""
    value = content.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else otherwise


def stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does; (0, 0) without it."""
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


def tail(path: Path, start: int = 0) -> bytes:
    """The end of a file, at most from a byte on; nothing of a link, which may lead out of the root."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, start))
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
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise Outside(f"{path.name} cannot be read ({error.strerror}): change its permissions.") from None
