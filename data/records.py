"""Read a training or test file: JSON lines (or one JSON array) of records in any format of data/formats.py.

    for line, record in read_records("data/spo_0.json"):    # the first mistake ends it
        record["instruction"], record["input"], record["output"]
    for line, found in scan_records("data/spo_0.json"):     # a record, or the UserError of its line: all mistakes
        isinstance(found, UserError)

Every complaint is one sentence that starts with file:line, because the files are long and edited by hand.
"""

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from data.formats import ANY, TYPE_NAMES, Columns, is_ordinary, normalise, quoted
from errors import UserError

QUOTED = 80  # characters of a user's line or key that a message may echo
LONGEST = 4 * 2**20  # bytes of a record: hundreds of times what a model reads, and still tokenised within a second
BLOCK = 2**20  # bytes read at a time where only the end of something is looked for
BOM = b"\xef\xbb\xbf"


def read_records(
    path: str | os.PathLike, *, require_output: bool = True, columns: Columns = ANY
) -> Iterator[tuple[int, dict]]:
    """Iterate over (line number from 1, record) of a UTF-8 file; blank lines are skipped.

    A record of instruction, input and output is the object as it stands in the file, further keys included, except that
    a missing or null "input" is "" and a null "output" is absent; see conversation.py for those of other formats. JSON
    lines are streamed; a file that starts with "[" is read whole as an array.

    Args:
        require_output: a record without an answer is an error (training, scoring); False for prediction.
        columns: under which keys the records hold what.

    Raises:
        UserError: at once when the file cannot be read, while iterating when a line is wrong, and at the end when
            the file held no record.
    """
    path = Path(path)
    check_readable(path)
    return _read(path, require_output, columns)


def scan_records(
    path: str | os.PathLike, *, require_output: bool = True, columns: Columns = ANY
) -> Iterator[tuple[int, dict | UserError]]:
    """As `read_records`, but what is wrong with a record is yielded in its place, and the next one is read.

    An array whose JSON is broken ends at that place. A file without a record yields (0, UserError).

    Raises:
        UserError: at once when the file cannot be read.
    """
    path = Path(path)
    check_readable(path)
    return _scan(path, require_output, columns)


def check_readable(path: Path) -> None:
    """Raise UserError unless `path` is a regular file that can be opened."""
    if not os.path.exists(path):  # Path.exists raises on a name that is too long
        raise UserError(f"{path}: there is no such file; name a file of JSON lines.")
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file of JSON lines in it.")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; write the records to a file of JSON lines and name that.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); mend its permissions or name another file."
        ) from None


def _read(path: Path, require_output: bool, columns: Columns) -> Iterator[tuple[int, dict]]:
    for line, found in _scan(path, require_output, columns):
        if isinstance(found, UserError):
            raise found
        yield line, found


def _scan(path: Path, require_output: bool, columns: Columns) -> Iterator[tuple[int, dict | UserError]]:
    objects = _array_elements(path) if _first_byte(path) == b"[" else _json_lines(path)
    usual = columns == ANY
    found_any = False
    for line, place, value in objects:
        found_any = True
        if not (isinstance(value, UserError) or (usual and is_ordinary(value))):
            value = _record_or_problem(value, place, require_output, columns)
        yield line, value
    if not found_any:
        yield 0, UserError(f"{path} holds no record; it needs one JSON object a line.")


def _record_or_problem(value: object, place: str, require_output: bool, columns: Columns) -> dict | UserError:
    try:
        return _check_record(value, place, require_output, columns)
    except UserError as problem:
        return problem
    except RecursionError:  # shallow enough to be read, too deep to be written
        return UserError(f"{place}: the record is nested too deeply; keep lists and objects out of it.")


def _first_byte(path: Path) -> bytes:
    """The first byte that is neither white space nor a byte order mark; b"" when there is none."""
    with path.open("rb") as file:
        block = file.read(BLOCK).removeprefix(BOM)
        while block and not block.strip():
            block = file.read(BLOCK)
    return block.strip()[:1]


def _json_lines(path: Path) -> Iterator[tuple[int, str, object]]:
    """(line, place, value) of every line that is not blank; the value of a wrong one is its UserError."""
    name, raw_decode = str(path), DECODER.raw_decode
    with path.open("rb") as file:
        for line in count(1):
            raw = file.readline(LONGEST + 1)
            if not raw:
                return
            place, length = f"{name}:{line}", len(raw)
            while length > LONGEST and not raw.endswith(b"\n") and (raw := file.readline(BLOCK)):
                length += len(raw)  # the rest of a line that is too long, without keeping it
            if length > LONGEST:
                yield line, place, _too_long(place, length)
                continue
            raw = raw.removeprefix(BOM) if line == 1 else raw
            try:
                text = raw.rstrip().decode()
                value, end = raw_decode(text)
                is_whole = end == len(text)
            except (ValueError, RecursionError):
                is_whole = False
            if is_whole:
                yield line, place, value
            elif raw.strip():  # something is wrong with it, or it begins with spaces
                yield line, place, _parse_line(raw, place)


def _too_long(place: str, length: int) -> UserError:
    return UserError(
        f"{place}: a record of {length:,} bytes, over the limit of {LONGEST:,}: write one record a line, or split it."
    )


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Raises ValueError if a key is there twice: Python would keep the last one and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {quoted([twice])} is there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def _parse_line(raw: bytes, place: str) -> object:
    """The value of one line, or what is wrong with it."""
    try:
        text = _decode(raw.rstrip(), place)
    except UserError as problem:
        return problem
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        return UserError(
            f"{place}: not JSON at column {error.colno} ({error.msg}): {_quote(text)}; "
            "a line must hold one whole JSON object."
        )
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return _unreadable(place, error, text)


def _unreadable(place: str, error: Exception, text: str) -> UserError:
    return UserError(f"{place}: cannot be read as JSON ({error}): {_quote(text)}; mend that record.")


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
            value, end = DECODER.raw_decode(text, at)
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
            yield line, place, _unreadable(place, error, text[at : at + QUOTED + 1])
            return
        length = end - at if end - at <= LONGEST // 4 else len(text[at:end].encode())  # at most 4 bytes a character
        yield line, place, _too_long(place, length) if length > LONGEST else value
        at = end
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


def _check_record(value: object, place: str, require_output: bool, columns: Columns) -> dict:
    if type(value) is not dict:
        raise UserError(f'{place}: {TYPE_NAMES[type(value)]} where an object like {{"instruction": ...}} must be.')
    for key, content in value.items():  # predictions are written with all of them
        simple = type(content) is str and key.isascii()
        _check_surrogates(content if simple else json.dumps({key: content}, ensure_ascii=False), key, place)
    return normalise(value, place, columns, require_output=require_output)


def _check_surrogates(text: str, key: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place}: {quoted([key])} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text."
        ) from None


def _quote(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= QUOTED else text[:QUOTED] + "…"
