"""Random bases of other shapes than the golden ones, for tests of exports."""

import json
import shutil
from pathlib import Path

import torch

from modes import MODES
from shards import write_shards
from tests import golden

# What a golden base does not have: shapes of ChatGLM2 and ChatGLM3, by what is unusual.
SHAPES = {
    "one group": {"multi_query_group_num": 1},
    "a group per head": {"multi_query_group_num": 4},
    "wide heads": {"kv_channels": 32},
    "no bias": {"add_qkv_bias": False},
    "long context": {"rope_ratio": 50, "seq_length": 131072},
    "one layer": {"num_layers": 1},
    "padded vocabulary": {"padded_vocab_size": 2560},
}


def write_base(directory: Path, mode: str, **changes) -> Path:
    """A random base in float16 with the golden tokenizer, and its config.json with changes. Returns the directory."""
    source = golden.base_path(mode)
    config = {**json.loads((source / "config.json").read_text()), **changes}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "ice_text.model", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, directory / name)
    torch.manual_seed(0)
    model = MODES[mode].model_class(MODES[mode].config_class(**config))
    for name, parameter in model.named_parameters():  # biases, too, which are zero at the start
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.08)
    write_shards(((name, parameter.detach().half()) for name, parameter in model.named_parameters()), directory)
    return directory
