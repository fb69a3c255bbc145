"""Random bases in the official layout: the shapes of the 6B models, or narrower ones of the same proportions."""

import json
import shutil
from pathlib import Path

from benchmarks.arithmetic import LAST_LAYERS
from benchmarks.runs import GOLDEN
from modes import MODES

VOCABULARY = {"glm": 130528, "glm2": 65024, "glm3": 65024}


def base_config(
    mode: str, num_layers: int, hidden_size: int, vocab_size: int | None, head_size: int = 128, groups: int = 2
) -> dict:
    """config.json of a base; the proportions between its sizes are those of the 6B models.

    Args:
        head_size: that of the 6B models by default; a narrow model has more heads if it is smaller.
        groups: key/value heads, for ChatGLM2 and ChatGLM3.
    """
    config = json.loads((GOLDEN / mode / "base" / "config.json").read_text())
    heads = max(hidden_size // head_size, 2)
    vocab_size = vocab_size or VOCABULARY[mode]
    config.update(num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads)
    if mode == "glm":
        config.update(inner_hidden_size=4 * hidden_size, vocab_size=vocab_size)
    else:
        config.update(
            ffn_hidden_size=hidden_size * 13696 // 4096,
            kv_channels=hidden_size // heads,
            padded_vocab_size=vocab_size,
            multi_query_group_num=groups,
        )
    return config


def make_base(
    directory: Path,
    mode: str,
    num_layers: int,
    hidden_size: int,
    vocab_size: int | None,
    head_size: int = 128,
    groups: int = 2,
    max_shard_bytes: int = 2 * 10**9,
) -> int:
    """Write a random base of the asked shape (`base_config`) in float16, with a small tokenizer.

    Returns:
        The bytes of its weight files.
    """
    import torch  # here: parsing a command line does not need it

    from shards import write_shards

    config = base_config(mode, num_layers, hidden_size, vocab_size, head_size, groups)
    with torch.device("meta"):
        model = MODES[mode].model_class(MODES[mode].config_class(**config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def tensors():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                values = torch.randn(parameter.shape, device=device, dtype=torch.float16) * 0.02
            else:
                values = torch.full(parameter.shape, float("norm.weight" in name), dtype=torch.float16)
            yield name, values.cpu()

    directory.mkdir(parents=True)
    size = write_shards(tensors(), directory, max_shard_bytes=max_shard_bytes)
    for file in (GOLDEN / mode / "base").iterdir():
        if file.name in ("tokenizer_config.json", "ice_text.model", "tokenizer.model"):
            shutil.copy(file, directory / file.name)
    (directory / "config.json").write_text(json.dumps(config, indent=2))  # last: a base cut short has none
    return size


def freeze_names(num_layers: int) -> str:
    """--freeze_module_name of the last layers."""
    return ",".join(f"layers.{i}." for i in range(max(num_layers - LAST_LAYERS, 0), num_layers))
