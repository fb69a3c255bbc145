"""modes/loss.py: one call of the output layer for any number of tokens, right loss and gradients in every precision."""

import peft
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from modes.loss import CHUNK, OutputLayer, supervised_loss

COUNTS = (0, 1, 10, CHUNK, 4 * CHUNK + 7)
HIDDEN, VOCABULARY = 16, 300


def make(count, dtype=torch.float32, vocabulary=VOCABULARY, trained=True):
    torch.manual_seed(0)
    layer = OutputLayer(HIDDEN, vocabulary).to(dtype).requires_grad_(trained)
    hidden = torch.randn(count, HIDDEN).to(dtype).requires_grad_()
    return layer, hidden, torch.randint(0, vocabulary, (count,))


def reference(layer, hidden, targets, divisor):
    """Loss and gradients of hidden and weight in float64, from all logits as the precision rounds them."""
    with torch.no_grad():
        logits, weight = layer(hidden).double(), layer.weight.double()
        loss = F.cross_entropy(logits, targets, reduction="sum") / divisor
        grad_logits = (logits.softmax(dim=1) - F.one_hot(targets, layer.out_features)) / divisor
        return loss, grad_logits @ weight, grad_logits.T @ hidden.double()


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_one_call_for_any_number_of_tokens(count, trained):
    layer, hidden, targets = make(count, trained=trained)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    loss = supervised_loss(hidden, targets, layer, 7)
    loss.backward()
    assert calls == [1]
    expected, *gradients = reference(layer, hidden, targets, 7)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert hidden.grad.shape == hidden.shape
    if not count:
        assert loss == 0 and (not trained or not layer.weight.grad.any())
        return
    assert error(hidden.grad, gradients[0]) < 1e-6
    assert error(layer.weight.grad, gradients[1]) < 1e-6 if trained else layer.weight.grad is None


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype, tolerance, scale):
    """As float64, row by row, though most softmax values are too small for fp16: the loss scale comes in backward.

    Gradients below the epsilon of Adam (1e-8) count for nothing, and without a loss scale those that fp16 cannot hold.
    """
    layer, hidden, targets = make(CHUNK + 50, dtype, vocabulary=4000)
    with torch.no_grad():
        layer.weight *= torch.linspace(1, 12, 4000)[:, None].to(dtype)
        hidden *= torch.linspace(0.1, 3, len(hidden))[:, None].to(dtype)
    (supervised_loss(hidden, targets, layer, len(targets)) * scale).backward()
    _, *gradients = reference(layer, hidden, targets, len(targets))
    least = 1e-8 if scale > 1 else 1e-4
    for actual, expected in zip((hidden.grad, layer.weight.grad), gradients, strict=True):
        size = expected.norm(dim=1)
        errors = (actual.double() / scale - expected).norm(dim=1) / size
        assert (size > least).sum() > 100
        assert errors[size > least].max() < tolerance


def test_many_alike_tokens_do_not_overflow_in_fp16():
    """The gradient of one row of the weight sums over all positions: 4,096 of 30 each are more than fp16 can hold."""
    layer, hidden, targets = make(4096, torch.float16)
    with torch.no_grad():
        hidden.fill_(30)
        layer.weight.zero_()
    loss = supervised_loss(hidden, targets.zero_(), layer)
    loss.backward()
    assert layer.weight.grad[0].tolist() == pytest.approx([-30 * (1 - 1 / VOCABULARY)] * HIDDEN, rel=2e-3)


def test_logits_are_computed_once():
    """Operations of matrix products: one product forward, one for each gradient, none for a gradient nobody wants."""
    product = 2 * (2 * CHUNK + 1) * HIDDEN * VOCABULARY
    for trained in (False, True):
        layer, hidden, targets = make(2 * CHUNK + 1, trained=trained)
        with FlopCounterMode(display=False) as counter:
            supervised_loss(hidden, targets, layer).backward()
        assert counter.get_total_flops() == (3 if trained else 2) * product
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            loss = supervised_loss(hidden, targets, layer)
        assert counter.get_total_flops() == product and not loss.requires_grad
    layer, hidden, targets = make(2 * CHUNK + 1)
    with FlopCounterMode(display=False) as counter:  # the output layer alone is trained
        supervised_loss(hidden.detach(), targets, layer).backward()
    assert counter.get_total_flops() == 2 * product


def test_backward_twice_is_an_error():
    layer, hidden, targets = make(10)
    loss = supervised_loss(hidden, targets, layer)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # and no wrong gradient
        loss.backward()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("wrapper", ["lora", "modules_to_save"])
def test_under_peft(wrapper, count):
    """LoRA adds to the logits, so that all of them exist at once; a copy that peft trains is the layer itself."""
    layer, hidden, targets = make(count)
    head = {"target_modules": ["1"]} if wrapper == "lora" else {"target_modules": ["0"], "modules_to_save": ["1"]}
    model = torch.nn.Sequential(torch.nn.Linear(HIDDEN, HIDDEN), layer)
    config = peft.LoraConfig(r=2, init_lora_weights=False, **head)
    wrapped = peft.get_peft_model(model, config).base_model.model[1]
    calls = []
    wrapped.register_forward_hook(lambda *_: calls.append(1))
    loss = supervised_loss(hidden, targets, wrapped, 7)
    loss.backward()
    gradient, hidden.grad = hidden.grad, None
    expected = F.cross_entropy(wrapped(hidden), targets, reduction="sum") / 7
    expected.backward()
    assert calls == [1, 1]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, hidden.grad)
