"""Preparation of texts for sentencepiece."""

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Replace halves of surrogate pairs (from JSON such as "\\ud83d") by U+FFFD, because they have no UTF-8."""
    return LONE_SURROGATE.sub("\ufffd", text)
