"""Golden data for tests: what the official code computes, see fixtures/golden/README.md."""

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from modes import MODES

ROOT = Path(__file__).parent / "fixtures" / "golden"
RECORDS = [json.loads(line) for line in (ROOT / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
CASES = ("single", "padded", "long")
PREFIXES = ("ptuning_noproj", "ptuning_proj")


def base_path(mode):
    """The tiny base directory of a mode."""
    return ROOT / mode / "base"


@functools.cache
def expected(mode):
    """expected.json."""
    return json.loads((ROOT / mode / "expected.json").read_text(encoding="utf-8"))


@functools.cache
def tensors(mode):
    """expected.safetensors."""
    return load_file(ROOT / mode / "expected.safetensors")


@functools.cache
def tokenizer(mode):
    return MODES[mode].tokenizer_class.from_pretrained(base_path(mode))


def load_model(mode, case="", dtype=torch.float32, **config):
    """The base in eval mode; with the golden prefix when `case` begins with ptuning_noproj or ptuning_proj."""
    prefix = next((name for name in PREFIXES if case.startswith(name)), None)
    if prefix:
        config = {"pre_seq_len": 6, "prefix_projection": prefix == "ptuning_proj", **config}
    model = MODES[mode].model_class.from_pretrained(base_path(mode), dtype=dtype, **config)
    if prefix:
        start = f"{prefix}.prefix."
        weights = {name.removeprefix(start): value for name, value in tensors(mode).items() if name.startswith(start)}
        assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model.eval()


@functools.cache
def shared_model(mode, prefix=""):
    """As load_model, loaded once: for tests that change nothing in it."""
    return load_model(mode, prefix).requires_grad_(False)


def relative_error(ours, theirs):
    """Largest difference, relative to the largest expected value."""
    return ((ours.float() - theirs).abs().max() / theirs.abs().max()).item()
