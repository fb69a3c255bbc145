"""The record of a checkpoint, checkpoint.json: mode, method and its options, base and its fingerprint, prompt template,
precision, step. With it no program needs a flag to use the checkpoint.
"""

from pathlib import Path

from errors import UserError
from files import read_json
from version import VERSION

RECORD_FILE = "checkpoint.json"
MERGED_FILE = "merged_from.json"  # the same record, in a merged directory
FORMAT = 1
KEYS = {"format": int, "mode": str, "train_type": str, "method": dict, "base": dict, "precision": str, "options": dict}


def make_record(
    *, mode, train_type, method, base_path, fingerprint, template, options, precision, run: str = ""
) -> dict:
    """The content of checkpoint.json, without epoch and step.

    Args:
        method: the options of METHODS[train_type].
        options: every flag of the run, for people.
        run: identifier of the run, kept when it resumes.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
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
    """The content of checkpoint.json (or of a merged directory's merged_from.json); None if there is none.

    Raises:
        UserError: it is broken, or written by a later version.
    """
    path = directory / file_name
    if not path.is_file():
        return None
    record = read_json(path, "use another checkpoint")
    wrong = [key for key, kind in keys.items() if not isinstance(record.get(key), kind)]
    if wrong:
        raise UserError(f"{path} is not the record of a checkpoint (see {wrong}): use another checkpoint.")
    if record.get("format") not in range(1, FORMAT + 1):
        raise UserError(f"{path} was written by a later version (format {record['format']}): update this toolkit.")
    return record


def check_files(directory: Path, record: dict) -> None:
    """Raise UserError unless every file that a record names exists in its full size."""
    files = record.get("files", {})
    if not isinstance(files, dict):
        raise UserError(f'"files" in the record of {directory} is not a list of sizes: use another.')
    for name, size in files.items():
        path = directory / Path(name).name
        if not path.is_file():
            raise UserError(f"{path} is missing, {directory} cannot be used: put it back or use another directory.")
        if path.stat().st_size != size:
            raise UserError(
                f"{path} was truncated or changed since it was saved ({path.stat().st_size:,} bytes, not {size:,}): "
                "put the old file back or use another directory."
            )


def run_of(directory: Path) -> dict | None:
    """The entries of a checkpoint's record that identify its run; None without a complete record."""
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
