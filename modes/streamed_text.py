"""The text of an answer that is still being generated: which part of it is final, and how it is rewritten.

`generation.stream` decodes the ids. A generation whose `Mode.answer_text` rewrites decoded text has its own class.
"""


class StreamedText:
    """The text of one answer, which is decoded text unchanged."""

    may_be_call = False
    """Whether the answer begins with a tool's name and is, or can still become, a tool call."""

    def is_final(self, text: str) -> bool:
        """Whether the decoded text, up to a token's end, stays the same whatever is decoded after it."""
        return True

    def feed(self, text: str) -> str:
        """Take the next part of the decoded text, which is final; return the part of the answer that is now final."""
        return text

    def finish(self) -> str:
        """The rest of the answer, at its end."""
        return ""
