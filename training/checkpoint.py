"""Checkpoints: what was trained, and a record that says what it is.

output_dir/epoch-E-step-S/
    checkpoint.json     mode, method and its options, base and its fingerprint, prompt template, precision, step
    ...                 what the method writes (an adapter, a prefix encoder, trained tensors, or the full model)
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from errors import UserError
from shards import sync

RECORD_FILE = "checkpoint.json"
BEST = "best"  # the checkpoint of the best evaluation
MERGED_FILE = "merged_from.json"  # the same record, in a merged directory
FORMAT = 1
KEYS = {"format": int, "mode": str, "train_type": str, "method": dict, "base": dict, "precision": str, "options": dict}


def write_json(path: Path, content: dict) -> None:
    """Write a dict as readable JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def make_record(
    *, mode, train_type, method, base_path, fingerprint, template, options, precision, run: str = ""
) -> dict:
    """What checkpoint.json says, but for epoch and step; predict.py and merge_lora.py need no flag that it answers.

    Args:
        method: the options that METHODS[train_type] was configured with.
        options: every flag of the run, for the reader.
        run: what tells it from other runs with the same options; the same after a resume.
    """
    return {
        "format": FORMAT,
        "run": run,
        "mode": mode,
        "train_type": train_type,
        "method": method,
        "base": {"path": str(Path(base_path).resolve()), "fingerprint": fingerprint},
        "template": template,
        "precision": precision,
        "options": options,
    }


def read_record(directory: Path, file_name: str = RECORD_FILE, keys: dict = KEYS) -> dict | None:
    """checkpoint.json (or a merged directory's merged_from.json), or None where there is none.

    Raises:
        UserError: it is broken, or written by a later version.
    """
    path = directory / file_name
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): use another checkpoint.") from None
    wrong = not isinstance(record, dict) or [key for key, kind in keys.items() if not isinstance(record.get(key), kind)]
    if wrong:
        raise UserError(f"{path} is not the record of a checkpoint (see {wrong}): use another checkpoint.")
    if record.get("format") not in range(1, FORMAT + 1):
        raise UserError(f"{path} was written by a later version (format {record['format']}): update this toolkit.")
    return record


def check_files(directory: Path, record: dict) -> None:
    """Raise UserError unless every file that a record names is there in its full size."""
    files = record.get("files", {})
    if not isinstance(files, dict):
        raise UserError(f'"files" in the record of {directory} is no list of sizes: use another.')
    for name, size in files.items():
        path = directory / Path(name).name
        if not path.is_file():
            raise UserError(f"{path} is missing, {directory} cannot be used: put it back or take another directory.")
        if path.stat().st_size != size:
            raise UserError(
                f"{path} was cut short or changed since it was saved ({path.stat().st_size:,} bytes, not {size:,}): "
                "put the old file back or take another directory."
            )


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `directory` at the end, at once, or vanishes if anything fails.

    An existing `directory` is replaced only when the new one is complete.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    replaced = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        readable = (temporary.stat().st_mode & 0o666) | 0o600  # safetensors writes for the owner alone
        for path in temporary.iterdir():
            if path.is_file():
                path.chmod(readable)
            sync(path)
        sync(temporary)
        if directory.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            directory.rename(replaced)
        temporary.rename(directory)
        sync(directory.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_beside(files: Iterable[Path], directory: Path, config_changes: dict) -> None:
    """Copy what stands beside a base's weights, and change keys of config.json on the way.

    The records of a base that was itself trained or merged stay behind: they do not describe the new directory.
    """
    for file in files:
        target = directory / file.name
        if file.name in (RECORD_FILE, MERGED_FILE):
            continue
        if file.is_dir():
            shutil.copytree(file, target)
        elif file.name == "config.json":
            write_json(target, {**json.loads(file.read_text(encoding="utf-8")), **config_changes})
        else:
            shutil.copy2(file, target)


def save_checkpoint(
    directory: Path,
    tensors: Iterator,
    save: Callable[[Path, Iterator], None],
    record: dict,
    is_main: bool,
    record_file: str = RECORD_FILE,
) -> None:
    """Write one checkpoint. Every rank calls it; rank 0 writes.

    Args:
        tensors: (name, CPU tensor) pairs; reading them may be collective work, so every rank reads all of them.
        save: writes what the method keeps into a directory.

    Raises:
        OSError or SafetensorError: on rank 0, when the disk is full or not writable; the checkpoint of that name is
            then as it was.
    """
    failure = None
    if is_main:
        try:
            with written_whole(directory) as temporary:
                save(temporary, tensors)
                sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir()) if path.is_file()}
                write_json(temporary / record_file, {**record, "files": sizes})
        except (OSError, SafetensorError) as error:
            failure = error
    for _ in tensors:  # the other ranks' part, and what is left of it after a failure
        pass
    if failure is not None:
        raise failure


def step_of(directory: Path) -> int:
    """The optimiser step in a checkpoint's name; -1 for any other name."""
    match = re.fullmatch(r"epoch-\d+-step-(\d+)", directory.name)
    return int(match[1]) if match else -1


def run_of(directory: Path) -> dict | None:
    """What a checkpoint's record says of the run that wrote it; None where there is no whole record."""
    try:
        record = read_record(directory)
    except UserError:
        return None
    if record is None:
        return None
    options = record.get("options", {})
    return {
        **{key: record.get(key) for key in ("run", "mode", "train_type", "method", "template", "precision")},
        "fingerprint": record["base"].get("fingerprint"),
        "options": {name: options.get(name) for name in ("train_path", "seed")},
    }


def remove_whole(directory: Path) -> None:
    """Delete a directory at once: a process that is killed meanwhile leaves no half of it under its name."""
    hidden = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)


def remove_leftovers(directory: Path, name: str) -> None:
    """Delete what killed processes left of writing or deleting directories of that name (a glob pattern) in there."""
    for path in directory.glob(f".{name}"):
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path)


def remove_old(saved: list[Path], limit: int | None) -> list[Path]:
    """Delete the oldest of this run's checkpoints beyond the `limit` newest; returns those that stay.

    Args:
        saved: what this process wrote, oldest first. What the run wrote before it was resumed counts too: the
            directories beside the newest, up to its step, whose record is of the same run.
    """
    if limit is None:
        return saved
    newest = saved[-1]
    run = run_of(newest)
    before = [
        path
        for path in newest.parent.iterdir()
        if 0 <= step_of(path) <= step_of(newest) and path not in saved and run and run_of(path) == run
    ]
    existing = sorted((path for path in [*before, *saved] if path.is_dir()), key=step_of)
    for directory in existing[:-limit]:
        remove_whole(directory)
    return existing[-limit:]
