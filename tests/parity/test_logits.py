"""Losses and logits are those of the official models: float32 within 1e-4, bfloat16 within 3%."""

import pytest
import torch

from tests import golden

NAMES = [*golden.CASES, *(f"{prefix}.{case}" for prefix in golden.PREFIXES for case in golden.CASES)]


def measure(model, mode, case):
    """Relative errors of everything expected of a case, by name."""
    tensors = golden.tensors(mode)
    ids, labels = tensors[f"{case}.input_ids"], tensors[f"{case}.labels"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss
        logits = model(input_ids=ids).logits.float()
    assert logits.shape[:2] == ids.shape
    ours = {
        "loss": loss,
        "logits_last": logits[:, -1],
        "logits_norm": logits.norm(dim=-1),
        "logits_top": logits.topk(8).values,
    }
    return {
        quantity: golden.relative_error(value, tensors[f"{case}.{quantity}"])
        for quantity, value in ours.items()
        if f"{case}.{quantity}" in tensors
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", NAMES)
def test_float32(mode, case, attention):
    model = golden.load_model(mode, case)
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    errors = measure(model, mode, case)
    assert {"loss", "logits_last", "logits_norm"} <= errors.keys()
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", NAMES)
def test_bfloat16(mode, case):
    """bfloat16 has 8 bits: a single rounding is 0.4%, and four layers of them add up to under 3% of the largest logit
    (1.6% at worst as measured). The loss, a mean of many, stays within 0.3%.
    """
    model = golden.load_model(mode, case, dtype=torch.bfloat16)
    errors = measure(model, mode, case)
    assert errors.pop("loss") < 0.003
    assert max(errors.values()) < 0.03, errors
