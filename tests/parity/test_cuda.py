"""The golden values on a GPU: float32, every case, and greedy tokens; a forward pass never waits for the device."""

import pytest
import torch
from test_logits import NAMES

from tests import golden

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", NAMES)
def test_loss_and_logits(mode, case, attention):
    tensors = golden.tensors(mode)
    model = golden.load_model(mode, case).cuda()
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    ids, labels = tensors[f"{case}.input_ids"].cuda(), tensors[f"{case}.labels"].cuda()
    with torch.no_grad():
        loss, logits = model(input_ids=ids, labels=labels).loss, model(input_ids=ids).logits
    assert golden.relative_error(loss.cpu(), tensors[f"{case}.loss"]) < 1e-4
    assert golden.relative_error(logits[:, -1].cpu(), tensors[f"{case}.logits_last"]) < 1e-3


@pytest.mark.parametrize("prefix", ["", *golden.PREFIXES])
def test_greedy(mode, prefix):
    tensors = golden.tensors(mode)
    case = f"{prefix}.greedy" if prefix else "greedy"
    output = (
        golden.load_model(mode, prefix)
        .cuda()
        .generate(tensors[f"{case}.prompt"].cuda(), max_new_tokens=16, do_sample=False)
    )
    assert output.tolist() == tensors[f"{case}.output"].tolist()


@pytest.mark.parametrize("prefix", ["", "ptuning_proj"])
def test_forward_does_not_wait_for_the_device(mode, prefix):
    model = golden.load_model(mode, prefix).cuda().train()
    ids = golden.tensors(mode)["padded.input_ids"].cuda()
    model(input_ids=ids)  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(input_ids=ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
