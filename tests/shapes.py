"""Models of real sizes as shapes, and runs of them, for tests of the memory model."""

import torch

from benchmarks.memory import SHAPES, method_options
from memory.activations import read_sizes
from memory.setup import Setup
from memory.step import largest_batch
from methods import METHODS
from modes import MODES
from parameters import parameters_of


def alike(samples, length=1560, supervised=512):
    """A micro-batch of samples of the same size."""
    return largest_batch([length] * samples, [supervised] * samples, samples)


SETUP = Setup(precision="bf16", stage=2, ranks=1, batch=alike(1), reduce_bucket_size=2 * 10**8)


def model(mode, train_type, shapes="6b"):
    """(parameters, sizes) of a prepared model on meta."""
    config = MODES[mode].config_class(**SHAPES[shapes]["glm" if mode == "glm" else "glm2"])
    options = method_options({"options": None, "train_type": train_type}, config.num_hidden_layers)
    METHODS[train_type](**options).configure(config)
    with torch.device("meta"):
        prepared = METHODS[train_type](**options).prepare(MODES[mode].model_class(config))
    parameters = parameters_of(prepared)
    return parameters, read_sizes(config, gated=MODES[mode].gated)
