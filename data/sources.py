"""Find the files of a run, and read their records as rows of a generation.

    sources = find_sources("a.json,b.jsonl", None, "data", Columns())
    sources = find_sources(None, "faults,reviews", "data", Columns())     # names in data/dataset_info.json
    for line, record in read_rows(sources[0], roles=mode.roles, apart=mode.one_answer): …

dataset_info.json is an object of names. Each has "file_name" (in the same directory, or absolute). For records that are
not recognized by their keys it has "columns" (prompt, query, response, history, system, messages, tools: key) and
"tags" (role_tag's values: user_tag, assistant_tag, observation_tag, function_tag, system_tag: name).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversation import Record, answers_apart, is_pair, unsuited
from data.formats import Columns
from data.records import scan_records
from data.tally import Tally
from errors import UserError
from files import read_json
from texts import quote

REGISTRY = "dataset_info.json"
COLUMNS = ("prompt", "query", "response", "history", "system", "messages", "tools")
TAGS = {"system_tag": "system", "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "observation",
        "function_tag": "call"}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file of records, and the keys of its records."""

    path: str
    columns: Columns


@dataclass(frozen=True)
class RecordSet:
    """The files of a flag as rows of tokens.

    name: of the files. rows: a dataset. identity: identifies the data.
    records: () -> the record of each row, unless rows were dropped.
    """

    name: str
    rows: Any
    identity: str
    records: Callable[[], Iterator[dict]]


def split_paths(text: str) -> list[str]:
    """The comma-separated files of a flag; a file whose own name has a comma is one file."""
    if os.path.exists(text):
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()]


def find_sources(paths: str | None, names: str | None, directory: str | Path, columns: Columns) -> list[Source]:
    """The files of a flag, and those of names in a registry.

    Args:
        paths: comma-separated files. names: comma-separated names in DIRECTORY/dataset_info.json.
        columns: of the files in `paths`; its prefix is used for all files.

    Raises:
        UserError: the registry cannot be read, or has no such name.
    """
    sources = [Source(path, columns) for path in split_paths(paths or "")]
    for name in (part.strip() for part in (names or "").split(",")):
        if name:
            sources.append(registered(name, Path(directory), columns.prefix))
    return sources


def registered(name: str, directory: Path, prefix: str = "") -> Source:
    """The file of a name in a registry."""
    path = directory / REGISTRY
    entries = read_registry(path)
    if name not in entries:
        raise UserError(f"--dataset {name} is not in {path}: it has {', '.join(entries) or 'no name'}.")
    entry = entries[name]
    file = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(file, str) or not file:
        raise UserError(f'{path}: {name} has no "file_name": give the file of its records.')
    named, tags = entry.get("columns", {}), entry.get("tags", {})
    for key, value, known in (("columns", named, COLUMNS), ("tags", tags, (*TAGS, "role_tag", "content_tag"))):
        texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        unknown = [word for word in value if word not in known] if texts else [value]
        if unknown:
            raise UserError(
                f'{path}: "{key}" of {name} has {quote(unknown[0])}: use {", ".join(known)}, each with a name.'
            )
    if {"query", "response"} & named.keys() and "prompt" not in named:
        raise UserError(f'{path}: "columns" of {name} has no "prompt": name the key of the question, too.')
    roles = tuple((tags[tag], role) for tag, role in TAGS.items() if tag in tags)
    return Source(str(directory / file), Columns(**named, prefix=prefix, roles=roles))


def read_registry(path: Path) -> dict:
    """Read a dataset_info.json.

    Raises:
        UserError: it cannot be read, or is not an object.
    """
    return read_json(path, "correct it", missing="give its directory as --dataset_dir", by_hand=True)


def scan_rows(
    source: Source,
    *,
    roles: tuple[str, ...],
    apart: bool,
    generations: Mapping[str, tuple[str, ...]] | None = None,
    require_output: bool = True,
    tally: Tally | None = None,
) -> Iterator[tuple[int, dict | UserError]]:
    """(line, record or its UserError) of a file, one record for each row.

    Args:
        roles: of the generation.
        apart: whether each of the assistant's messages becomes a separate record.
        generations: --mode -> its roles, to name the generations that support a refused record.
        tally: counts every object, which yields at least one row or is refused.
    """
    tally = Tally() if tally is None else tally
    simple = {"user", "assistant"} <= set(roles)
    scanned = scan_records(source.path, require_output=require_output, columns=source.columns, tally=tally)
    for line, record_or_error in scanned:
        if simple and type(record_or_error) is dict and is_pair(record_or_error) and "output" in record_or_error:
            yield line, record_or_error
            continue
        if not isinstance(record_or_error, UserError) and (clause := unsuited(record_or_error, roles)):
            tally.refused += 1
            record_or_error = UserError(f"{source.path}:{line}: {clause}, {advice(record_or_error, generations)}.")
        if apart and not isinstance(record_or_error, UserError):
            yield from ((line, part) for part in answers_apart(record_or_error))
        else:
            yield line, record_or_error


def advice(record: Record, generations: Mapping[str, tuple[str, ...]] | None) -> str:
    """What to do with a record that the run's generation does not support, as the end of a sentence."""
    able = [name for name, roles in (generations or {}).items() if not unsuited(record, roles)]
    if not able:
        return "which this model does not support: drop it"
    verb = "supports" if len(able) == 1 else "support"
    return f"which only {' and '.join(able)} {verb}: use --mode {' or '.join(able)}, or drop it"


def read_rows(
    source: Source,
    *,
    roles: tuple[str, ...],
    apart: bool,
    generations: Mapping[str, tuple[str, ...]] | None = None,
    tally: Tally | None = None,
) -> Iterator[tuple[int, dict]]:
    """As `scan_rows`, but raises the first error.

    Raises:
        UserError: the first error.
    """
    for line, record_or_error in scan_rows(source, roles=roles, apart=apart, generations=generations, tally=tally):
        if isinstance(record_or_error, UserError):
            raise record_or_error
        yield line, record_or_error
