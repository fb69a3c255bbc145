"""--init_adapter and --resume_from_checkpoint through train.py, given what people have."""

import json
import shutil

import pytest
from safetensors.torch import save_file

from methods.adapter import read_weights
from tests import launch


def started(output, adapter, **changes):
    options = launch.train_options("glm3", "lora", output, lora_alpha=16, lora_module_name="query_key_value", **changes)
    return {**options, "lora_dim": 4, "init_adapter": adapter}


@pytest.mark.slow
def test_an_adapter_from_elsewhere_and_a_checkpoint(tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(launch.GOLDEN / "glm3" / "adapter_lora", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "THUDM/other"}))
    launch.train(started(tmp_path / "canonical", adapter, max_steps=2))

    names = {name.removeprefix("base_model.model."): one for name, one in read_weights(adapter).items()}
    (adapter / "adapter_model.bin").unlink()
    save_file(names, adapter / "adapter_model.safetensors")
    said = launch.train(started(tmp_path / "renamed", adapter, max_steps=2)).stdout
    assert launch.losses(tmp_path / "renamed") == launch.losses(tmp_path / "canonical")
    assert f"warning: the adapter in {adapter} was trained on THUDM/other" in said

    checkpoint = launch.newest_checkpoint(tmp_path / "renamed")
    again = started(tmp_path / "resumed", adapter, max_steps=3, resume_from_checkpoint=checkpoint)
    assert f"resumed from {tmp_path}/renamed/state/step-2" in launch.train(again).stdout
    shutil.rmtree(tmp_path / "renamed" / "state")
    refused = launch.fork(["train.py", *launch.flags({**again, "output_dir": tmp_path / "refused"})])
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert f"--init_adapter {checkpoint} to start a new run" in refused.stderr
