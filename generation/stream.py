"""The text of an answer while it is generated: in pieces, none of which a later token changes.

    stream = AnswerStream(mode, tokenizer, stop=["\\n\\n"])
    for token in tokens:
        print(stream.feed([token]), end="")
    print(stream.finish())

All pieces together are `Mode.answer_text` of all ids, up to the first stop string.
"""

import re
from collections.abc import Sequence

from modes.mode import Mode
from modes.rows import until_stop
from modes.tokenizer import Tokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a piece of sentencepiece's byte fallback
SPACE = "▁"
REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4  # bytes in UTF-8


class AnswerStream:
    """The text of one answer. The time per token does not depend on the answer's length.

    Args:
        stop: strings that end the answer; neither they nor the text after them are returned.
    """

    def __init__(self, mode: Mode, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.stopped = False
        """Whether a stop string was found."""
        self.ended = False
        """Whether an id that ends the answer was found."""
        self._tokenizer = tokenizer
        self._stop = StopStrings(stop)
        self._stop_ids = frozenset(mode.stop_ids(tokenizer))
        self._text = mode.streamed_text()
        self._ids: list[int] = []  # not decoded yet
        # Decoded before further ids, because sentencepiece removes a space at the start of a text.
        self._anchor: list[int] = []
        self._anchor_text = ""

    @property
    def may_be_call(self) -> bool:
        """Whether the answer begins with a tool's name and is, or can still become, a tool call."""
        return self._text.may_be_call

    def feed(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is now final.

        Half a character, the start of a stop string, and whatever a later token can still change are held back.
        """
        if self.stopped or self.ended:
            return ""
        given = until_stop(ids, self._stop_ids)
        self.ended = len(given) < len(ids)
        self._ids += given
        return self._pass_on(self._text.feed(self._decode_final()))

    def finish(self) -> str:
        """The text that was held back, at the answer's end."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._anchor + self._ids)[len(self._anchor_text) :]
        text = self._pass_on(self._text.feed(rest) + self._text.finish())
        return text if self.stopped else text + self._stop.held

    def _pass_on(self, text: str) -> str:
        text, self.stopped = self._stop.feed(text)
        return text

    def _decode_final(self) -> str:
        """Decode the ids whose text is final, and keep the others."""
        count = len(self._ids) - self._incomplete()
        ids, rest = self._ids[:count], self._ids[count:]
        last = self._tokenizer.decode(ids[-1:])
        if not last or last[-1].isspace():
            return ""  # whitespace waits for what follows it
        whole = self._tokenizer.decode(self._anchor + ids)
        text = whole[len(self._anchor_text) :]
        if not self._text.is_final(whole):
            return ""
        if not self._anchor:
            if text.endswith(REPLACEMENT):
                return ""  # later bytes would continue a character of the anchor
            self._anchor, self._anchor_text = ids, whole
        self._ids = rest
        return text

    def _incomplete(self) -> int:
        """Number of the last ids that are the first bytes of a character."""
        following = 0  # bytes after the first one of a character
        for count, index in enumerate(reversed(self._ids), 1):
            piece = self._tokenizer.convert_ids_to_tokens(index)
            byte = BYTE.fullmatch(piece)
            if byte is None:
                if piece.startswith(SPACE) or self._tokenizer.decode([index]):
                    return 0
                continue  # an id without text, which may be within a character
            value = int(byte[1], 16)
            if value < 0x80 or following == LONGEST_CHARACTER - 1:
                return 0
            if value >= 0xC0:
                length = 2 + (value >= 0xE0) + (value >= 0xF0)
                return count if following < length - 1 else 0
            following += 1
        return 0


class StopStrings:
    """Finds the first of several strings in text that comes in pieces."""

    def __init__(self, strings: Sequence[str]):
        self.held = ""
        """The end of the text, if it is the start of a stop string."""
        self._strings = [string for string in strings if string]

    def feed(self, text: str) -> tuple[str, bool]:
        """(the text before a stop string, whether there is one); the start of a stop string is held back."""
        text = self.held + text
        found = [place for place in (text.find(string) for string in self._strings) if place >= 0]
        if found:
            return text[: min(found)], True
        longest = max(map(len, self._strings), default=1) - 1
        starts = range(max(len(text) - longest, 0), len(text))
        cut = next((i for i in starts if any(s.startswith(text[i:]) for s in self._strings)), len(text))
        self.held = text[cut:]
        return text[:cut], False
