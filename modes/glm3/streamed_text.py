"""ChatGLM3: the text of a growing answer, although `answer_text` tidies tool calls and drops the first line end."""

import re
from enum import Enum, auto

from modes.streamed_text import StreamedText

NAME = re.compile(r"[^\s`]*")
FENCE = "```python\n"
BEFORE_FENCE = re.compile(r"[ \t]*\n\s*")


class Part(Enum):
    """The part of the answer that `waiting` continues."""

    START = auto()  # whitespace before the first visible character
    NAME = auto()  # characters that may be a tool's name
    FENCE = auto()  # after such a name: what may be the start of a fenced block of Python
    CALL = auto()  # the code of a call
    PLAIN = auto()  # an answer that calls no tool


def without_empty_line(text: str) -> str:
    """An answer without the first line, which is empty where no tool is called."""
    return text[1:].lstrip(" ") if text.startswith("\n") else text


class Glm3StreamedText(StreamedText):
    """A name is the same in a call and in a plain answer, so it is final; whitespace after it waits for the fence."""

    def __init__(self) -> None:
        self.part = Part.START
        self.waiting = ""  # decoded, but not returned
        self.lead = ""  # whitespace before the name, which only a plain answer keeps; the name then waits
        self.name = ""  # the waiting name
        self.starts_line = False  # whether the first line is empty

    @property
    def may_be_call(self) -> bool:  # type: ignore[override]
        return not self.starts_line and self.part is not Part.PLAIN

    def feed(self, text: str) -> str:
        self.waiting += text
        final = ""
        if self.part is Part.START:
            self._start()
        if self.part is Part.NAME:
            final += self._read_name()
        if self.part is Part.FENCE:
            final += self._read_fence()
        if self.part is Part.CALL:
            final += self._take(len(self.waiting.rstrip()))
        if self.part is Part.PLAIN:
            final += self._take(len(self.waiting))
        return final

    def finish(self) -> str:
        if self.part is Part.CALL:
            return ""  # only whitespace waits
        if self.part is Part.START:
            return without_empty_line(self.waiting)
        return self.lead + self.name + self.waiting

    def _take(self, length: int) -> str:
        taken, self.waiting = self.waiting[:length], self.waiting[length:]
        return taken

    def _start(self) -> None:
        visible = self.waiting.lstrip()
        if visible:
            self.starts_line = self.waiting.startswith("\n")
            self.lead = without_empty_line(self.waiting).removesuffix(visible)
            self.waiting, self.part = visible, Part.NAME

    def _read_name(self) -> str:
        name = self._take(len(self.waiting) - len(NAME.sub("", self.waiting, count=1)))
        if self.lead:
            self.name, name = self.name + name, ""
        if self.waiting.startswith("`"):
            return name + self._become_plain()
        if self.waiting:
            self.part = Part.FENCE
        return name

    def _read_fence(self) -> str:
        before = BEFORE_FENCE.match(self.waiting)
        fence = self.waiting[before.end() :] if before else self.waiting.lstrip(" \t")
        if before and fence.startswith(FENCE):
            self.part, self.waiting = Part.CALL, fence
            return self.name + "\n"
        return self._become_plain() if not FENCE.startswith(fence) or (fence and not before) else ""

    def _become_plain(self) -> str:
        held, self.lead, self.name = self.lead + self.name, "", ""
        self.part = Part.PLAIN
        return held
