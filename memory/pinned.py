"""Pinned host memory: torch rounds blocks up to powers of two; torch 2.13 and newer can disable this for large ones.

This module does not import torch, whose allocators read the environment once, when they start.
"""

import os
import re
import sys
from importlib import metadata

KEY = "pinned_max_round_threshold_mb"
SINCE = (2, 13)  # an older torch fails on an unknown key if there is a GPU
LIMIT_MB = 32
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def bounded_rounding() -> dict[str, str]:
    """Environment variables so that no block above 32 MiB is rounded up, which may double its memory.

    Empty if the user has set one of these variables, or torch does not support the key.
    """
    release = re.fullmatch(r"(\d+)\.(\d+)\.\d+(\+.*)?", metadata.version("torch"))  # pre-releases may lack it
    known = release and (int(release[1]), int(release[2])) >= SINCE
    return {VARIABLES[0]: f"{KEY}:{LIMIT_MB}"} if known and not os.environ.keys() & set(VARIABLES) else {}


def rounded_up_to() -> int:
    """Bytes of the largest block that is rounded up, from the environment."""
    for name in VARIABLES:  # the first one set applies
        if name in os.environ:
            match = re.search(rf"{KEY}\s*:\s*(\d+)", os.environ[name])
            return int(match[1]) * 2**20 if match else sys.maxsize
    return sys.maxsize
