"""export/quantized.py: the official quantized layout, against plain arithmetic; export/perplexity.py."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import predict
from errors import UserError
from export.perplexity import Perplexity, compare_perplexity, perplexity
from export.quantized import check_quantizable, pack, quantize, quantized, quantized_layers
from export.texts import PROMPTS
from generation.models import load_answerer
from modes import MODES
from modes.directory import iterate_shards, read_base
from modes.quantization import MATRIX, QuantizedLinear
from tests import golden
from tests.quantized import QUANTIZED, integers_of, make_release, packed

RELEASES = [(mode, bits) for mode in MODES for bits in (8, 4)]
# Largest relative difference of logits. Measured: 5e-4, 9.2e-3, 8.9e-3 with 8 bits; 1e-2, 0.15, 0.17 with 4 bits.
CLOSE = {8: 0.02, 4: 0.3}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """(mode, bits) -> directory of the quantized golden base."""
    root = tmp_path_factory.mktemp("releases")
    for mode, bits in RELEASES:
        make_release(mode, bits, root / f"{mode}-{bits}")
    return {(mode, bits): root / f"{mode}-{bits}" for mode, bits in RELEASES}


def tensors_of(base):
    return {name: tensor for _, shard in iterate_shards(base) for name, tensor in shard.items()}


def changed(base, **config):
    return dataclasses.replace(base, config={**base.config, **config})


def rows(dtype, width=64):
    """Random rows of all magnitudes that occur in a float16 matrix, and a row of zeros."""
    magnitudes = torch.logspace(-8, 4, 200, dtype=torch.float64)[:, None]
    matrix = torch.randn(200, width, dtype=torch.float64, generator=torch.manual_seed(0)) * magnitudes
    return torch.cat([matrix, torch.zeros(1, width)]).to(dtype)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_value_changes_by_more_than_half_of_its_scale(bits, dtype):
    matrix = rows(dtype)
    integers, scale = quantize(matrix, bits)
    assert integers.dtype == torch.int8 and scale.dtype == torch.float16 and scale.shape == (201,)
    assert integers.abs().max() == 2 ** (bits - 1) - 1
    error = (integers * scale.double()[:, None] - matrix).abs() / scale.double()[:, None]
    assert error.max() <= 0.5 + 1e-6
    assert not integers[-1].any()  # the row of zeros


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_and_bytes_are_those_of_plain_arithmetic(bits):
    matrix = torch.randn(300, 128, generator=torch.manual_seed(0)).half()
    integers, scale = quantize(matrix, bits)
    expected, expected_scale = integers_of(matrix.double().numpy(), bits)
    assert np.array_equal(integers.numpy(), expected) and np.array_equal(scale.numpy(), expected_scale)
    assert torch.equal(pack(integers) if bits == 4 else integers, packed(expected, bits))


def test_every_pair_of_4_bit_values_has_its_byte():
    """The byte is 16 times the even column, plus the odd column modulo 16; negative bytes are those from 128."""
    pairs = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    found = pack(pairs).flatten().tolist()
    for byte, (even, odd) in zip(found, pairs.tolist(), strict=True):
        assert byte % 256 == even % 16 * 16 + odd % 16
    assert len(set(found)) == 256


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_on_the_grid_stay(bits, dtype):
    """Rows that have the largest integer, as those of a release; float16 cannot hold the products exactly."""
    largest = 2 ** (bits - 1) - 1
    generator = torch.manual_seed(0)
    integers = torch.randint(-largest, largest + 1, (500, 64), generator=generator).to(torch.int8)
    integers[:, 3] = largest
    scale = torch.logspace(-4, 0, 500).half()
    again, scale_again = quantize((integers * scale.float()[:, None]).to(dtype), bits)
    assert torch.equal(again, integers)
    if dtype == torch.float32:
        assert torch.equal(scale_again, scale)


@pytest.mark.parametrize(("mode", "bits"), RELEASES)
def test_a_release_that_is_dequantized_gets_its_integers_again(mode, bits, releases):
    release, base = read_base(releases[mode, bits]), read_base(golden.base_path(mode))
    held = tensors_of(release)
    layers = quantized_layers(base, bits)
    plain = {
        name: MATRIX[bits](tensor, held[f"{name}_scale"].float(), torch.float16) if name in layers else tensor
        for name, tensor in held.items()
        if not name.endswith("_scale")
    }
    again = dict(quantized(plain.items(), base, bits))
    assert again.keys() == held.keys() and len(layers) == 16
    for name, tensor in held.items():
        if name.endswith("_scale"):
            torch.testing.assert_close(again[name], tensor, rtol=2**-10, atol=0)
        else:
            assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("mode", MODES)
def test_only_the_linear_layers_of_the_blocks_change(mode):
    base = read_base(golden.base_path(mode))
    plain = tensors_of(base)
    result = dict(quantized(plain.items(), base, 8))
    blocks = {name for name in plain if name.endswith(QUANTIZED) and ".layers." in name}
    assert quantized_layers(base, 8).keys() == blocks
    assert result.keys() == plain.keys() | {f"{name}_scale" for name in blocks}
    assert all(torch.equal(result[name], plain[name]) for name in plain.keys() - blocks)


@pytest.mark.parametrize(("mode", "bits"), RELEASES)
def test_a_quantized_directory_is_loaded_and_its_logits_are_near(mode, bits, releases, capsys):
    model = load_answerer(releases[mode, bits]).model
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 16
    ids = golden.tensors(mode)["padded.input_ids"]
    with torch.no_grad():
        expected = golden.shared_model(mode)(input_ids=ids).logits
        assert 1e-5 < golden.relative_error(model(input_ids=ids).logits, expected) < CLOSE[bits]
    predict.main(["--model_path", str(releases[mode, bits]), "--instruction", "你好", "--max_new_tokens", "2"])
    assert capsys.readouterr().out.endswith("\n")


def test_a_base_that_is_quantized_already(releases):
    with pytest.raises(UserError, match="quantized to 4 bits already: leave out --quantization_bit 8"):
        check_quantizable(read_base(releases["glm2", 4]), 8)


def test_an_odd_number_of_columns():
    base = changed(read_base(golden.base_path("glm2")), ffn_hidden_size=31)
    check_quantizable(base, 8)
    with pytest.raises(UserError, match=r"dense_4h_to_h.weight of .* has 31: use --quantization_bit 8"):
        check_quantizable(base, 4)


@pytest.mark.parametrize("mode", MODES)
def test_golden_bases_can_be_quantized(mode):
    for bits in (8, 4):
        check_quantizable(read_base(golden.base_path(mode)), bits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value):
    base = read_base(golden.base_path("glm3"))
    name = next(iter(quantized_layers(base, 8)))
    broken = torch.ones(4, 8)
    broken[1, 2] = value
    with pytest.raises(UserError, match=f"{name} has values that are not finite"):
        list(quantized([(name, broken)], base, 8))


def plain_perplexity(mode, pairs):
    """Out of all logits in float64; (perplexity, tokens)."""
    tokenizer, model = golden.tokenizer(mode), golden.shared_model(mode)
    nats = []
    for question, answer in pairs:
        row = MODES[mode].encode(tokenizer, {"instruction": question, "output": answer}, 2048, 2048)
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
        likelihoods = F.log_softmax(logits, dim=-1)
        labels = row["labels"]
        nats += [-likelihoods[i - 1, label].item() for i, label in enumerate(labels) if label != -100]
    return np.exp(np.mean(nats)), len(nats)


@pytest.mark.parametrize("mode", MODES)
def test_perplexity_is_that_of_all_logits(mode):
    found = perplexity(golden.shared_model(mode), read_base(golden.base_path(mode)))
    value, tokens = plain_perplexity(mode, PROMPTS)
    assert found.tokens == tokens > 100
    assert found.value == pytest.approx(value, rel=1e-4)


def test_perplexity_after_quantization_is_near_and_falls_with_bits(releases):
    def value(path):
        base = read_base(path)
        model = MODES["glm2"].model_class.from_pretrained(path, dtype=torch.float32).eval()
        return perplexity(model, base, PROMPTS[:2]).value

    before = value(golden.base_path("glm2"))
    change = {bits: abs(value(releases["glm2", bits]) / before - 1) for bits in (8, 4)}
    assert 0 < change[8] < change[4] < 0.1


def test_a_far_higher_perplexity_is_no_success(tmp_path):
    merged, damaged = Perplexity(10.0, 5), Perplexity(float("nan"), 5)
    assert "is 10 merged, 12 as int4" in compare_perplexity(merged, Perplexity(12.0, 5), tmp_path, "int4")
    for written in (damaged, Perplexity(30.0, 5)):
        with pytest.raises(UserError, match="quantize it to more bits"):
            compare_perplexity(merged, written, tmp_path, "int4")
