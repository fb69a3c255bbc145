"""Configurations of the 6B models, and the parameters that a method prepares: no weights are read or made."""

import os
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

from methods import METHODS  # noqa: E402
from modes import MODES  # noqa: E402
from parameters import Parameter, parameters_of  # noqa: E402

# What the released config.json files set beyond the defaults; ChatGLM2-6B and ChatGLM3-6B have the same shapes.
RELEASED = {
    "glm": {"inner_hidden_size": 16384},
    "glm2": {"multi_query_group_num": 2, "add_qkv_bias": True},
}
TITLES = {"glm": "ChatGLM-6B", "glm2": "ChatGLM2-6B, ChatGLM3-6B"}


def released(mode: str) -> PretrainedConfig:
    """The configuration of the 6B model of a mode."""
    return MODES[mode].config_class(**RELEASED["glm" if mode == "glm" else "glm2"])


def plan(mode: str, config: PretrainedConfig, train_type: str, options: dict) -> list[Parameter]:
    """Parameters of a model that a method prepares.

    Args:
        config: of the base; the method changes it as it needs.
        options: of the method, as the command line gives them.
    """
    method = METHODS[train_type](**options)
    method.configure(config)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = method.prepare(MODES[mode].model_class(config))
    return parameters_of(model)
