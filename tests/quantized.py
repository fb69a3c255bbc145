"""Makes the official quantized layout out of a golden base, and computes the same in plain float64 arithmetic."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from export.quantized import config_changes, quantized
from modes.directory import iterate_shards, read_base, side_files
from shards import write_shards
from tests.launch import GOLDEN

QUANTIZED = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def integers_of(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(integers [out, in], float16 scale [out]): the largest of each row becomes 127, or 7."""
    largest = 2 ** (bits - 1) - 1
    scale = (np.abs(matrix).max(axis=1) / largest).astype(np.float16)
    return np.clip(np.round(matrix / scale.astype(np.float64)[:, None]), -largest - 1, largest), scale


def packed(integers: np.ndarray, bits: int) -> torch.Tensor:
    """The int8 tensor of the file; 4 bits: a byte is the even column times 16, plus the odd column modulo 16."""
    if bits == 4:
        integers = integers[:, 0::2] * 16 + integers[:, 1::2] % 16
    assert np.abs(integers + 0.5).max() < 128
    return torch.from_numpy(integers.astype(np.int8))


def make_release(mode: str, bits: int, directory: Path) -> dict[str, np.ndarray]:
    """Write a golden base as a release of 4 or 8 bits; returns the float64 matrices that its integers stand for.

    4 bits as one .bin file and 8 bits as safetensors, so that both ways of reading are tried.
    """
    base = read_base(GOLDEN / mode / "base")
    plain = {name: tensor.clone() for _, shard in iterate_shards(base) for name, tensor in shard.items()}
    tensors = dict(quantized(plain.items(), base, bits))
    matrices = {}
    for name, tensor in plain.items():
        if name.endswith(QUANTIZED) and ".layers." in name:
            integers, scale = integers_of(tensor.double().numpy(), bits)
            matrices[name] = integers * scale.astype(np.float64)[:, None]
    directory.mkdir(parents=True)
    for file in side_files(base):
        shutil.copy(file, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **config_changes(bits)}))
    if bits == 4:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        write_shards(tensors.items(), directory)
    return matrices
