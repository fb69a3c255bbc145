"""Read a training or test file: records in any format of data/formats.py, in any kind of file of data/files.py.

    for line, record in read_records("data/spo_0.json"):    # raises the first error
        messages_of(record)
    for line, record_or_error in scan_records("data/spo_0.json"):    # yields the UserError of an invalid line
        isinstance(record_or_error, UserError)

Every error is one sentence that starts with file:line, because the files are long and edited by hand.
"""

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from data.files import BLOCK, BOM, BROKEN_GZIP, broken_gzip, decode, kind_of, open_bytes
from data.formats import ANY, Columns, is_ordinary, normalize
from data.tables import read_table
from data.tally import Tally
from data.values import quoted, type_name
from errors import UserError
from files import unique_keys
from texts import SHORT, quote_text

LONGEST = 4 * 2**20  # bytes of a record: hundreds of times a model's context, and still tokenized within a second
SIMPLE_FORMAT = "instruction/output"


def read_records(
    path: str | os.PathLike, *, require_output: bool = True, columns: Columns = ANY, tally: Tally | None = None
) -> Iterator[tuple[int, dict]]:
    """Iterate over (line number from 1, record) of a file; blank lines are skipped.

    JSON lines, CSV and Parquet are streamed; a file that starts with "[" is read at once as an array.

    Args:
        require_output: a record without an answer is an error (training, scoring); False for prediction.
        columns: the keys of the records.
        tally: counts every object.

    Raises:
        UserError: at once if the file cannot be read, during iteration if a line is invalid, and at the end if the
            file has no record.
    """
    return _read(scan_records(path, require_output=require_output, columns=columns, tally=tally))


def scan_records(
    path: str | os.PathLike, *, require_output: bool = True, columns: Columns = ANY, tally: Tally | None = None
) -> Iterator[tuple[int, dict | UserError]]:
    """As `read_records`, but yields a record's error in its place and continues.

    An array with broken JSON ends there. A file without a record yields (0, UserError).

    Raises:
        UserError: at once if the file cannot be read.
    """
    path = Path(path)
    return _scan(path, kind_of(path), require_output, columns, Tally() if tally is None else tally)


def _read(scanned: Iterator[tuple[int, dict | UserError]]) -> Iterator[tuple[int, dict]]:
    for line, record_or_error in scanned:
        if isinstance(record_or_error, UserError):
            raise record_or_error
        yield line, record_or_error


def _scan(
    path: Path, kind: str, require_output: bool, columns: Columns, tally: Tally
) -> Iterator[tuple[int, dict | UserError]]:
    usual = columns == ANY
    for line, place, value in _objects(path, kind):
        tally.read += 1
        record_or_error: dict | UserError
        if usual and is_ordinary(value):
            tally.count(SIMPLE_FORMAT)
            record_or_error = value
        elif isinstance(value, UserError):
            record_or_error = value
        else:
            record_or_error = _record_or_problem(value, place, require_output, columns, tally)
        tally.refused += isinstance(record_or_error, UserError)
        yield line, record_or_error
    if not tally.read:
        yield 0, UserError(f"{path} holds no record; it needs one JSON object per line.")


def _objects(path: Path, kind: str) -> Iterator[tuple[int, str, object]]:
    """(line, place, value) of every object of a file; the value of a broken one is its UserError."""
    readers = {"lines": _json_lines, "array": _array_elements}
    try:
        yield from readers[kind](path) if kind in readers else read_table(path, kind, LONGEST)
    except BROKEN_GZIP as error:
        yield 0, str(path), broken_gzip(path, error)
    except UserError as problem:
        yield 0, str(path), problem


def _record_or_problem(
    value: object, place: str, require_output: bool, columns: Columns, tally: Tally
) -> dict | UserError:
    try:
        return _check_record(value, place, require_output, columns, tally)
    except UserError as problem:
        return problem
    except RecursionError:  # json can read but not write this depth
        return UserError(f"{place}: the record is nested too deeply; remove the inner lists and objects.")


def _json_lines(path: Path) -> Iterator[tuple[int, str, object]]:
    """(line, place, value) of every line that is not blank; the value of an invalid one is its UserError."""
    name, raw_decode = str(path), DECODER.raw_decode
    with open_bytes(path) as file:
        for line in count(1):
            raw = file.readline(LONGEST + 1)
            if not raw:
                return
            place, length = f"{name}:{line}", len(raw)
            while length > LONGEST and not raw.endswith(b"\n") and (raw := file.readline(BLOCK)):
                length += len(raw)  # skip the rest of a line that is too long
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
            elif raw.strip():  # invalid, or starts with spaces
                yield line, place, _parse_line(raw, place)


def _too_long(place: str, length: int) -> UserError:
    return UserError(
        f"{place}: a record of {length:,} bytes, over the limit of {LONGEST:,}: write one record per line, or split it."
    )


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def _parse_line(raw: bytes, place: str) -> object:
    """The value of one line, or its error."""
    try:
        text = decode(raw.rstrip(), place)
    except UserError as problem:
        return problem
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        return UserError(
            f"{place}: not JSON at column {error.colno} ({error.msg}): {quote_text(text)}; "
            "a line must be one complete JSON object."
        )
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return _unreadable(place, error, text)


def _unreadable(place: str, error: Exception, text: str) -> UserError:
    return UserError(f"{place}: cannot be read as JSON ({error}): {quote_text(text)}; correct that record.")


def _array_elements(path: Path) -> Iterator[tuple[int, str, object]]:
    """(line, place, value) of every element; a UserError as the value is the last one."""
    with open_bytes(path) as file:
        raw = file.read().removeprefix(BOM)
    for line, part in enumerate(raw.split(b"\n"), 1):
        try:
            decode(part, f"{path}:{line}")
        except UserError as problem:
            yield line, f"{path}:{line}", problem
            return
    text = raw.decode("utf-8")
    at = _skip_space(text, text.index("[") + 1)
    end = at if text.startswith("]", at) else None  # where the array ends
    line, counted, index = 1, 0, 0  # `line` is the line of the character at `counted`
    while end is None:
        index += 1
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line} (element {index} of the array)"
        try:
            value, behind = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            yield error.lineno, place, _broken_element(path, error, text, index)
            return
        except (ValueError, RecursionError) as error:
            yield line, place, _unreadable(place, error, text[at : at + SHORT + 1])
            return
        # at most 4 bytes per character
        length = behind - at if behind - at <= LONGEST // 4 else len(text[at:behind].encode())
        yield line, place, _too_long(place, length) if length > LONGEST else value
        at = _skip_space(text, behind)
        if text.startswith("]", at):
            end = at
        elif not text.startswith(",", at):
            line = text.count("\n", 0, at) + 1
            excerpt = quote_text(text[at : at + SHORT + 1]) if at < len(text) else "the end of the file"
            sentence = f"after element {index} of the array there must be , or ], not {excerpt}."
            yield line, place, UserError(f"{path}:{line}: {sentence}")
            return
        at = _skip_space(text, at + 1)
    rest = _skip_space(text, end + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        place = f"{path}:{line}"
        excerpt = quote_text(text[rest : rest + SHORT + 1])
        sentence = f"the JSON array ended before {excerpt}; a file holds either one array or one object per line."
        yield line, place, UserError(f"{place}: {sentence}")


def _broken_element(path: Path, error: json.JSONDecodeError, text: str, index: int) -> UserError:
    excerpt = quote_text(text[error.pos : error.pos + SHORT + 1])
    return UserError(
        f"{path}:{error.lineno}: not JSON at column {error.colno} ({error.msg}) in element {index} of the array: "
        f"{excerpt}; correct it, or write one object per line."
    )


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _check_record(value: object, place: str, require_output: bool, columns: Columns, tally: Tally) -> dict:
    if type(value) is not dict:
        raise UserError(f'{place}: {type_name(value)} where an object like {{"instruction": ...}} must be.')
    for key, content in value.items():  # predictions are written with all keys
        simple = type(content) is str and key.isascii()
        _check_surrogates(content if simple else json.dumps({key: content}, ensure_ascii=False), key, place)
    return normalize(value, place, columns, require_output=require_output, tally=tally)


def _check_surrogates(text: str, key: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place}: {quoted([key])} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text."
        ) from None
