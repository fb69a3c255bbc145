"""The endpoints of files: what lies below the root, for picking, and uploads of files of records."""

import os
import re
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from checkpoints import output_names
from runs.browsing import DATA_ENDINGS, list_directory
from runs.errors import Conflict, Missing, Refused
from runs.places import Root
from serving.errors import ApiError
from texts import counted, shown

MOST_ENTRIES = 2000
MAX_UPLOAD = 2**30  # bytes
FILE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,150}")


def router(root: Root) -> APIRouter:
    """GET api/browse, POST api/upload."""
    routes = APIRouter()

    @routes.get("/api/browse")
    def browse(path: str = ".") -> dict[str, Any]:
        directory = root.below(path)
        if not directory.is_dir():
            raise Missing(f"{shown(path, 100)} is not a directory: choose another one.", "path")
        entries, more = list_directory(root, directory, MOST_ENTRIES)
        return {
            "path": root.name(directory),
            "parent": None if directory == root.path else root.name(directory.parent),
            "entries": entries,
            "more": more,
        }

    @routes.post("/api/upload")
    async def upload(request: Request, directory: str, name: str) -> dict[str, str]:
        is_of_run = output_names.kind_of(name)[0] is not None  # such as process.json, by which processes are stopped
        if is_of_run or not FILE_NAME.fullmatch(name) or not name.lower().endswith(DATA_ENDINGS):
            raise Refused(f"{shown(name, 100)} is no name of a file of records: {', '.join(DATA_ENDINGS)}.")
        path = root.below(f"{root.below(directory)}/{name}")
        await receive(request, path)
        return {"path": root.name(path)}

    return routes


async def receive(request: Request, path: Path) -> None:
    """Write a request's body to a new file, which appears when it is complete.

    Raises:
        Conflict: the file exists.
        Refused: it cannot be written.
        ApiError: the body is too large (413).
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.upload")
    try:
        with open(temporary, "xb") as file:
            async for chunk in request.stream():
                if file.tell() + len(chunk) > MAX_UPLOAD:
                    raise ApiError(413, f"{path.name} has more than {counted(MAX_UPLOAD, 'byte')}: copy it there.")
                file.write(chunk)
        os.link(temporary, path)  # refuses to replace a file, even one of the same moment
    except FileExistsError:
        raise Conflict(f"{path.name} exists: rename one of the two files.") from None
    except OSError as error:
        raise Refused(f"{path.name} cannot be written ({error.strerror}): choose another directory.") from None
    finally:
        temporary.unlink(missing_ok=True)
