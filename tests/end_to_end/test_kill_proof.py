"""The proof of benchmarks/kill_proof.py, with two kills: it says the same as with many, and it can fail."""

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import kill_proof
from benchmarks.kill_proof import differences


@pytest.mark.slow
def test_two_kills(tmp_path, capsys):
    """SIGKILL to both ranks, once inside a save: losses and weights are those of a run left alone."""
    kill_proof.main(["--work_dir", str(tmp_path), "--kills", "2", "--steps_per_kill", "4", "--launcher", "fork"])
    proof = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert proof["kills"] == len(proof["resumed_after_steps"]) == 2 and proof["inside_a_save"] >= 1
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
