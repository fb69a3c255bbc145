"""train.py on a slow disk: the files of a resume state are small, and each takes a while.

Environment: SLOW_SECONDS, how long a file takes, and how long while the file SLOW_FILE exists; GRACE, seconds that a
launcher is thought to leave (a real one leaves 30).
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import checkpoints.state
import shards
import train
import training.saving
from errors import run_program
from parallel.lost_peer import explain_lost_peer

save_file = shards.save_file


def save_slowly(tensors, path, metadata=None):
    """Write a file, late."""
    usual, slow = map(float, os.environ["SLOW_SECONDS"].split())
    time.sleep(slow if Path(os.environ["SLOW_FILE"]).exists() else usual)
    save_file(tensors, path, metadata=metadata)


if __name__ == "__main__":
    shards.save_file = save_slowly
    checkpoints.state.write_shards = partial(shards.write_shards, max_shard_bytes=6000)
    training.saving.GRACE = float(os.environ["GRACE"])
    run_program(explain_lost_peer(train.main))
