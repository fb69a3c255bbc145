"""The directories of runs: which a request means, their names, notes and trash."""

import os
import time
from pathlib import Path

from checkpoints.output_names import kind_of
from files import write_text
from runs import job
from runs.errors import Conflict, Missing, Refused
from runs.places import Root
from runs.reading import encodable
from runs.states import find, is_run
from texts import shown

LONGEST_NOTE = 2000  # characters
TRASH = ".webui/trash"  # below the root, or below the top of another file system in it


def run_of(root: Root, text: object) -> Path:
    """The directory of a run that is there.

    Raises:
        Refused, Outside: it is no path below the root.
        Missing: it is no run.
    """
    directory = root.below(text)
    if not directory.is_dir() or not is_run(set(os.listdir(directory))):
        raise Missing(f"{shown(str(text), 100)} is not a run: reload the list.", "run")
    return directory


def new_place(root: Root, text: object, field: str | None = None) -> Path:
    """A directory below the root where the list finds runs; raises Refused, about a field, for others."""
    path = root.below(text)
    parts = path.relative_to(root.path).parts
    if not parts or root.is_hidden(path) or any(kind_of(part)[0] for part in parts):
        raise Refused(f"{shown(str(text), 100)} cannot name a run: choose another directory below the root.", field)
    if (path / "config.json").exists():  # else it would be listed, and deleted, as a run
        raise Refused(f"{shown(str(text), 100)} is a model: choose another directory.", field)
    return path


def move(root: Root, directory: Path, target: Path) -> Path:
    """Move a run.

    Raises:
        Refused, Conflict: it is the root, it or a run in it lives, or there is something else.
        OSError: it cannot be moved.
    """
    if directory == root.path:
        raise Refused("The root itself is a run: give its parent as --root to move it.")
    with job.locked(directory):
        for inner in find(directory):
            job.refuse_live(inner)
        if target.exists():
            raise Conflict(f"{root.name(target)} exists already: choose another name.", "name")
        if directory not in target.parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        return directory.rename(target)


def discard(root: Root, directory: Path) -> Path:
    """Move a run to the trash; raises as `move` does."""
    trash = trash_of(root, directory)
    trash.mkdir(parents=True, exist_ok=True)
    return move(root, directory, trash / f"{root.name(directory).replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}")


def trash_of(root: Root, directory: Path) -> Path:
    """The trash of a run: on its own file system, as moving gigabytes to another one may fill that."""
    device = directory.stat().st_dev
    above = [path for path in directory.parents if path == root.path or root.path in path.parents]
    return next((path for path in reversed(above) if path.stat().st_dev == device), root.path) / TRASH


def write_note(directory: Path, text: object) -> None:
    """Write a run's note; raises Refused for what is none."""
    if not isinstance(text, str) or len(text) > LONGEST_NOTE:
        raise Refused(f"A note is a text of at most {LONGEST_NOTE:,} characters: shorten it.", "note")
    write_text(directory / "note.txt", encodable(text))
