"""The command and the DeepSpeed file that people have had since 2023 run as they are."""

import json
import os
import shlex

import pytest

from tests import launch

COMMAND = """
deepspeed --master_port 520 train.py --train_path data/spo_0.json --model_name_or_path ChatGLM-6B/
--per_device_train_batch_size 1 --max_len 1560 --max_src_len 1024 --learning_rate 1e-4 --weight_decay 0.1
--num_train_epochs 2 --gradient_accumulation_steps 4 --warmup_ratio 0.1 --mode glm --train_type lora --lora_dim 16
--lora_alpha 64 --lora_dropout 0.1 --lora_module_name "query_key_value" --seed 1234 --ds_file ds_zero2_no_offload.json
--gradient_checkpointing --show_loss_step 10 --output_dir ./output-glm
"""

DS_FILE = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": "auto",
    "steps_per_print": "auto",
    "zero_optimization": {
        "stage": 2,
        "offload_param": {"device": "auto"},
        "offload_optimizer": {"device": "auto"},
        "overlap_comm": "auto",
    },
    "optimizer": {"type": "Adam", "params": {"lr": 5e-5, "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"total_num_steps": "auto", "warmup_max_lr": "auto", "warmup_type": "cosine"},
    },
    "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16},
    "gradient_clipping": 1.0,
}


@pytest.fixture
def home(tmp_path):
    """A directory as its user has it: train.py, a base called ChatGLM-6B, twenty records of our sample set."""
    (tmp_path / "train.py").symlink_to(launch.REPOSITORY / "train.py")
    (tmp_path / "ChatGLM-6B").symlink_to(launch.GOLDEN / "glm" / "base")
    (tmp_path / "data").mkdir()
    with (launch.REPOSITORY / "data" / "spo_0.json").open(encoding="utf-8") as lines:
        records = [next(lines) for _ in range(20)]
    (tmp_path / "data" / "spo_0.json").write_text("".join(records), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_the_command(home):
    # only root may use a port below 1024
    command = COMMAND if os.geteuid() == 0 else COMMAND.replace(" 520 ", f" {launch.free_port()} ")
    result = launch.start(shlex.split(command), cwd=home, CUDA_VISIBLE_DEVICES="0", XDG_CACHE_HOME=str(home / "cache"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "optimizer steps: 10 (5 per epoch), 1 of them warm-up" in result.stdout
    assert (home / "output-glm" / "epoch-2-step-10" / "adapter_model.safetensors").is_file()
    (line,) = launch.metrics(home / "output-glm")
    assert line["step"] == 10 and line["epoch"] == 2 and line["loss"] > 0
    keys = {"step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "peak_memory_bytes"}
    assert line.keys() == keys and all(value is not None for value in line.values())


@pytest.mark.slow
def test_the_deepspeed_file(home):
    """What it says about batches, optimizer and schedule is overridden by the flags, said once; on a CPU it is fp32."""
    (home / "my_ds.json").write_text(json.dumps(DS_FILE))
    plain = shlex.split(COMMAND.replace("lora_dropout 0.1", "lora_dropout 0"))
    plain = plain[plain.index("train.py") :]
    options = {"num_ranks": 2, "cwd": home, "XDG_CACHE_HOME": str(home / "cache")}
    result = launch.fork([*plain, "--ds_file", "my_ds.json"], **options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "samples per step: 8 (2 ranks × 1 × 4 accumulated)" in result.stdout
    assert "glm lora, fp32, sdpa attention, trained:" in result.stdout
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "the optimizer", "the scheduler", "fp16"):
        notes = [line for line in result.stdout.splitlines() if line.startswith(f"--ds_file: {key}")]
        assert len(notes) == 1, (key, result.stdout)
    assert launch.fork([*plain, "--output_dir", "output-plain"], **options).returncode == 0
    assert launch.losses(home / "output-glm") == launch.losses(home / "output-plain")
