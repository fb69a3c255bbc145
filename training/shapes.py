"""The shapes of a run's model, built on torch's meta device: the input of checks and memory estimates."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PretrainedConfig

from methods.method import Method
from modes import MODES
from modes.directory import Base
from parameters import Parameter, parameters_of, trained_values


@dataclass(frozen=True)
class ModelShapes:
    """The model's config as the method changes it, and all parameters of the prepared model."""

    config: PretrainedConfig
    parameters: list[Parameter]

    @cached_property
    def trained(self) -> int:
        """Number of trained values."""
        return trained_values(self.parameters)


def read_shapes(base: Base, method: Method) -> ModelShapes:
    """The shapes of a base with the method's parameters, built without memory.

    Raises:
        UserError: the method's options do not fit the model.
    """
    mode = MODES[base.mode]
    config = base.make_config()
    method.configure(config)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # the real `prepare` will warn again
        model = mode.model_class(config)
        method.check(model)
        model = method.prepare(model)
    return ModelShapes(config, parameters_of(model))
