"""Read a training or test file: JSON lines (or one JSON array) of {"instruction", "input", "output"}.

    for line, record in read_records("data/spo_0.json"):    # the first mistake ends it
        record["instruction"], record["input"], record["output"]
    for line, found in scan_records("data/spo_0.json"):     # a record, or the UserError of its line: all mistakes
        isinstance(found, UserError)

Every complaint is one sentence that starts with file:line, because the files are long and edited by hand.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from errors import UserError

QUOTED = 80  # characters of a user's line or key that a message may echo
TEXT_KEYS = ("instruction", "input", "output")
BOM = b"\xef\xbb\xbf"
TYPE_NAMES = {type(None): "null", bool: "true/false", int: "a number", float: "a number", str: "a text", list: "a list",
              dict: "an object"}  # fmt: skip


def read_records(path: str | os.PathLike, *, require_output: bool = True) -> Iterator[tuple[int, dict]]:
    """Iterate over (line number from 1, record) of a UTF-8 file; blank lines are skipped.

    A record is the object as it stands in the file, further keys included, except that a missing or null "input" is
    "" and a null "output" is absent. JSON lines are streamed; a file that starts with "[" is read whole as an array.

    Args:
        require_output: a record without "output" is an error (training, scoring); False for prediction.

    Raises:
        UserError: at once when the file cannot be read, while iterating when a line is wrong, and at the end when
            the file held no record.
    """
    path = Path(path)
    check_readable(path)
    return _read(path, require_output)


def scan_records(path: str | os.PathLike, *, require_output: bool = True) -> Iterator[tuple[int, dict | UserError]]:
    """As `read_records`, but what is wrong with a record is yielded in its place, and the next one is read.

    An array whose JSON is broken ends at that place. A file without a record yields (0, UserError).

    Raises:
        UserError: at once when the file cannot be read.
    """
    path = Path(path)
    check_readable(path)
    return _scan(path, require_output)


def check_readable(path: Path) -> None:
    """Raise UserError unless `path` is a regular file that can be opened."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file.")
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file of JSON lines in it.")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; write the records to a file of JSON lines and name that.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _read(path: Path, require_output: bool) -> Iterator[tuple[int, dict]]:
    for line, found in _scan(path, require_output):
        if isinstance(found, UserError):
            raise found
        yield line, found


def _scan(path: Path, require_output: bool) -> Iterator[tuple[int, dict | UserError]]:
    objects = _array_elements(path) if _first_byte(path) == b"[" else _json_lines(path)
    count = 0
    for line, place, value in objects:
        count += 1
        yield line, value if isinstance(value, UserError) else _record_or_problem(value, place, require_output)
    if count == 0:
        yield 0, UserError(f"{path} holds no record; it needs one JSON object a line.")


def _record_or_problem(value: object, place: str, require_output: bool) -> dict | UserError:
    try:
        return _check_record(value, place, require_output)
    except UserError as problem:
        return problem


def _first_byte(path: Path) -> bytes:
    """The first byte that is neither white space nor a byte order mark; b"" when there is none."""
    with path.open("rb") as file:
        for raw in file:
            stripped = raw.removeprefix(BOM).strip()
            if stripped:
                return stripped[:1]
    return b""


def _json_lines(path: Path) -> Iterator[tuple[int, str, object]]:
    """(line, place, value) of every line that is not blank; the value of a wrong one is its UserError."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            raw = raw.removeprefix(BOM) if line == 1 else raw
            if raw.strip():
                place = f"{path}:{line}"
                yield line, place, _parse_line(raw, place)


def _parse_line(raw: bytes, place: str) -> object:
    """The value of one line, or what is wrong with it."""
    try:
        text = _decode(raw.rstrip(), place)
    except UserError as problem:
        return problem
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return UserError(
            f"{place}: not JSON at column {error.colno} ({error.msg}): {_quote(text)}; "
            "a line must hold one whole JSON object."
        )
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return UserError(f"{place}: cannot be read as JSON ({error}): {_quote(text)}.")


def _array_elements(path: Path) -> Iterator[tuple[int, str, object]]:
    """(line, place, value) of every element; a UserError as the value is the last one."""
    raw = path.read_bytes().removeprefix(BOM)
    for line, part in enumerate(raw.split(b"\n"), 1):
        try:
            _decode(part, f"{path}:{line}")
        except UserError as problem:
            yield line, f"{path}:{line}", problem
            return
    text = raw.decode("utf-8")
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    line, counted = 1, 0  # `line` is the line of the character at `counted`
    index = 0
    while True:
        at = _skip_space(text, at)
        if index == 0 and text.startswith("]", at):
            break
        index += 1
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line} (element {index} of the array)"
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            found = _quote(text[error.pos : error.pos + QUOTED + 1])
            yield (
                error.lineno,
                place,
                UserError(
                    f"{path}:{error.lineno}: not JSON at column {error.colno} ({error.msg}) in element {index} of the "
                    f"array: {found}; mend it, or write one object a line."
                ),
            )
            return
        except (ValueError, RecursionError) as error:
            yield line, place, UserError(f"{place}: cannot be read as JSON ({error}).")
            return
        yield line, place, value
        at = _skip_space(text, at)
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            line = text.count("\n", 0, at) + 1
            found = _quote(text[at : at + QUOTED + 1]) if at < len(text) else "the end of the file"
            yield (
                line,
                place,
                UserError(f"{path}:{line}: after element {index} of the array there must be , or ], not {found}."),
            )
            return
        at += 1
    rest = _skip_space(text, at + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        yield (
            line,
            f"{path}:{line}",
            UserError(
                f"{path}:{line}: the JSON array ended before {_quote(text[rest : rest + QUOTED + 1])}; "
                "a file holds either one array or one object a line."
            ),
        )


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; save the file as "
            "UTF-8 (for a GBK file: iconv -f GB18030 -t UTF-8)."
        ) from None


def _check_record(value: object, place: str, require_output: bool) -> dict:
    if type(value) is not dict:
        raise UserError(f'{place}: {TYPE_NAMES[type(value)]} where an object like {{"instruction": ...}} must be.')
    for key in TEXT_KEYS:
        text = value.get(key)
        if text is None:
            continue
        if type(text) is not str:
            raise UserError(f'{place}: "{key}" is {TYPE_NAMES[type(text)]}, it must be a text in quotes.')
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f'{place}: "{key}" holds half of a surrogate pair (\\ud800 to \\udfff), which is no text.')
    for key in ("instruction", "output") if require_output else ("instruction",):
        if value.get(key) is None:
            state = "is null" if key in value else f"is missing (the keys are {_quote_keys(value)})"
            raise UserError(f'{place}: "{key}" {state}; a record needs it as a text.')
    record = dict(value)
    if record.get("input") is None:
        record["input"] = ""
    if record.get("output", "") is None:
        del record["output"]
    return record


def _quote_keys(value: dict) -> str:
    return _cut(", ".join(json.dumps(key, ensure_ascii=False) for key in value)) or "none"


def _quote(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= QUOTED else text[:QUOTED] + "…"
