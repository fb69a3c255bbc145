"""Write a model as GGUF, for llama.cpp and Ollama: what the format can hold, and the files of an export.

The `gguf` package, an optional dependency, is imported only by export/gguf_file.py.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from checkpoints.merging import Merge
from errors import UserError
from export.gguf_vocabulary import check_vocabulary, read_vocabulary
from export.hf import layout_of
from export.ollama import modelfile
from export.perplexity import compare_perplexity, perplexity
from export.verify import merged_model
from modes.directory import Base
from options.merge import MergeOptions

INSTALL = "pip install -c constraints.txt -e '.[gguf]'"


def check_gguf(base: Base) -> None:
    """Check that GGUF can hold a model of this base, and that the `gguf` package is installed; reads no weights.

    Raises:
        UserError: it cannot, or is not.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--format gguf needs the gguf package, which is not installed: {INSTALL}.")
    keys = model_keys(base)
    heads, size, width = keys["num_attention_heads"], keys["head_dim"], keys["hidden_size"]
    if heads * size != width:
        raise UserError(
            f"config.json has num_attention_heads {heads}, kv_channels {size} and hidden_size {width}: llama.cpp needs "
            "heads × channels = hidden_size, use --format hf."
        )
    check_vocabulary(base)


def model_keys(base: Base) -> dict[str, Any]:
    """Keys of config.json as in transformers. Raises UserError for a model that its class cannot compute."""
    return layout_of(base).to_hf(base.make_config())


def file_name(quantize: str) -> str:
    """The name of the file in the directory."""
    return f"model-{quantize}.gguf"


def write_gguf(base: Base, tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, quantize: str) -> int:
    """Write model-QUANTIZE.gguf into a directory, one tensor at a time, and a Modelfile for it.

    Args:
        base: one that passed `check_gguf`; the model has its config and vocabulary.
        tensors: (official name, CPU tensor) pairs of the model, in the order of the base's files.

    Returns the bytes of the GGUF file.

    Raises:
        UserError: a value does not fit float16.
        OSError: the disk is full.
    """
    from export.gguf_file import write_file  # imports an optional dependency

    file, keys = directory / file_name(quantize), model_keys(base)
    write_file(file, base, keys, tensors, quantize)
    texts = read_vocabulary(base).texts
    stops = [texts[index] for index in base.generation.stop_ids(base.make_tokenizer())]
    recipe = modelfile(base.mode, file.name, stops, keys["max_position_embeddings"])
    (directory / "Modelfile").write_text(recipe, encoding="utf-8")
    return file.stat().st_size


def verify_gguf(merge: Merge, options: MergeOptions) -> str:
    """Compare perplexities of the merged model and of the values in the file, dequantized."""
    from export.gguf_file import read_file  # imports an optional dependency

    merged = merged_model(merge)
    before = perplexity(merged, merge.base)
    merged.load_state_dict(read_file(merge.output_dir / file_name(options.quantize), merge.base))
    return compare_perplexity(before, perplexity(merged, merge.base), merge.output_dir, options.quantize)
