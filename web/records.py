"""Append answers of the chat to a .jsonl file below the root, as records that data/ reads: single ones, or pairs."""

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from checkpoints.output_names import kind_of
from files import append_line
from runs.errors import Refused
from runs.places import Root
from serving.errors import ApiError
from web.body import Body

# kind -> keys of its records: the messages that come first, and the answers to them
KINDS = {"training": ("messages",), "preference": ("prompt", "chosen", "rejected")}


def router(root: Root) -> APIRouter:
    """The path of records."""
    api = APIRouter()

    @api.post("/api/records")
    def append(body: Body) -> dict[str, Any]:
        path, record = file_of(root, body.get("file")), record_of(body)
        try:
            append_line(path, json.dumps(record, ensure_ascii=False).encode())
        except OSError as error:
            raise ApiError(507, f"{root.name(path)} cannot be written ({error.strerror}): give another file.") from None
        return {"file": root.name(path)}

    return api


def file_of(root: Root, name: object) -> Path:
    """The file of a request.

    Raises:
        Refused: it is no .jsonl file for records.
    """
    path = root.below(name)
    is_free = path.is_file() or not path.exists()
    if path.suffix != ".jsonl" or root.is_hidden(path) or kind_of(path.name)[0] or not is_free:
        raise Refused(f"{root.name(path)} is no file for records: give one such as chosen.jsonl.", field="file")
    return path


def record_of(body: dict[str, Any]) -> dict[str, Any]:
    """The record of a request.

    Raises:
        UserError: data/ could not train on it.
    """
    kind = str(body.get("kind"))
    if kind not in KINDS:
        raise Refused("kind is neither training nor preference: give one of them.", field="kind")
    from data.formats import Columns, normalize  # numpy, which the server needs for nothing else

    record: dict[str, Any] = {key: body.get(key) for key in KINDS[kind]}
    first, *answers = record.values()
    if not all(isinstance(messages, list) for messages in record.values()):
        raise Refused(f"{', '.join(record)}: these are not lists of messages; send such lists.")
    for answer in answers or [[]]:
        normalize({"messages": first + answer}, kind, Columns(), require_output=True)
    return record
