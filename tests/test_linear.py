"""modes/linear.py: the same as torch's linear layer, for any number of rows."""

import pytest
import torch

from modes import MODES
from modes.directory import read_base
from modes.linear import FEWEST, MOST, Linear
from modes.loading import load_base
from tests import golden


@pytest.mark.parametrize("rows", [1, FEWEST - 1, FEWEST, 13, MOST, MOST + 1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_layout(rows, bias, dtype):
    layer = Linear(48, 80, bias=bias, dtype=dtype)
    inputs = torch.randn(3, rows, 48, dtype=dtype).transpose(0, 1)  # not contiguous
    for x in (inputs[:, 0], inputs[None, :, 1], inputs[:, None, 2]):
        with torch.inference_mode():
            output = layer(x)
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
        assert output.shape == expected.shape and output.is_contiguous()
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)  # with gradients


def test_compiled_with_rows_that_vary():
    layer = Linear(48, 80)
    compiled = torch.compile(layer, dynamic=True, backend="eager")
    for rows in (5, 13, 20, 40, 6):
        x = torch.randn(1, rows, 48)
        torch.testing.assert_close(compiled(x), layer(x))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("mode", MODES)
def test_a_loaded_model_uses_it(mode):
    base = read_base(golden.base_path(mode))
    model = load_base(base.generation, base, base.make_config(), torch.float32)
    assert [name for name, module in model.named_modules() if type(module) is torch.nn.Linear] == []
    assert sum(isinstance(module, Linear) for module in model.modules()) == 4 * model.config.num_layers


def test_no_rows():
    with torch.inference_mode():
        assert Linear(4, 6)(torch.empty(1, 0, 4)).shape == (1, 0, 6)
