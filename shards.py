"""Safetensors directories, written and read one shard at a time, so that at most one shard is in memory."""

import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from errors import UserError
from files import sync

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # by --precision
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Bytes of a size such as "2GB", "500MB" or "1.5GB" (powers of 1000, as transformers counts shards)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", text.strip().upper())
    if match is None or len(match[1]) > 12 or float(match[1]) == 0:  # 12 digits: beyond that float() ends at infinity
        raise UserError(f"--max_shard_size {text!r} is not a size: write a number and KB, MB or GB, such as 2GB.")
    return int(float(match[1]) * UNITS[match[2]])


def write_shards(
    tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, stem: str = "model", max_shard_bytes: int = 2 * 10**9
) -> int:
    """Write (name, CPU tensor) pairs as STEM.safetensors, or as STEM-0000I-of-0000N.safetensors with an index.

    Holds at most one shard. Each shard waits until the one before is on the disk, which bounds the time between two
    tensors. Returns the bytes of all tensors.
    """
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = total_bytes = 0
    shards: list[list[str]] = []
    syncs: list[Future] = []

    def flush() -> None:
        nonlocal shard, shard_bytes
        path = directory / f"{stem}-part{len(shards)}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        if syncs:
            syncs[-1].result()
        syncs.append(background.submit(sync, path))
        shards.append(list(shard))
        shard, shard_bytes = {}, 0

    with ThreadPoolExecutor(1) as background:
        for name, tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            if shard and shard_bytes + size > max_shard_bytes:
                flush()
            shard[name] = tensor.contiguous()
            shard_bytes += size
            total_bytes += size
        if shard or not shards:
            flush()
        syncs[-1].result()

    if len(shards) == 1:
        (directory / f"{stem}-part0.safetensors").rename(directory / f"{stem}.safetensors")
        return total_bytes
    weight_map = {}
    for i, names in enumerate(shards):
        file_name = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{stem}-part{i}.safetensors").rename(directory / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total_bytes


def tensor_files(directory: Path, stem: str) -> dict[str, Path]:
    """Tensor name -> its file, in a directory that write_shards wrote.

    Raises:
        UserError: there is no file of that name, or one is truncated.
    """
    files = sorted(directory.glob(f"{stem}.safetensors")) or sorted(directory.glob(f"{stem}-*-of-*.safetensors"))
    if not files:
        raise UserError(f"{directory} has no {stem}.safetensors: give the directory of a finished checkpoint.")
    file_of = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                file_of.update(dict.fromkeys(opened.keys(), file))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}), it is truncated: use another checkpoint.") from None
    return file_of


def read_tensor(files: dict[str, Path], name: str) -> torch.Tensor:
    """One tensor, memory-mapped."""
    with safe_open(files[name], "pt") as opened:
        return opened.get_tensor(name)


def read_tensors(directory: Path, stem: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) that write_shards wrote, memory-mapped."""
    files = tensor_files(directory, stem)
    for name in files:
        yield name, read_tensor(files, name)
