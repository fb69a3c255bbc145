"""--format hf --adapter_only: a LoRA adapter for the class in transformers, beside a base in its layout.

The fused projection y = W x with the update s B A x becomes several ones with the rows of W: each gets the same A and
its rows of B (https://arxiv.org/abs/2106.09685), so that their updates are the rows of the fused one.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from checkpoints.merging import Merge
from errors import UserError
from export.hf import check_hf, copy_licenses, hf_config, hf_tensors, layout_of
from export.verify import Outputs, compare, load_tensors, merged_outputs, outputs_of, prompts_of, stops_of
from files import write_json
from methods.adapter import BIAS, MAGNITUDE, PREFIX, Adapter, low_rank
from methods.adapter_config import CONFIG_FILE, WEIGHT_FILES
from methods.tensors import Fold, unchanged
from modes.config import Config
from modes.hf_layout import HfLayout
from options.merge import MergeOptions


def check_adapter(merge: Merge, options: MergeOptions) -> None:
    """Check that the checkpoint is an adapter that can be written for the class in transformers.

    Raises:
        UserError: the checkpoint is none, or trains rows of embeddings, whose indices few engines read.
    """
    check_hf(merge, options)
    adapter, path = merge.checkpoint.saved, merge.checkpoint.path
    if not isinstance(adapter, Adapter):
        raise UserError(f"--adapter_only: {path} is no LoRA checkpoint; leave it out to write the merged model.")
    if adapter.rows:
        raise UserError(f"--adapter_only: {path} trains rows of embeddings; leave it out to write the merged model.")


def write_adapter(merge: Merge, directory: Path, options: MergeOptions) -> int:
    """Write adapter_config.json and adapter_model.safetensors; returns the bytes of the tensors."""
    assert isinstance(merge.checkpoint.saved, Adapter), "see check_adapter"
    adapter = split_adapter(merge.checkpoint.saved, layout_of(merge.base), merge.base.make_config())
    named = (*adapter.lora_tensors(), *adapter.whole.items())
    # copies: several modules have the same A, and rows of one tensor
    tensors = {PREFIX + name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in named}
    save_file(tensors, directory / WEIGHT_FILES[0])
    base_path = str(merge.base.path.resolve()) if merge.base.hf else None
    write_json(directory / CONFIG_FILE, {**adapter.config, "base_model_name_or_path": base_path})
    copy_licenses(merge.base, directory)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def split_adapter(adapter: Adapter, hf: HfLayout, config: Config) -> Adapter:
    """An adapter by the names of the class in transformers, as plain LoRA or DoRA, with the same updates."""
    layers = {
        name: parts
        for module, official in adapter.layers.items()
        for name, parts in split_layer(adapter, module, official, hf, config)
    }
    whole = {
        name: part for official, tensor in adapter.whole.items() for name, part in hf.split(config, official, tensor)
    }
    ranks = {name: len(low_rank(parts)[0]) for name, parts in layers.items()}
    scales = {
        hf_name: adapter.scale(module) for module in adapter.layers for hf_name in module_names(module, hf, config)
    }
    alphas = {name: round(scales[name] * rank, 9) for name, rank in ranks.items()}  # scale = alpha / rank
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": adapter.config.get("lora_dropout", 0.0),
        "bias": "none",
        "use_dora": any(MAGNITUDE in parts for parts in layers.values()),
        "lora_bias": any(BIAS in parts for parts in layers.values()),
        "target_modules": target_modules(set(layers), hf, config),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "inference_mode": True,
    }
    return replace(adapter, config=described, layers=layers, whole=whole)


def module_names(module: str, hf: HfLayout, config: Config) -> list[str]:
    """The modules that have the rows of an official module's weight."""
    return [name.removesuffix(".weight") for name in hf.names(config)[f"{module}.weight"]]


def target_modules(adapted: set[str], hf: HfLayout, config: Config) -> list[str]:
    """The last parts of the adapted modules' names; the whole name where another layer's module is not adapted."""
    modules = {name.rpartition(".")[0] for names in hf.names(config).values() for name in names}
    partial = {name.rpartition(".")[2] for name in modules - adapted}
    lasts = {name: name.rpartition(".")[2] for name in adapted}
    return sorted({name if last in partial else last for name, last in lasts.items()})


def split_layer(
    adapter: Adapter, module: str, parts: dict[str, torch.Tensor], hf: HfLayout, config: Config
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """(module, its tensors) of the modules that have the rows of an official module."""
    parts = dict(parts)
    if "E" in parts:  # AdaLoRA's B E A as plain LoRA
        parts["A"] = parts["A"] * parts.pop("E")
    by_row = [name for name in ("B", MAGNITUDE, BIAS) if name in parts]
    names = module_names(module, hf, config)
    rows = {name: [part for _, part in hf.split(config, f"{module}.weight", parts[name])] for name in by_row}
    for i, name in enumerate(names):
        yield name, {**parts, **{part: rows[part][i] for part in by_row}}


def verify_adapter(merge: Merge, options: MergeOptions) -> str:
    """Compare logits of what peft loads beside the base with those of the merged model; nothing is rounded."""
    merge = replace(merge, dtype=torch.float32)
    merged = merged_outputs(merge)
    return compare(merged, written_outputs(merge), merge.output_dir, f"peft {peft.__version__}")


def written_outputs(merge: Merge) -> Outputs:
    """Outputs of the adapter in the output directory, loaded by peft beside the base in the layout of transformers."""
    alone = replace(merge, fold=Fold(unchanged, frozenset()))
    keys = hf_config(alone)
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    model = load_tensors(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, dict(hf_tensors(alone)))
    with warnings.catch_warnings(action="ignore"):  # peft reads a deprecated property of transformers
        model = peft.PeftModel.from_pretrained(model, str(merge.output_dir)).eval()
    return outputs_of(model, prompts_of(merge), stops_of(merge))
