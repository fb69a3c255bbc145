"""What any text goes through before sentencepiece sees it."""

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """The text, with halves of surrogate pairs (JSON like "\\ud83d" can hold one) as U+FFFD, for they have no UTF-8."""
    return LONE_SURROGATE.sub("\ufffd", text)
