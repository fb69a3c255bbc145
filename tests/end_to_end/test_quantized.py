"""Quantized bases under two real ranks: trained, resumed, asked, merged into the half-precision base; one DeepSpeed
engine in bf16 that leaves integers and scales alone.

python -m tests.end_to_end.test_quantized OUTPUT_DIR BASE BITS   # what each rank of the bf16 engine does
"""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import predict
from generation.models import load_answerer
from merge_lora import main as merge_main
from methods import METHODS
from modes import MODES
from tests import launch
from tests.quantized import make_release

KINDS = ("bitsandbytes 8", "bitsandbytes 4", "release 8", "release 4")
CASES = [  # mode, method, kind, ranks
    ("glm2", "lora", "bitsandbytes 8", 2),
    ("glm", "ptuning", "bitsandbytes 8", 0),
    ("glm3", "ptuning", "bitsandbytes 4", 2),
    ("glm", "lora", "release 8", 2),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(mode, kind) -> (base directory, flags)."""
    root = tmp_path_factory.mktemp("bases")

    def base_of(mode, kind):
        library, bits = kind.split()
        if library == "bitsandbytes":
            pytest.importorskip("bitsandbytes")
            double = {"double_quantization": True} if bits == "4" else {}
            return launch.GOLDEN / mode / "base", {"quantization_bit": bits, **double}
        if not (root / f"{mode}-{bits}").is_dir():
            make_release(mode, int(bits), root / f"{mode}-{bits}")
        return root / f"{mode}-{bits}", {}

    return base_of


def logits(model, mode):
    with safe_open(launch.GOLDEN / mode / "expected.safetensors", "pt") as golden, torch.no_grad():
        return model(input_ids=golden.get_tensor("padded.input_ids")).logits


def apart(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def options_of(mode, method, output, base, flags):
    rate = 1e-1 if method == "ptuning" else 1e-2
    options = launch.train_options(mode, method, output, model_name_or_path=base, learning_rate=rate, **flags)
    options |= {"lr_scheduler_type": "constant", "dev_path": launch.GOLDEN / "samples.jsonl"}
    return {**options, "num_train_epochs": 3, "gradient_checkpointing": True, "checkpoint_layers": 2}


def check_answers_and_merging(mode, method, base, flags, checkpoint, tmp_path):
    """The trained model answers on the base that it was trained on, and is merged into the half-precision one."""
    half = launch.GOLDEN / mode / "base"
    bits = int(flags["quantization_bit"]) if flags else None
    trained = logits(load_answerer(checkpoint).model, mode)  # on the quantized base, by default
    assert apart(trained, logits(load_answerer(base, quantization_bit=bits).model, mode)) > 1e-2
    predict.main(["--model_path", str(checkpoint), "--instruction", "你好", "--max_new_tokens", "4"])

    merge = ["--ori_model_dir", str(base), "--model_dir", str(checkpoint), "--output_dir", str(tmp_path / "merged")]
    if not flags:
        with pytest.raises(predict.UserError, match="give the half-precision base .* with --force"):
            merge_main(merge)
        merge += ["--ori_model_dir", str(half), "--force"]
    merge_main(merge)
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert all(file.get_tensor(name).is_floating_point() for name in file.keys())  # noqa: SIM118, not a dict
    merged = logits(load_answerer(tmp_path / "merged").model, mode)
    model = plain_model(mode, method, checkpoint)
    assert apart(merged, logits(model, mode)) <= 1e-5  # the half-precision base with what was trained
    assert apart(merged, trained) > 1e-4  # and that is not what was rounded


def plain_model(mode, method, checkpoint):
    """The golden base in float32 with what a checkpoint holds."""
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    config = MODES[mode].config_class.from_pretrained(launch.GOLDEN / mode / "base")
    METHODS[method](**record["method"]).configure(config)
    directory = launch.GOLDEN / mode / "base"
    model = MODES[mode].model_class.from_pretrained(directory, config=config, dtype=torch.float32)
    return METHODS[method]().load(model, METHODS[method]().read(checkpoint)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "method", "kind", "num_ranks"), CASES)
def test_trained_asked_merged(mode, method, kind, num_ranks, bases, tmp_path):
    base, flags = bases(mode, kind)
    output = tmp_path / "output"
    launch.train(options_of(mode, method, output, base, flags), num_ranks=num_ranks)
    curve = launch.losses(output)
    third = len(curve) // 3
    assert sum(curve[-third:]) < 0.98 * sum(curve[:third])
    check_answers_and_merging(mode, method, base, flags, launch.newest_checkpoint(output), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind"), [("glm", "bitsandbytes 4"), ("glm2", "release 4")])
def test_two_ranks_that_are_resumed_learn_what_one_rank_learns(mode, kind, bases, tmp_path):
    base, flags = bases(mode, kind)
    output, alone = tmp_path / "output", tmp_path / "alone"
    options = options_of(mode, "lora", output, base, flags)
    launch.train({**options, "num_train_epochs": 1}, num_ranks=2)
    launch.train(options, num_ranks=2)
    with safe_open(output / "state" / "step-9" / "state.safetensors", "pt") as state:
        names = list(state.keys())
    assert names and all("lora_" in name for name in names)
    launch.train({**options, "output_dir": alone, "gradient_accumulation_steps": 2})
    curve = launch.losses(output)
    assert len(curve) == 9 and curve == pytest.approx(launch.losses(alone), abs=1e-4)
    check_answers_and_merging(mode, "lora", base, flags, output / "epoch-3-step-9", tmp_path)


@pytest.mark.slow
def test_a_bf16_engine_rounds_no_integer_and_no_scale_and_keeps_float32_masters(bases, tmp_path):
    arguments = [part for kind in KINDS for part in (str(bases("glm2", kind)[0]), kind)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--master_port", str(launch.free_port())]
    result = launch.start([*torchrun, "-m", "tests.end_to_end.test_quantized", tmp_path, *arguments])
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for kind in KINDS:
        first, second = rows[0][kind], rows[1][kind]
        assert first["before"] == first["after"] == second["before"] == second["after"]
        assert first["trained"] == ["torch.bfloat16"] and first["masters"] == ["torch.float32"]
        assert first["loss"] == "torch.float32"
        assert first["unmoved"] == first["values"] and first["masters_moved"] > 0.8 * first["values"]


def digest(model) -> str:
    """Of everything that makes a rounded weight: integers, scales, statistics of the scales."""
    found = hashlib.sha256()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.is_floating_point():
            continue
        parts = {"weight": weight.data, "scale": module._buffers.get("weight_scale")}
        if "quant_state" in vars(weight):
            parts["scale"] = weight.quant_state.absmax
        if "SCB" in vars(weight):  # goes to the module at the first forward
            parts["scale"] = module.state.SCB if weight.SCB is None else weight.SCB
        for key, tensor in parts.items():
            found.update(f"{name} {key} {tensor.dtype}".encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def engine_of(base_path: str, kind: str) -> dict:
    """One step in bf16, so small that bf16 values cannot show it."""
    from deepspeed.utils import safe_get_full_fp32_param

    from modes.directory import read_base
    from modes.loading import load_base
    from options.sections import OptimizerOptions
    from parallel.ranks import seed_everything
    from training.ds_config import DeepSpeedSetup
    from training.engine import start_engine

    base = read_base(base_path)
    mode, method = MODES[base.mode], METHODS["lora"]
    bits = int(kind.split()[1]) if kind.startswith("bitsandbytes") else None
    config = mode.config_class.from_pretrained(base.path)
    model = load_base(mode, base, config, torch.bfloat16, bits)
    seed_everything(0)
    options = {"lora_dim": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_module_name": ("query_key_value",)}
    model = method(**options).prepare(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data.fill_(0.5)  # bf16 has no value within 0.001 of it
    before = digest(model)
    ds_config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    options = OptimizerOptions(learning_rate=1e-6, weight_decay=0.0, lr_scheduler_type="constant", warmup_steps=0)
    engine = start_engine(model, DeepSpeedSetup(ds_config, "bf16"), options, total_steps=1)
    old = [safe_get_full_fp32_param(parameter).clone() for parameter in trained]
    values = [parameter.detach().clone() for parameter in trained]
    ids = torch.arange(100, 120)[None]
    loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
    engine.backward(loss)
    engine.step()
    masters = [safe_get_full_fp32_param(parameter) for parameter in trained]
    return {
        "before": before,
        "after": digest(model),
        "trained": sorted({str(parameter.dtype) for parameter in trained}),
        "masters": sorted({str(master.dtype) for master in masters}),
        "loss": str(loss.dtype),
        "values": sum(value.numel() for value in values),
        "unmoved": sum(int((new == value).sum()) for new, value in zip(trained, values, strict=True)),
        "masters_moved": sum(int((new != master).sum()) for new, master in zip(masters, old, strict=True)),
    }


def work(output: Path, arguments: list[str]) -> None:
    """What each rank does."""
    from parallel import ranks

    ranks.start_ranks()
    pairs = zip(arguments[0::2], arguments[1::2], strict=True)
    rows = {kind: engine_of(base, kind) for base, kind in pairs}
    (output / f"{ranks.rank()}.json").write_text(json.dumps(rows))
    ranks.stop_ranks()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2:])
