"""--format hf: a model directory of the class in transformers, which engines load without remote code.

config.json, generation_config.json                 of GlmForCausalLM
model*.safetensors                                  see modes/hf_layout.py
tokenizer.json, tokenizer_config.json, chat_template.jinja, tokenizer.model
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints.merging import Merge, merged_config, merged_tensors
from errors import UserError
from export.texts import PROMPTS
from export.tokenizer_json import check_tokenizer, write_tokenizer
from export.verify import Outputs, compare, merged_outputs, outputs_of, stops_of
from files import read_json, write_json
from modes.directory import Base, side_files
from modes.hf_layout import HfLayout
from options.merge import MergeOptions
from shards import parse_size, write_shards

LICENSES = "*LICENSE*"
GENERATION_CONFIG = "generation_config.json"


def layout_of(base: Base) -> HfLayout:
    """The layout of a base's generation.

    Raises:
        UserError: transformers has no class that computes it.
    """
    if base.generation.hf is None:
        raise UserError(
            f"{base.path} is a {base.generation.title}, which has no class in transformers: use --format official and "
            "predict.py."
        )
    return base.generation.hf


def check_hf(merge: Merge, options: MergeOptions) -> None:
    """Check that the class in transformers computes the merged model; reads no weights.

    Raises:
        UserError: it does not.
    """
    hf = layout_of(merge.base)
    if merge.fold.added:
        raise UserError(
            f"--format {options.format}: {merge.checkpoint.path} holds a prefix, which {hf.architecture} lacks; "
            "use --format official and predict.py."
        )
    hf.to_hf(merge.base.make_config())
    check_tokenizer(merge.base)


def write_hf(merge: Merge, directory: Path, options: MergeOptions) -> int:
    """Write the files into a directory; returns the bytes of the weights."""
    size = write_shards(hf_tensors(merge), directory, "model", parse_size(options.max_shard_size))
    write_json(directory / "config.json", hf_config(merge))
    write_json(directory / GENERATION_CONFIG, generation_config(merge.base))
    write_tokenizer(merge.base, directory)
    copy_licenses(merge.base, directory)
    return size


def copy_licenses(base: Base, directory: Path) -> None:
    """Copy the base's license files."""
    for file in side_files(base):
        if file.match(LICENSES):
            shutil.copy2(file, directory / file.name)


def hf_tensors(merge: Merge) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of the merged model by the names of the class in transformers."""
    hf, config = layout_of(merge.base), merge.base.make_config()
    known = hf.names(config)
    for name, tensor in merged_tensors(merge):
        if name in known:  # not the rotary table, which the class computes itself
            yield from hf.split(config, name, tensor)


def hf_config(merge: Merge) -> dict[str, Any]:
    """The content of config.json."""
    base, hf = merge.base, layout_of(merge.base)
    dtype = merged_config(merge).get("torch_dtype", base.config.get("torch_dtype", base.config.get("dtype")))
    ids = generation_config(base)
    return {
        "architectures": [hf.architecture],
        "model_type": hf.model_type,
        **hf.to_hf(base.make_config()),
        **{key: ids[key] for key in ("eos_token_id", "pad_token_id")},
        "bos_token_id": None,
        **({"torch_dtype": dtype, "dtype": dtype} if dtype else {}),  # for old and new readers
        "use_cache": True,
    }


def generation_config(base: Base) -> dict[str, Any]:
    """The content of generation_config.json: the base's, with every id that ends an answer."""
    file, tokenizer = base.path / GENERATION_CONFIG, base.make_tokenizer()
    given = read_json(file, "download it again") if file.is_file() else {}
    return {
        **{key: value for key, value in given.items() if key not in ("_from_model_config", "transformers_version")},
        "eos_token_id": base.generation.stop_ids(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }


def verify_hf(merge: Merge, options: MergeOptions) -> str:
    """Compare logits and prompts of what transformers loads with those of the merged model."""
    merged = merged_outputs(merge)
    by = f"transformers {transformers.__version__}"
    return compare(merged, written_outputs(merge.output_dir, stops_of(merge)), merge.output_dir, by)


def written_outputs(directory: Path, stop_ids: list[int]) -> Outputs:
    """Outputs of a directory loaded by transformers without remote code; the prompts are those of its chat template."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question, _ in PROMPTS
    ]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return outputs_of(model, prompts, stop_ids)
