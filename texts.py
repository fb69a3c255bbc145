"""Users' values and texts as messages show them: shortened, escaped, counted.

shown("data/a.json")            data/a.json              a flag's value; 'a\\nb' in quotes where it would not print
quote({"stage": "4"})           {"stage": "4"}           a value of a JSON file, as written there
quote_text('{"input": 1,')      '{"input": 1,'           a piece of a file, in quotes
one_line(error)                                          a library's message without its line ends
counted(1, "rank")              1 rank                   counted(1200, "rank") is 1,200 ranks
"""

import json
import re

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
STACK = re.compile(r"^Exception raised from ", re.MULTILINE)  # torch's errors have C++ frames below such a line
SHORT, LONG = 80, 300  # maximum characters of a value within a sentence, and of the value that the sentence is about


def shortened(text: str, limit: int) -> str:
    """The text, or its first `limit` characters and an ellipsis."""
    return text if len(text) <= limit else text[:limit] + "…"


def shown(text: str, limit: int = LONG) -> str:
    """A text as it was given; escaped and in quotes where it is empty or would not print."""
    text = shortened(text, limit)
    return text if text and not UNPRINTABLE.search(text) else repr(text)


def quote(value: object, limit: int = SHORT) -> str:
    """A value as a JSON file writes it."""
    text = shortened(json.dumps(value, ensure_ascii=False, default=str), limit)
    return UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def quote_text(text: str, limit: int = SHORT) -> str:
    """A text in quotes, escaped."""
    return repr(shortened(text, limit))


def one_line(message: object, limit: int = LONG) -> str:
    """A message or an error on one line, without a stack and the full stop at its end; an empty error's type."""
    text = STACK.split(str(message))[0].strip() or type(message).__name__
    text = text.encode("utf-8", "backslashreplace").decode()
    return shortened(" ".join(text.split()).rstrip("."), limit)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 rank", "2 ranks", "1,200 batches" where `plural` is "batches"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
