"""The names that a run writes in --output_dir, and existing entries that conflict with them."""

import os
import re
from pathlib import Path

# pattern of names: (kind that a run writes, whether it is written in place instead of replaced atomically)
CHECKPOINT = r"best|epoch-\d+-step-\d+"
NAMES = {
    r"metrics\.jsonl|mlflow\.db|train\.log": ("file", True),
    r"evaluation\.(jsonl|json|md|png)|best_predictions\.jsonl|loss\.png|trackers\.json|run\.yaml": ("file", False),
    r"(process|job|stop)\.json|note\.txt": ("file", False),
    r"tensorboard|wandb|swanlog|mlruns|state": ("directory", True),
    CHECKPOINT: ("directory", False),
}


def kind_of(name: str) -> tuple[str | None, bool]:
    """("file" or "directory", whether it is written in place) for a name that a run writes; (None, False) for others.

    Temporary names end in .tmp or .old, and most start with a dot.
    """
    plain = re.sub(r"^\.?(.*)\.(tmp|old)$", r"\1", name)
    return next((kind for pattern, kind in NAMES.items() if re.fullmatch(pattern, plain)), (None, False))


def check_names(output_dir: str) -> list[str]:
    """One sentence for each existing entry of the directory that a run cannot overwrite."""
    problems = []
    for path in sorted(Path(output_dir).glob("*")):
        kind, in_place = kind_of(path.name)
        if path.is_symlink() and not path.exists():
            state = "a broken link"
        elif kind != ("directory" if path.is_dir() else "file" if path.is_file() else "special file"):
            state = "a directory" if path.is_dir() else "a file" if path.is_file() else "a special file"
        elif in_place and not os.access(path, os.W_OK):
            state = "read-only"
        else:
            continue
        if kind:
            problems.append(f"--output_dir: {path} is {state}, and a run writes a {kind} there: move it away.")
    return problems


def find_checkpoints(output_dir: Path) -> list[str]:
    """The names of the checkpoints in a directory, newest last."""
    names = [path.name for path in output_dir.glob("*") if path.is_dir() and re.fullmatch(CHECKPOINT, path.name)]
    return sorted(names, key=lambda name: int(name.rpartition("-")[2]) if "-" in name else -1)
