"""The model that a run trains: first its shapes, which cost nothing, then its weights."""

import warnings

import torch
from transformers import PretrainedConfig

from modes import Mode
from modes.directory import Base, iterate_shards
from parameters import Parameter, parameters_of
from training import ranks
from training.engine import DTYPES, build_partitioned
from training.quantization import load_base


def plan_model(mode: Mode, base: Base, method, method_options: dict) -> tuple[PretrainedConfig, list[Parameter]]:
    """The model's config as the method wants it, and the parameters of the model that it prepares.

    Raises:
        UserError: the method's options do not fit the model. Its shapes are built for that, without memory.
    """
    config = mode.config_class.from_pretrained(base.path)
    method.configure(config, **method_options)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # the real `prepare` will warn again
        model = mode.model_class(config)
        method.check(model, **method_options)
        model = method.prepare(model, **method_options)
    return config, parameters_of(model)


def make_model(
    mode: Mode,
    base: Base,
    config,
    method,
    options: dict,
    ds_config: dict,
    precision: str,
    seed: int,
    quantization_bit: int | None = None,
    double_quantization: bool = False,
):
    """The base with what the method trains; partitioned over the ranks from the start under ZeRO-3."""
    if ds_config["zero_optimization"]["stage"] == 3:
        model = build_partitioned(mode.model_class, config, ds_config, iterate_shards(base))
    else:
        # at once where DeepSpeed would put it: no rank then holds a copy in the machine's memory
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        model = load_base(mode, base, config, DTYPES[precision], quantization_bit, double_quantization, device)
    ranks.seed_everything(seed)  # new tensors are the same on every rank, whatever the ZeRO stage
    return method.prepare(model, **options)
