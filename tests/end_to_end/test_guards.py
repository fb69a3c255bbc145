"""Steps that are not finite, and disks that are full, in real runs."""

import json
import shutil

import psutil
import pytest
from safetensors.torch import load_file

from checkpoints.space import space_problem
from methods.all import All
from methods.lora import Lora
from tests import launch


@pytest.mark.slow
@pytest.mark.parametrize("ds_file", ["ds_zero2_no_offload.json", "ds_zero3_offload.json"])
def test_a_step_that_is_not_finite(poisoned, ds_file, tmp_path):
    output = tmp_path / "output"
    options = launch.train_options("glm3", "lora", output, model_name_or_path=poisoned, ds_file=ds_file)
    options |= {"num_train_epochs": 1, "save_state_step": 1}
    words = ["train.py", *launch.flags(options)]
    stopped = launch.fork(words, 2)
    assert stopped.returncode != 0 and "Traceback" not in stopped.stderr + stopped.stdout
    assert stopped.stderr.count("error: ") == 1
    assert json.loads((output / "process.json").read_text())["outcome"] == "failed"
    assert (
        "the loss is nan on rank " in stopped.stderr and "samples.jsonl:4; the step was not applied" in stopped.stderr
    )

    skipped = launch.train(options | {"on_nonfinite": "skip"}, num_ranks=2)
    assert "samples.jsonl:4; skipped" in skipped.stdout
    adapter = load_file(launch.newest_checkpoint(output) / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in adapter.values())
    curve = launch.losses(output)
    assert curve.count(None) == 1 and len(curve) == 3


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_one_before(tmp_path):
    output = tmp_path / "output"
    options = launch.train_options("glm2", "lora", output, num_train_epochs=1, save_model_step=2)
    launch.train({**options, "max_steps": 2})
    files = [path for path in output.rglob("*") if path.is_file() and "tensorboard" not in str(path)]
    of_last_run = ("run.yaml", "process.json")
    before = {path: path.read_bytes() for path in files if path.name not in of_last_run}
    size = max(len(content) for path, content in before.items() if path.suffix == ".safetensors")

    run = launch.start_fork(["train.py", *launch.flags(options)])
    # every file that grows beyond half of a checkpoint fails, as on a full disk
    run.processes[0].rlimit(psutil.RLIMIT_FSIZE, (size // 2, size // 2))
    failed = run.finish(120)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert "could not be written to" in failed.stderr and "free some space and repeat the same command" in failed.stderr
    after = {path: path.read_bytes() for path in before}
    assert all(after[path].startswith(content) for path, content in before.items())  # metrics.jsonl has grown
    assert not list(output.rglob("*.tmp"))
    assert "resumed from" in launch.train(options).stdout


def test_disk_space(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert space_problem(tmp_path / "not" / "yet", 1000, "a checkpoint") is None
    sentence = space_problem(tmp_path / "not" / "yet", free * 2, "a checkpoint")
    assert "GB free and a checkpoint needs" in sentence and "--output_dir" in sentence


def test_bytes_of_a_save():
    assert All().save_bytes(1000, 2) == Lora().save_bytes(1000, 2) == (2000, 12_000)
    assert Lora(lora_variant="pissa").save_bytes(1000, 2) == (4000, 12_000)
    assert Lora(lora_variant="adalora", modules_to_save=("lm_head",)).save_bytes(1000, 2) == (4000, 20_000)
