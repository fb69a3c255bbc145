"""Official quantized releases and bases quantized by bitsandbytes: arithmetic, loading, and errors."""

import json
import math
import shutil
import sys

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

import predict
from checkpoints.merging import prepare_merge
from errors import UserError
from methods.all import All
from methods.freeze import Freeze
from methods.lora import Lora
from methods.ptuning import PTuning
from modes import MODES
from modes.directory import fingerprint, read_base
from modes.loading import check_quantization, load_base
from modes.loss import supervised_loss
from modes.quantization import QuantizedLinear
from tests.launch import GOLDEN, start
from tests.prepared import write_merged
from tests.quantized import integers_of, make_release, packed
from training.check import check_training

TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
INPUT_IDS = torch.arange(100, 140)[None]
RELEASES = [(mode, bits) for mode in MODES for bits in (4, 8)]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """(mode, bits) -> (base, the float64 matrices that its integers stand for)."""
    root = tmp_path_factory.mktemp("releases")
    made = {(mode, bits): make_release(mode, bits, root / f"{mode}-{bits}") for mode, bits in RELEASES}
    return {(mode, bits): (read_base(root / f"{mode}-{bits}"), matrices) for (mode, bits), matrices in made.items()}


def load(base, dtype=torch.float32, **keywords):
    mode = MODES[base.mode]
    return load_base(mode, base, mode.config_class.from_pretrained(base.path), dtype, **keywords).eval()


def golden_base(mode):
    return read_base(GOLDEN / mode / "base")


def linear_layer(bits, weight, scale, bias=None):
    layer = QuantizedLinear(weight.shape[1] * 8 // bits, weight.shape[0], bias is not None, bits)
    layer.load_state_dict({"weight": weight, "weight_scale": scale, **({} if bias is None else {"bias": bias})})
    return layer


def test_bytes_worked_out_by_hand():
    weight = torch.tensor([[0x7F, 0x01, -0x80], [0x10, -0x01, 0x00]], dtype=torch.int8)
    scale = torch.tensor([0.5, 2.0])
    of_4 = [[3.5, -0.5, 0.0, 0.5, -4.0, 0.0], [2.0, 0.0, -2.0, -2.0, 0.0, 0.0]]
    of_8 = [[63.5, 0.5, -64.0], [32.0, -2.0, 0.0]]
    for bits, expected in ((4, of_4), (8, of_8)):
        layer = linear_layer(bits, weight, scale)
        assert layer(torch.eye(len(expected[0]))).T.tolist() == expected


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_and_its_gradient_are_those_of_plain_arithmetic(bits, bias):
    random = np.random.default_rng(0)
    integers, scale = integers_of(random.normal(size=(24, 16)), bits)
    matrix = integers * scale.astype(np.float64)[:, None]
    offset = random.normal(size=24) if bias else None
    x, gradient = random.normal(size=(3, 5, 16)), random.normal(size=(3, 5, 24))
    layer = linear_layer(
        bits, packed(integers, bits), torch.from_numpy(scale), torch.from_numpy(offset) if bias else None
    )
    x_in = torch.from_numpy(x).float().requires_grad_()
    y = layer(x_in)
    y.backward(torch.from_numpy(gradient).float())
    expected = x @ matrix.T + (offset if bias else 0)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(x_in.grad.numpy(), gradient @ matrix, rtol=0, atol=1e-5)
    assert layer.weight.grad is None and layer(x_in.double()).dtype == torch.float64


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_of_the_size_of_the_matrix_is_kept_for_backward(bits):
    layer = linear_layer(bits, torch.ones(64, 32 * bits // 8, dtype=torch.int8), torch.ones(64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.ones(2, 32, requires_grad=True))
    assert sum(tensor.nbytes for tensor in kept) == 64 * 32 * bits // 8 + 64 * 4  # integers and scale, both shared
    assert {tensor.data_ptr() for tensor in kept} == {layer.weight.data_ptr(), layer.weight_scale.data_ptr()}


@pytest.mark.parametrize(("mode", "bits"), RELEASES)
def test_a_release_is_the_model_of_its_matrices(mode, bits, releases):
    base, matrices = releases[mode, bits]
    model, plain = load(base), load(golden_base(mode))
    plain.load_state_dict({name: torch.from_numpy(matrix) for name, matrix in matrices.items()}, strict=False)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == len(matrices) == 16
    with torch.no_grad():
        actual, expected = (either(input_ids=INPUT_IDS).logits for either in (model, plain))
        unrounded = load(golden_base(mode))(input_ids=INPUT_IDS).logits
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (actual - unrounded).abs().max() > 1e-4 * unrounded.abs().max()


@pytest.mark.parametrize(("mode", "bits"), RELEASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scales_and_integers_are_as_in_the_file_whatever_the_precision(mode, bits, dtype, releases):
    base, matrices = releases[mode, bits]
    state = load(base, dtype).state_dict()
    for name, matrix in matrices.items():
        integers, scale = integers_of(matrix, bits)  # rounding what is rounded changes nothing
        assert torch.equal(state[name], packed(integers, bits)) and state[name].dtype == torch.int8
        assert torch.equal(state[name + "_scale"], torch.from_numpy(scale).float())
    others = [tensor for name, tensor in state.items() if name.removesuffix("_scale") not in matrices]
    assert {tensor.dtype for tensor in others} == {dtype}


@pytest.mark.parametrize(("mode", "bits"), RELEASES)
def test_lora_wraps_a_release_and_gets_the_gradients_of_its_matrices(mode, bits, releases):
    base, matrices = releases[mode, bits]
    plain = load(golden_base(mode))
    plain.load_state_dict({name: torch.from_numpy(matrix) for name, matrix in matrices.items()}, strict=False)
    gradients = []
    for model in (load(base), plain):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
        model = peft.get_peft_model(model, config)
        model(input_ids=INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss.backward()
        gradients.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        )
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * len(matrices)
    for name, expected in gradients[1].items():
        assert gradients[0][name].dtype == torch.float32
        assert (gradients[0][name] - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize(("mode", "bits"), RELEASES)
def test_a_release_answers(mode, bits, releases, capsys):
    base, _ = releases[mode, bits]
    predict.main(["--model_path", str(base.path), "--instruction", "你好", "--max_new_tokens", "4"])
    assert capsys.readouterr().out.endswith("\n")


def test_fingerprints_of_releases(releases, tmp_path):
    fingerprints = {(mode, bits): fingerprint(releases[mode, bits][0]) for mode, bits in RELEASES if mode != "glm3"}
    of_bases = {fingerprint(golden_base(mode)) for mode in ("glm", "glm2")}  # glm3 has the tensors of glm2
    assert len({*fingerprints.values(), *of_bases}) == 6
    make_release("glm", 4, tmp_path / "again")
    assert fingerprint(read_base(tmp_path / "again")) == fingerprints["glm", 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_bit": 0}, "in int8, config.json requires .* in float32"),
        ({"quantization_bit": 4}, r"config.json \(quantization_bit 4\) requires"),
        ({"quantization_bit": 3}, "quantization_bit 3: only 0, 4 and 8"),
        ({"quantization_bit": "8"}, "quantization_bit"),
    ],
)
def test_a_config_that_does_not_fit_the_integers(change, message, tmp_path):
    make_release("glm2", 8, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        read_base(tmp_path / "base")
    assert "\n" not in str(caught.value)


def test_a_base_of_floats_that_calls_itself_quantized(tmp_path):
    shutil.copytree(GOLDEN / "glm2" / "base", tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_bit": 8}))
    with pytest.raises(UserError, match=r"in float16, config.json \(quantization_bit 8\) requires .* in int8"):
        read_base(tmp_path / "base")


def test_what_is_refused(releases, tmp_path):
    plain, (rounded, _) = golden_base("glm2"), releases["glm2", 4]
    refused = [
        (lambda: check_quantization(plain, None, True), "--double_quantization needs --quantization_bit 4"),
        (lambda: check_quantization(plain, 8, True), "--double_quantization needs --quantization_bit 4"),
        (lambda: check_quantization(rounded, 8, False), "quantized to 4 bits already: leave out --quantization_bit 8"),
        (lambda: check_training(plain, 8, Freeze(), 2), "--train_type freeze .*use --train_type lora"),
        (
            lambda: check_training(rounded, None, All(), 2),
            r"--train_type all .*\(quantization_bit 4\)",
        ),
        (
            lambda: check_training(plain, 4, Lora(), 3),
            "--quantization_bit 4 does not work under ZeRO-3",
        ),
        (lambda: check_training(rounded, None, PTuning(), 3), "does not work under ZeRO-3"),
        (lambda: check_training(plain, 4, Lora(lora_variant="dora"), 2), "--lora_variant dora does"),
        (lambda: check_training(rounded, 4, Lora(modules_to_save=("x.dense",)), 2), "_save x.dense"),
        (lambda: write_merged(prepare_merge(rounded.path, tmp_path, tmp_path / "merged")), "holds neither"),
    ]
    for check, message in refused:
        with pytest.raises(UserError, match=message) as caught:
            check()
        assert "\n" not in str(caught.value)
    check_quantization(rounded, None, False)
    check_training(rounded, None, Lora(), 2)
    check_training(plain, 4, Lora(lora_variant="rslora", modules_to_save=("word_embeddings",)), 2)
    check_training(plain, 4, PTuning(), 2)
    check_training(plain, None, All(), 3)
    check_training(plain, None, Lora(lora_variant="pissa", modules_to_save=("dense",)), 3)


def test_without_bitsandbytes(tmp_path):
    """In a process that cannot import it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['bitsandbytes'] = None\n")
    ask = ["--model_path", GOLDEN / "glm2" / "base", "--instruction", "a", "--quantization_bit", "4"]
    result = start([sys.executable, "predict.py", *ask], PYTHONPATH=str(tmp_path))
    assert result.returncode == 2 and "pip install" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("bits", "double", "close"), [(8, False, 0.02), (4, False, 0.3), (4, True, 0.3)])
def test_a_base_that_bitsandbytes_rounds(mode, bits, double, close):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = golden_base(mode)
    model = load(base, bits=bits, double=double)
    kind = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}[bits]
    rounded = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert len(rounded) == 16 and all(".layers." in name and name.split(".")[-1] in TARGETS for name in rounded)
    if bits == 4:
        weights = [model.get_submodule(name).weight for name in rounded]
        assert {weight.quant_state.quant_type for weight in weights} == {"nf4"}
        assert {weight.quant_state.nested for weight in weights} == {double}
    with torch.no_grad():
        output = model(input_ids=INPUT_IDS).logits
        expected = load(base)(input_ids=INPUT_IDS).logits
    assert 1e-6 < (output - expected).abs().max() / expected.abs().max() < close
    before = [model.get_submodule(name).weight.clone() for name in rounded]
    loss = model.train()(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
    with torch.no_grad():
        model.eval()(input_ids=INPUT_IDS)
    again = model.train()(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
    assert torch.equal(loss, again)  # answering in between leaves the weights alone
    assert all(torch.equal(model.get_submodule(name).weight, old) for name, old in zip(rounded, before, strict=True))


@pytest.mark.parametrize("kind", ["release 8", "release 4", "8", "4", "4 double"])
def test_bytes_of_rounded_layers(kind, releases):
    """The figures of docs/precision.md: bytes a value, and for scales."""
    if kind.startswith("release"):
        model = load(releases["glm", int(kind[-1])][0])
    else:
        pytest.importorskip("bitsandbytes")
        model = load(golden_base("glm"), bits=int(kind[0]), double="double" in kind)
    layers = [module for name, module in model.named_modules() if name.split(".")[-1] in TARGETS]
    assert len(layers) == 16
    for layer in layers:
        values, blocks = layer.in_features * layer.out_features, layer.in_features * layer.out_features // 64
        expected = {
            "release 8": values + 4 * layer.out_features,
            "release 4": values // 2 + 4 * layer.out_features,
            "8": values + 4 * layer.out_features,
            "4": values // 2 + 4 * blocks,
            "4 double": values // 2 + blocks + 4 * math.ceil(blocks / 256),
        }
        weight = layer.weight
        if kind.startswith("release"):
            held = [weight, layer.weight_scale]
        elif kind == "8":
            held = [weight, weight.SCB]
        else:
            state = weight.quant_state
            held = [weight, state.absmax, *([state.state2.absmax] if state.nested else [])]
        assert sum(tensor.nbytes for tensor in held) == expected[kind]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_gpu_makes_the_same_matrix_and_keeps_none(bits, dtype):
    integers, scale = integers_of(np.random.default_rng(0).normal(size=(1024, 1024)), bits)
    layer = linear_layer(bits, packed(integers, bits), torch.from_numpy(scale))
    expected = layer(torch.eye(1024, dtype=dtype))
    layer, x = layer.cuda(), torch.eye(1024, dtype=dtype, device="cuda", requires_grad=True)
    assert torch.equal(layer(x).cpu(), expected)
    before = torch.cuda.memory_allocated()
    y = layer(x)
    assert torch.cuda.memory_allocated() - before == y.nbytes
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("bits", "double"), [(8, False), (4, False), (4, True)])
def test_bitsandbytes_on_a_gpu(bits, double, dtype):
    pytest.importorskip("bitsandbytes")
    ids = INPUT_IDS.cuda()
    losses = []
    for keywords in ({}, {"bits": bits, "double": double}):
        model = load(golden_base("glm"), dtype, **keywords).cuda()
        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
        losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
        losses[-1].backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.2)


def test_the_loss_is_computed_in_float32_over_a_half_precision_model():
    """As CastOutputToFloat of the tutorials: the output layer's product in half precision, the rest in float32."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(10, 8, dtype=torch.bfloat16), torch.randint(0, 40, (10,))
    output_layer = torch.nn.Linear(8, 40, bias=False, dtype=torch.bfloat16)
    loss = supervised_loss(hidden, targets, output_layer)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - F.cross_entropy(output_layer(hidden).double(), targets).item()) < 1e-6
