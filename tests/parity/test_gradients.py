"""The gradient of every parameter has the norm that the official code computes (1e-3)."""

import pytest

from tests import golden

NAMES = [*golden.CASES, *(f"{prefix}.{case}" for prefix in golden.PREFIXES for case in golden.CASES)]


@pytest.mark.parametrize("case", NAMES)
def test_gradient_norms(mode, case):
    model, tensors = golden.load_model(mode, case), golden.tensors(mode)
    model(input_ids=tensors[f"{case}.input_ids"], labels=tensors[f"{case}.labels"]).loss.backward()
    norms = {name: None if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx(golden.expected(mode)["grad_norms"][case], rel=1e-3)
