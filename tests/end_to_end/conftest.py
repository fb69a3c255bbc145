"""Bases for runs that must fail."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modes import MODES
from tests import launch


@pytest.fixture
def poisoned(tmp_path):
    """A base in which one token's embedding is NaN, and the lines of the records that hold the token."""
    source, base = launch.GOLDEN / "glm3" / "base", tmp_path / "base"
    shutil.copytree(source, base)
    tokenizer = MODES["glm3"].tokenizer_class.from_pretrained(source)
    records = [json.loads(line) for line in (launch.GOLDEN / "samples.jsonl").read_text().splitlines()]
    rows = [MODES["glm3"].encode(tokenizer, record, 256, 160)["input_ids"] for record in records]
    token = next(i for i in rows[3] if all(i not in row for n, row in enumerate(rows) if n != 3))
    name = "transformer.embedding.word_embeddings.weight"
    [file] = [path for path in base.iterdir() if name in tensor_names(path)]
    tensors = load(file)
    tensors[name][token] = math.nan
    store(tensors, file)
    return base


def tensor_names(path):
    return load(path) if path.suffix in (".bin", ".safetensors") else {}


def load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def store(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(tensors, path)
