"""LoRA adapters written by peft 0.5 load, with `weights_only`, to the logits that they gave there."""

import pytest
import torch
from peft import PeftModel

from tests import golden


def load_adapter(mode, name, **options):
    """The base with a golden adapter, in eval mode."""
    model = PeftModel.from_pretrained(golden.load_model(mode), golden.ROOT / mode / f"adapter_{name}", **options)
    return model.eval()


@pytest.mark.parametrize("name", ["lora", "lora_all"])
def test_logits(mode, name):
    tensors = golden.tensors(mode)
    model = load_adapter(mode, name)
    with torch.no_grad():
        logits = model(input_ids=tensors["padded.input_ids"]).logits
        loss = model(input_ids=tensors["padded.input_ids"], labels=tensors["padded.labels"]).loss
        plain = golden.shared_model(mode)(input_ids=tensors["padded.input_ids"]).logits
    assert golden.relative_error(logits.topk(8).values, tensors[f"{name}.padded.logits_top"]) < 1e-4
    assert golden.relative_error(loss, tensors[f"{name}.padded.loss"]) < 1e-4
    assert not torch.allclose(logits, plain, rtol=1e-3)
    merged = model.merge_and_unload()(input_ids=tensors["padded.input_ids"]).logits
    assert golden.relative_error(merged, logits) < 1e-5
