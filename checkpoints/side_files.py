"""The files of a complete model directory beside its weights: config.json, tokenizer files, official code."""

import shutil
from pathlib import Path

from checkpoints.record import MERGED_FILE, RECORD_FILE
from files import write_json
from modes.directory import Base, side_files


def copy_beside(base: Base, directory: Path, config_changes: dict) -> None:
    """Write config.json with changed keys, and copy a base's other files than weights.

    Records of a base that was itself trained or merged are not copied: they do not describe the new directory.
    """
    write_json(directory / "config.json", {**base.config, **config_changes})
    for file in side_files(base):
        if file.name not in ("config.json", RECORD_FILE, MERGED_FILE):
            shutil.copy2(file, directory / file.name)
