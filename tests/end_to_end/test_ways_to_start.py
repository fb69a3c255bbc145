"""A run from flags, key=value arguments, its run.yaml, and from Python: the same losses."""

import json

import pytest
import yaml

from tests import launch


def options_of(output, **changes):
    """Three steps with dropout, so that the seed matters."""
    return launch.train_options("glm2", "lora", output, max_steps=3, lora_dropout=0.1, report_to="none", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [0, 2])
def test_its_run_yaml_alone_is_the_same_run(num_ranks, tmp_path):
    output, kept = tmp_path / "output", tmp_path / "kept"
    options = options_of(output, lora_module_name="query_key_value,dense", dev_path=launch.GOLDEN / "samples.jsonl")
    launch.train(options, num_ranks)
    output.rename(kept)
    written = yaml.safe_load((kept / "run.yaml").read_text())
    assert written["lora_module_name"] == ["query_key_value", "dense"] and written["output_dir"] == str(output)
    launch.train({"config": kept / "run.yaml"}, num_ranks)
    curve = launch.losses(output)
    assert len(curve) >= 3 and curve == launch.losses(kept)
    assert (output / "run.yaml").read_text() == (kept / "run.yaml").read_text()
    assert "has a finished run of" in launch.train({"config": output / "run.yaml"}, num_ranks).stdout


FROM_PYTHON = """
import json, sys
import train
from options.train import train_options

options, directory = json.loads(sys.argv[1]), sys.argv[2]
train.main([word for name, value in options.items() for word in (f"--{name}", str(value))]
           + ["--output_dir", f"{directory}/flags"])
train.main([f"{name}={value}" for name, value in options.items()] + [f"output_dir={directory}/keys"])
train.run(train_options(**options, output_dir=f"{directory}/python"))
train.run(train_options(**options, output_dir=f"{directory}/unsaved"), saves=False)
try:
    train.run(train_options(**{**options, "train_path": "no/such.json"}, output_dir=f"{directory}/none"))
except ValueError as error:
    print("refused:", error)
train.run(train_options(**options, output_dir=f"{directory}/after"))
"""


@pytest.mark.slow
def test_runs_in_one_process_after_another(tmp_path):
    options = {name: value if isinstance(value, int | float) else str(value) for name, value in
               options_of(tmp_path / "output").items() if name != "output_dir"}  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(FROM_PYTHON)
    result = launch.fork([script, json.dumps(options), tmp_path])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "refused: --train_path no/such.json does not exist" in result.stdout
    curves = {name: launch.losses(tmp_path / name) for name in ("flags", "keys", "python", "unsaved", "after")}
    assert len(curves["flags"]) == 3 and all(curve == curves["flags"] for curve in curves.values()), curves
    assert (tmp_path / "python" / "run.yaml").is_file() and launch.newest_checkpoint(tmp_path / "python").is_dir()
    unsaved = {path.name for path in (tmp_path / "unsaved").iterdir()}
    assert "metrics.jsonl" in unsaved and not unsaved & {"run.yaml", "state", "epoch-2-step-3", "epoch-1-step-3"}
