"""Read a base directory: its generation, tensors and other files.

It has the official layout, or that of the class in transformers (modes/hf_layout.py), which is read as the official.
Nothing in it is executed: configs are JSON; weights are safetensors, or pickles read with `weights_only`.
"""

import hashlib
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from errors import UserError
from files import read_json
from modes import MODES
from modes.config import Config
from modes.hf_layout import HfLayout
from modes.mode import Mode
from modes.recognition import choose_mode
from modes.tokenizer import Tokenizer
from texts import counted, one_line, quote

# In order of precedence: a directory with both forms is read as safetensors.
WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model-*-of-*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*-of-*.bin"),
)
ADAPTER = "adapter_config.json"  # transformers would apply the adapter automatically
# Every JSON file that transformers reads automatically.
JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
# Files that describe the layout of a class in transformers, and not the model.
HF_FILES = {"tokenizer.json", "chat_template.jinja", *JSON_FILES} - {"generation_config.json"}
# Errors of a broken or hostile weight file.
BROKEN = (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError)
SAMPLED_VALUES = 64  # of each tensor, in a fingerprint


@dataclass(frozen=True, eq=False)  # by identity, so that `fingerprint` is computed once
class Base:
    """A complete base directory."""

    path: Path
    mode: str  # a key of MODES
    config: dict[str, Any]  # official keys, in either layout
    weight_files: tuple[Path, ...]
    note: str = ""  # for the user, if only --mode decides the generation
    hf: HfLayout | None = None  # the layout of its files; None is the official one

    @property
    def generation(self) -> Mode:
        """The declaration of the generation."""
        return MODES[self.mode]

    @property
    def vocabulary(self) -> Path:
        """The sentencepiece model."""
        return self.path / self.generation.vocabulary_file

    def make_config(self) -> Config:
        """A config of the model's class."""
        return self.generation.config_class.from_dict(self.config)

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer. Another layout's JSON files make special tokens of the commands, which ours are not."""
        tokenizer_class = self.generation.tokenizer_class
        return tokenizer_class(self.vocabulary) if self.hf else tokenizer_class.from_pretrained(self.path)


def read_base(path: str | os.PathLike, mode: str | None = None, recorded: str | None = None) -> Base:
    """Read a base directory's config and list its weights, without loading any.

    Args:
        mode: the generation of --mode, or None. recorded: that of a checkpoint's record, or None.

    Raises UserError if it is missing, unreadable or incomplete, is not a ChatGLM, or is not of that generation.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: give the directory of a ChatGLM base.")
    config = _read_json(path / "config.json")
    if (path / ADAPTER).exists():
        raise UserError(f"{path} holds an adapter beside the base ({ADAPTER}): move the adapter's files elsewhere.")
    contents = {name: _read_json(path / name) for name in JSON_FILES if (path / name).exists()}
    hf = find_layout(config)
    official = hf.to_official(config) if hf else config
    mode, note = choose_mode(path, official, contents.get("tokenizer_config.json", {}), mode, recorded)
    base = Base(path=path, mode=mode, config=official, weight_files=_weight_files(path), note=note, hf=hf)
    _check_config(base)
    if hf:
        hf.check(base.make_config(), config)
    tokenizer = _read_tokenizer(base)
    _check_links(base)
    check_weights(base)
    _check_markers(base, tokenizer)
    return base


def find_layout(config: dict[str, Any]) -> HfLayout | None:
    """The layout of a class in transformers that a config.json names; None for any other."""
    layouts = (mode.hf for mode in MODES.values())
    return next((hf for hf in layouts if hf and hf.model_type == config.get("model_type")), None)


def iterate_shards(base: Base) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """Yield (path, tensors by official name) of each weight file; memory-mapped, so that only used tensors are read.

    Raises UserError if a file cannot be read or contains anything but tensors.
    """
    shards = _read_shards(base)
    return base.hf.join(base.make_config(), shards) if base.hf else shards


def _read_shards(base: Base) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """Yield (path, tensors by the names in it) of each weight file."""
    for file in base.weight_files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    shard = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
            else:
                shard = torch.load(file, map_location="cpu", mmap=_is_zip(file), weights_only=True)
        except pickle.UnpicklingError as error:  # torch's message explains at length how to load it anyway
            raise UserError(f"{file} cannot be read as weights (it has more than tensors): use another.") from error
        except BROKEN as error:
            raise UserError(f"{file} cannot be read as weights ({one_line(error)}): download it again.") from error
        if not isinstance(shard, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in shard.values()):
            raise UserError(f"{file} contains more than tensors by name: download it again.")
        yield file, shard


def check_weights(base: Base) -> None:
    """Raise UserError unless the weights have every tensor of the model in its shape; reads no values.

    transformers would initialize a missing one randomly, with a warning.
    """
    with torch.device("meta"):
        model = base.generation.model_class(base.make_config())
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    bits = quantization_bit(base)
    config = f"config.json (quantization_bit {bits})" if bits else "config.json"
    for file, shard in iterate_shards(base):
        for name in shard.keys() & wanted.keys():
            held, asked = shard[name], wanted[name]
            if held.shape != asked.shape or held.is_floating_point() != asked.is_floating_point():
                raise UserError(
                    f"{file} holds {name} of shape {list(held.shape)} in {_dtype(held)}, {config} requires "
                    f"{list(asked.shape)} in {_dtype(asked)}: take both from the same release."
                )
            del wanted[name]
    missing = [name for name in wanted if "prefix_encoder." not in name]
    if missing:
        raise UserError(
            f"{base.path} holds no {missing[0]} ({counted(len(missing), 'parameter')} missing): download it again."
        )


def quantization_bit(base: Base) -> int:
    """Bits of the linear layers of an official quantized release; 0 for any other base."""
    return base.config.get("quantization_bit", 0)


@cache
def fingerprint(base: Base) -> str:
    """A hash of the weights of a base: SHA-256 (hex) over names, shapes and evenly spaced values of its tensors.

    It does not depend on sharding, file format or derived tensors (rotary tables, tied tensors).
    """
    tied = base.generation.model_class._tied_weights_keys or {}
    entries = []
    for _, shard in iterate_shards(base):
        for name, tensor in shard.items():
            if name.endswith("inv_freq") or name in tied:
                continue
            count = tensor.numel()
            index = torch.linspace(0, max(count - 1, 0), min(count, SAMPLED_VALUES), dtype=torch.float64).long()
            values = tensor.reshape(-1)[index].float()
            entries.append((name, tuple(tensor.shape), values.numpy().astype("<f4").tobytes()))
    digest = hashlib.sha256()
    for name, shape, sample in sorted(entries):
        digest.update(f"{name} {shape}\n".encode() + sample)
    return digest.hexdigest()


def side_files(base: Base) -> list[Path]:
    """All files of a base directory except weights and their index, to copy into a merged one: sorted paths.

    Of another layout than the official one: without those that describe it.
    """
    weights = {name for index, single, _ in WEIGHTS for name in (index, single)}
    if base.hf:
        weights |= HF_FILES
    patterns = [pattern for _, _, pattern in WEIGHTS]
    return sorted(
        file
        for file in base.path.iterdir()
        if file.is_file() and file.name not in weights and not any(file.match(pattern) for pattern in patterns)
    )


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The weight files of a directory, sorted. Raises UserError if there are none, or some are missing."""
    for index_name, single, pattern in WEIGHTS:
        index = path / index_name
        if index.exists():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) for name in weight_map.values() or [None]
            ):
                raise UserError(f"{index} has no weight_map: download it again.")
            outside = sorted(name for name in weight_map.values() if name != Path(name).name)
            if outside:
                raise UserError(f"{index} names {outside[0]!r}, which is not a file of {path}: download it again.")
            files = sorted({path / name for name in weight_map.values()})
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)}, named in {index_name}: download the rest.")
            return tuple(files)
        if (path / single).is_file():
            return (path / single,)
        shards = sorted(path.glob(pattern))
        if shards:
            return _complete(path, shards)
    raise UserError(f"{path} holds no weights (*.safetensors or pytorch_model*.bin): download them.")


def _complete(path: Path, shards: list[Path]) -> tuple[Path, ...]:
    """Shards without an index; UserError unless their number is that in their names."""
    total = re.search(r"-of-0*(\d+)\.", shards[0].name)
    if total is None or int(total[1]) != len(shards):
        raise UserError(f"{path} holds {len(shards)} weight files and no index, the first named {shards[0].name}:"
                        " download the rest.")  # fmt: skip
    return tuple(shards)


def _check_config(base: Base) -> None:
    """Raise UserError unless the model's config class accepts config.json, with plausible sizes."""
    file = base.path / "config.json"
    for key, largest in base.generation.largest.items():
        value = base.config.get(key)
        if type(value) is not int or not 1 <= value <= largest:
            raise UserError(f"{file} has {key} {quote(value)}, not a number from 1 to {largest}: download it again.")
    try:
        base.make_config()
    # A wrong type raises the first of these, an invalid key one of the others.
    except (StrictDataclassError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{file} cannot be used ({one_line(error)}): download it again.") from error


def _read_tokenizer(base: Base) -> Tokenizer:
    """The tokenizer of a base. Raises UserError unless its files are those of a ChatGLM."""
    file = base.vocabulary
    if not file.is_file():
        raise UserError(f"{file} is missing: copy the tokenizer files of the base to {base.path}.")
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{file} is not a sentencepiece model: download it again.") from error
    try:
        return base.make_tokenizer()
    # A wrong type in one of its JSON files raises one of these.
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OSError) as error:
        raise UserError(
            f"the tokenizer's JSON files in {base.path} have a value of a wrong type: download them again."
        ) from error


def _check_markers(base: Base, tokenizer: Tokenizer) -> None:
    """Raise UserError unless the tokenizer has every marker of the prompt, at a valid id of the model.

    An unknown one would become <unk>, and the model would be trained on a prompt that never occurs in prediction.
    """
    file, mode = base.vocabulary, base.generation
    config = base.make_config()
    for marker, index in tokenizer.markers.items():
        if index < 0 or index == tokenizer.unk_token_id:
            raise UserError(f"{file} has no {marker}, which the prompt of {mode.name} needs: download it again.")
        if index >= config.vocab_size:
            raise UserError(
                f"{file} has {marker} at id {index}, config.json has a vocabulary of {config.vocab_size}: take both "
                f"from the same release{mode.vocabulary_advice}."
            )
    fields = vars(config)
    for key, index in tokenizer.ids_in_config.items():
        if fields[key] != index and type(fields[key]) is int:
            raise UserError(
                f"the tokenizer in {base.path} has {key} {index}, config.json {fields[key]}: take both from the same "
                f"release{mode.vocabulary_advice}."
            )


def _check_links(base: Base) -> None:
    """Raise UserError for a link out of the directory: its target would be copied into a merged directory.

    Allowed are the hub's cache, whose files are in ../../blobs, and a base whose files or weights are all links, which
    was assembled on this machine. Weights may be anywhere, because they are read as tensors.
    """
    here, sides = base.path.resolve(), side_files(base)
    if not any(here in file.resolve().parents for file in (*sides, *base.weight_files)):
        return
    inside = (here, here.parent.parent / "blobs")
    beside_weights = {file.resolve().parent for file in base.weight_files}
    for file in sides:
        target = file.resolve()
        if target.parent not in beside_weights and not any(directory in target.parents for directory in inside):
            raise UserError(f"{file} is a link to {target}, outside of the base: replace it with the file itself.")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if it is missing, unreadable or anything else."""
    return read_json(file, "download it again", missing="give the directory of a ChatGLM base")


def _is_zip(file: Path) -> bool:
    """Whether a .bin file has torch's format since 1.6; older ones cannot be memory-mapped."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"
