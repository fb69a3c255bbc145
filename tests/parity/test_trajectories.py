"""Twelve AdamW steps of every method follow the losses of the official code (1e-3)."""

import pytest
import torch
from test_adapters import load_adapter

from tests import golden

METHODS = ("all", "freeze layers.3.", "ptuning_noproj", "ptuning_proj", "lora", "lora_all")


def prepare(mode, method):
    """The model with what a method trains, dropout off."""
    if method.startswith("lora"):
        return load_adapter(mode, method, is_trainable=True)
    model = golden.load_model(mode, method)
    trained = {"all": "", "freeze layers.3.": "layers.3."}.get(method, "prefix_encoder.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_trajectory(mode, method):
    expected, tensors = golden.expected(mode)["trajectories"], golden.tensors(mode)
    model = prepare(mode, method)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == expected[method]["trainable"]
    optimizer = torch.optim.AdamW(trained, **expected["optimizer"])
    losses = []
    for step in range(12):
        case = "padded" if step % 2 else "single"
        loss = model(input_ids=tensors[f"{case}.input_ids"], labels=tensors[f"{case}.labels"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(expected[method]["losses"], rel=1e-3)
