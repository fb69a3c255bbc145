"""memory/pinned.py: large pinned blocks are not rounded up where torch supports that."""

import sys
from pathlib import Path

import torch

from memory.pinned import KEY, VARIABLES, bounded_rounding, rounded_up_to


def test_rounding_of_pinned_blocks_is_bounded_where_torch_can(monkeypatch):
    header = Path(torch.__file__).parent / "include/c10/core/AllocatorConfig.h"
    known = header.is_file() and KEY.removesuffix("_mb") in header.read_text()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert rounded_up_to() == sys.maxsize
    added = bounded_rounding()
    assert bool(added) == known
    for name, value in added.items():
        monkeypatch.setenv(name, value)
    assert rounded_up_to() == (32 * 2**20 if known else sys.maxsize)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert not bounded_rounding() and rounded_up_to() == sys.maxsize  # the user's settings stay
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", f"expandable_segments:True, {KEY}:8")
    assert rounded_up_to() == 8 * 2**20
