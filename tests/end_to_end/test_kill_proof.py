"""The proof of benchmarks/kill_proof.py, with one kill: it says the same as with many, and it can fail."""

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.kill_proof import differences
from tests import launch


@pytest.mark.slow
def test_a_kill(tmp_path):
    words = ["benchmarks/kill_proof.py", "--work_dir", tmp_path, "--kills", "1", "--num_ranks", "1"]
    result = launch.fork([*words, "--steps_per_kill", "4"], timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    proof = json.loads(result.stdout.splitlines()[-1])
    assert proof["kills"] == proof["inside_a_save"] == len(proof["resumed_after_steps"]) == 1
    assert proof["differences"] == []
    assert proof["left_behind"] == [] and len(proof["checkpoints_left"]) == 3


def run(directory, losses, tensor):
    checkpoint = directory / "epoch-1-step-2"
    checkpoint.mkdir(parents=True)
    rows = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
    (directory / "metrics.jsonl").write_text("\n".join(rows))
    save_file({"weight": torch.tensor(tensor)}, checkpoint / "adapter_model.safetensors")
    return directory


def test_the_last_bit_counts(tmp_path):
    alone = run(tmp_path / "alone", [3.5, 3.25], [1.0, 2.0])
    assert differences(alone, run(tmp_path / "same", [3.5, 3.25], [1.0, 2.0]), 2) == []
    other = run(tmp_path / "other", [3.5, 3.2500000000000004], [1.0, 2.0000002])
    assert differences(alone, other, 2) == ["loss of step 2", "tensor weight"]
    assert differences(alone, run(tmp_path / "short", [3.5], [1.0, 2.0]), 2) == ["loss of step 2"]
