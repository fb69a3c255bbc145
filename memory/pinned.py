"""Pinned host memory: torch rounds blocks up to powers of two; torch 2.13 and newer can leave that out for large ones.

Nothing here imports torch: its allocators read the environment once, when they start.
"""

import os
import re
import sys
from importlib import metadata

KEY = "pinned_max_round_threshold_mb"
SINCE = (2, 13)  # an older torch ends with an error when it meets an unknown key and a GPU
LIMIT_MB = 32
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def bounded_rounding() -> dict[str, str]:
    """What to add to the environment so that no block above 32 MiB is rounded, which may take twice the memory.

    Nothing where the user has set a variable of these, or torch does not know the key.
    """
    release = re.fullmatch(r"(\d+)\.(\d+)\.\d+(\+.*)?", metadata.version("torch"))  # of a pre-release nobody knows
    known = release and (int(release[1]), int(release[2])) >= SINCE
    return {VARIABLES[0]: f"{KEY}:{LIMIT_MB}"} if known and not os.environ.keys() & set(VARIABLES) else {}


def rounded_up_to() -> int:
    """Bytes of the largest block that is rounded, by the environment."""
    for name in VARIABLES:  # the first that is set counts
        if name in os.environ:
            found = re.search(rf"{KEY}\s*:\s*(\d+)", os.environ[name])
            return int(found[1]) * 2**20 if found else sys.maxsize
    return sys.maxsize
