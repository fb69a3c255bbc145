"""Every LoRA variant and every way to freeze, on two ranks: trained, resumed to the last bit, merged, predicted from."""

import json
import shutil
import sys

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

import predict
from merge_lora import main as merge_main
from modes import MODES
from tests import launch
from training.resume import read_state, state_directories

ZERO2, ZERO3, OFFLOAD = "ds_zero2_no_offload.json", "ds_zero3_no_offload.json", "ds_zero2_offload.json"
WHOLE = {"lora_module_name": "all-linear", "modules_to_save": "word_embeddings"}
CASES = {
    "lora-glm-zero3": ("glm", "lora", ZERO3, WHOLE),
    "dora-glm2": ("glm2", "lora", ZERO2, {"lora_variant": "dora", "modules_to_save": "output_layer"}),
    "rslora-glm3-zero3": ("glm3", "lora", ZERO3, {"lora_variant": "rslora"}),
    "loraplus-glm-offload": ("glm", "lora", OFFLOAD, {"lora_variant": "loraplus"}),
    "pissa-glm2-zero3": ("glm2", "lora", ZERO3, {"lora_variant": "pissa", "lora_module_name": "all-linear"}),
    "adalora-glm": (
        "glm",
        "lora",
        ZERO2,
        {"lora_variant": "adalora", "adalora_target_r": 3, "learning_rate": 3e-2, **WHOLE},
    ),
    "freeze-head-glm": ("glm", "freeze", ZERO3, {"freeze_module_name": "layers.3.,lm_head"}),
    "freeze-last-glm2": ("glm2", "freeze", ZERO2, {"freeze_last_n": 2}),
}


def two_ranks(options):
    """Trains under torchrun, which starts in half of the time that `deepspeed` takes; the launcher's output."""
    port = launch.free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    result = launch.start([*launcher, "train.py", *launch.flags(options)])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rewind(output, step):
    """Leave the directory as a run that was killed right after the state of `step`."""
    for directory in state_directories(output / "state"):
        if read_state(directory)["step"] > step:
            shutil.rmtree(directory)
    lines = (output / "metrics.jsonl").read_text().splitlines(keepends=True)
    (output / "metrics.jsonl").write_text("".join(lines[:step]))


def partitioned(tmp_path, name):
    """The shipped DeepSpeed file; at ZeRO-3 even the smallest tensor is partitioned, which the default hides."""
    config = json.loads((launch.REPOSITORY / "ds_configs" / name).read_text())
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "ds.json").write_text(json.dumps(config))
    return tmp_path / "ds.json"


def weights(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(model, mode):
    with safe_open(launch.GOLDEN / mode / "expected.safetensors", "pt") as golden, torch.no_grad():
        return model.eval()(input_ids=golden.get_tensor("padded.input_ids")).logits


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_trained_resumed_merged_predicted(case, tmp_path):
    mode, train_type, ds_file, changes = CASES[case]
    output, base_dir = tmp_path / "output", launch.GOLDEN / mode / "base"
    options = launch.train_options(
        mode, train_type, output, ds_file=partitioned(tmp_path, ds_file), learning_rate=3e-3, save_state_step=1
    )
    options |= {"save_total_limit": 9, "lora_dropout": 0.1, "num_train_epochs": 3, "gradient_checkpointing": True}
    del options["freeze_module_name"]
    options |= changes
    two_ranks(options)
    whole, checkpoint = launch.losses(output), output / "epoch-3-step-9"
    assert len(whole) == 9 and sum(whole[-3:]) < sum(whole[:3])
    before = weights(checkpoint)
    rewind(output, 6)
    shutil.rmtree(checkpoint)
    assert "after step 6" in two_ranks(options)
    assert launch.losses(output) == whole
    after = weights(checkpoint)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)

    merged = tmp_path / "merged"
    merge_main(["--ori_model_dir", str(base_dir), "--model_dir", str(checkpoint), "--output_dir", str(merged)])
    model_class = MODES[mode].model_class
    expected = logits(predict.load_answerer(checkpoint).model, mode)
    merged_model = model_class.from_pretrained(merged, dtype=torch.float32)
    base_model = model_class.from_pretrained(base_dir, dtype=torch.float32)
    assert (logits(merged_model, mode) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits(base_model, mode) - expected).abs().max() > 1e-3 * expected.abs().max()
    if train_type == "lora":  # plain peft needs nothing of ours
        assert torch.equal(logits(PeftModel.from_pretrained(base_model, checkpoint), mode), expected)
    if mode == "glm":
        tied = weights(merged)
        assert torch.equal(tied["lm_head.weight"], tied["transformer.word_embeddings.weight"])
