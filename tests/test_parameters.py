"""parameters.py: a model's parameters by name, shape and whether they are trained; blocks are read off the names."""

import subprocess
import sys

import torch

from parameters import Parameter, block_of, lowest_trained, parameters_of, trained_values
from tests.launch import REPOSITORY


def test_parameters_of_a_model_on_meta():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3, bias=False))
        model[1].weight.requires_grad_(False)
    parameters = parameters_of(model)
    assert parameters == [("0.weight", (4, 3), True), ("0.bias", (4,), True), ("1.weight", (3, 4), False)]
    assert [parameter.size for parameter in parameters] == [12, 4, 12] and trained_values(parameters) == 16
    assert type(parameters[0].shape) is tuple and parameters[0].name == "0.weight" and parameters[0].trained


def test_tied_parameters_count_once():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    assert [parameter.name for parameter in parameters_of(model)] == ["0.weight"]


def test_blocks_are_read_off_the_names():
    names = {
        "transformer.word_embeddings.weight": 0,
        "transformer.prefix_encoder.embedding.weight": 0,
        "base_model.model.transformer.encoder.layers.17.mlp.dense_h_to_4h.lora_A.default.weight": 17,
        "transformer.encoder.final_layernorm.weight": None,
    }
    assert {name: block_of(name) for name in names} == names
    parameters = [Parameter(f"layers.{i}.weight", (1,), i in (5, 7)) for i in range(9)]
    assert lowest_trained(parameters) == 5
    assert lowest_trained([*parameters, Parameter("prefix_encoder.embedding.weight", (1,), True)]) == 0
    assert lowest_trained([Parameter("final_layernorm.weight", (1,), True)]) is None


def test_importing_the_module_leaves_torch_alone():
    code = "import parameters, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
