"""Reading a line: the interface of the plain reader and of the editor, and what can be completed."""

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

FILE = ("FILE",)  # instead of words: any path
Words = Mapping[str, Sequence[str]]  # command -> words that may follow it, or FILE


class LineReader(Protocol):
    """Reads a line from the user, without its end. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C.

    is_reply: whether the line replies to a question of the program, and is not kept in the history.
    """

    def __call__(self, prompt: str, is_reply: bool = False) -> str: ...


def is_terminal() -> bool:
    """Whether both standard input and output are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def read_plain(prompt: str, is_reply: bool = False) -> str:
    """A line of standard input, which may have any encoding; in a terminal after the prompt."""
    if is_terminal():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
