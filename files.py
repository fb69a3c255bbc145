"""Files and directories: atomic writes, reading of JSON objects, checks before use.

    with whole_file(path) as temporary: …          # `path` appears, or is replaced, when everything is on the disk
    with whole_directory(path) as temporary: …
    write_json(path, {"step": 3})
    append_line(path, b"{}")                       # all of the line, or nothing
    config = read_json(path, "download it again")

A file being written is .NAME.tmp next to NAME, one being deleted is .NAME.old; see `remove_leftovers`.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from errors import UserError
from texts import quote


def sync(path: Path) -> None:
    """Flush a file's or directory's content to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Flush a directory and every file directly in it to the disk."""
    for path in directory.iterdir():
        sync(path)
    sync(directory)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, which becomes `path` at the end or is removed on an error.

    An existing file is replaced only when the new one is complete and on the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link that somebody left there, to another file
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file, which is created if missing, and flush it to the disk: all of it, or nothing.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        is_whole = not size or os.pread(file.fileno(), 1, size - 1) == b"\n"
        content = (b"" if is_whole else b"\n") + line + b"\n"
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    sync(path.parent)


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Write a directory atomically: yields a temporary one, renamed to `directory` at the end or removed on an error.

    An existing `directory` is replaced only when the new one is complete and on the disk.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    replaced = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        readable = (temporary.stat().st_mode & 0o666) | 0o600  # safetensors writes files that only the owner can read
        for path in temporary.iterdir():
            if path.is_file():
                path.chmod(readable)
        sync_directory(temporary)
        if directory.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            directory.rename(replaced)
        temporary.rename(directory)
        sync(directory.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_whole(directory: Path) -> None:
    """Delete a directory atomically: it is renamed first, so that a killed process leaves no partial directory."""
    hidden = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)


def remove_leftovers(directory: Path, name: str) -> None:
    """Delete temporary files that killed processes left in a directory; the names match a glob pattern."""
    for path in directory.glob(f".{name}"):
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: Path, rows: Iterable[object]) -> int:
    """Write one JSON value per line, atomically. Returns the number of lines."""
    count = 0
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Raises ValueError on a duplicate key, of which Python would silently keep the last."""
    content = dict(pairs)
    if len(content) < len(pairs):  # once per record of a data set: the loop is for the error alone
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quote(key)} is given twice")
            seen.add(key)
    return content


def read_json(path: Path, remedy: str, *, missing: str = "", flag: str = "", by_hand: bool = False) -> dict:
    """The JSON object that a file holds.

    Args:
        remedy: how to fix the file; every error ends with it.
        missing: the remedy for a missing file; default: `remedy`.
        flag: the option that names the file, for errors.
        by_hand: the file is written by people: a byte order mark is ignored, and a duplicate key is refused.

    Raises:
        UserError: it is missing, cannot be read, is not UTF-8, is not JSON (with file:line), or is not an object.
    """
    place = f"{flag} {path}" if flag else str(path)
    try:
        text = path.read_text(encoding="utf-8-sig" if by_hand else "utf-8")
        value = json.loads(text, object_pairs_hook=unique_keys if by_hand else None)
    except FileNotFoundError:
        raise UserError(f"{place} is missing: {missing or remedy}.") from None
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror}): {remedy}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{place} cannot be read, it is not UTF-8 text: {remedy}.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}:{error.lineno} is not JSON ({error.msg}): {remedy}.") from None
    except (ValueError, RecursionError) as error:  # a duplicate key, thousands of digits or brackets
        raise UserError(f"{place} cannot be read as JSON ({error}): {remedy}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{place} is not a JSON object, but {quote(value)}: {remedy}.")
    return value


def read_problem(path: str | os.PathLike[str]) -> str | None:
    """Why a file of records cannot be read, as a clause with the remedy; None if it can."""
    if not os.path.exists(path):  # Path.exists raises on a name that is too long
        return "does not exist: give a file of records"
    if os.path.isdir(path):
        return "is a directory: give a file of records in it"
    if not os.path.isfile(path):
        return "is not a regular file: write the records to a file of JSON lines and give that"
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return f"cannot be read ({error.strerror}): change its permissions or give another file"


def try_to_write(directory: str | os.PathLike[str]) -> None:
    """Create and delete a file in a directory: permissions alone do not show whether it can be written.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryFile(dir=Path(directory)):
        pass


def write_problem(directory: str | os.PathLike[str]) -> str | None:
    """Why a directory cannot be created or written, as a clause with the remedy; None if it can. Leaves no file behind.

    Only one process may call it at a time: it deletes the directories that it created, which another may be testing.
    """
    path = Path(directory).absolute()
    if os.path.exists(path) and not path.is_dir():
        return "is a file: give a directory"
    missing = [parent for parent in (path, *path.parents) if not os.path.exists(parent)]  # deepest first
    try:
        path.mkdir(parents=True, exist_ok=True)
        try_to_write(path)
    except OSError as error:
        return f"cannot be written ({error.strerror}): choose another directory"
    finally:
        for created in missing:
            if os.path.isdir(created) and not any(created.iterdir()):
                created.rmdir()
    return None


def own_temporary_directory() -> Path:
    """This user's directory in the temporary directory; the same in all processes, unless another user owns its name.

    Raises:
        OSError: it cannot be created.
    """
    directory = Path(tempfile.gettempdir(), f"chatglm-finetuning-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix=f"{directory.name}-"))
    return directory
