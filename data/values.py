"""Values of a record's keys: emptiness, types, and how messages show keys."""

import json
from collections.abc import Iterable

from errors import UserError
from texts import SHORT, shortened

TYPE_NAMES = {type(None): "null", bool: "true/false", int: "a number", float: "a number", str: "a text", list: "a list",
              dict: "an object"}  # fmt: skip


def is_empty(value: object) -> bool:
    """Whether a value is null, "", [] or {}, which counts as no key."""
    return value is None or (type(value) in (str, list, dict) and not value)


def type_name(value: object) -> str:
    """The JSON name of a value's type; a Parquet file has others, such as dates."""
    return TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def quoted(keys: Iterable[str]) -> str:
    """Keys for a message; `repr` escapes line ends and surrogates."""
    text = ", ".join(f'"{repr(key)[1:-1]}"' for key in keys)
    return shortened(text, SHORT) or "none"


def parsed(text: str, subject: str, place: str) -> object:
    """Parse a JSON text.

    Raises:
        UserError: it is not JSON; `subject` names its content.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{place}: the text of {subject} is not JSON; correct it.") from None
