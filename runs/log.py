"""Slices of a run's log, as a terminal would show it."""

import re
from pathlib import Path
from typing import Any

from runs.reading import read_slice, size_of

LOG_FILE = "train.log"
SLICE = 2**16  # bytes of a log in an answer
NOT_SHOWN = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # a terminal's colors, titles and cursor movements, and other control characters


def log_slice(path: Path | None, start: int, before: int) -> dict[str, Any]:
    """Lines of a log.

    Args:
        start: offset of the first line, if `before` is 0.
        before: offset behind the last line; -1: the end of the file.

    Returns:
        from, to: offsets of the lines. text: they. rest: the last line while it is unfinished. size: of the file.
    """
    size = size_of(path)
    end = size if before < 0 else min(before, size)
    start = max(end - SLICE, 0) if before else min(start, size)
    block = read_slice(path, start, end - start if before else SLICE)
    if before and start > 0:  # it may be within a line
        cut = block.find(b"\n") + 1
        start, block = start + cut, block[cut:]
    whole = block[: block.rfind(b"\n") + 1]
    if not whole and len(block) == SLICE:
        whole = block  # of a line that is longer than an answer
    rest = block[len(whole) :] if start + len(block) >= size else b""
    return {"from": start, "to": start + len(whole), "text": plain(whole), "rest": plain(rest), "size": size}


def plain(block: bytes) -> str:
    """A log's text as a terminal would leave it: what follows a line's last carriage return, without escapes."""
    lines = block.decode("utf-8", "replace").split("\n")
    return "\n".join(NOT_SHOWN.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines)
