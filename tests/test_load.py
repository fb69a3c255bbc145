"""modes/loading.py: memory is that of the model and no more, from both file formats, and files are left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bases import make_base
from benchmarks.load import plain_load, to_bin
from modes import MODES
from modes.directory import read_base
from modes.loading import load_base
from tests import golden

LOAD = Path(__file__).parent.parent / "benchmarks" / "load.py"
SLACK = 40 * 10**6  # bytes: the largest tensor, and what Python allocates on the way


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A ChatGLM3 of 190 MB in float16, as safetensors and as .bin."""
    directory = tmp_path_factory.mktemp("bases")
    make_base(directory / "safetensors", "glm3", num_layers=2, hidden_size=1024, vocab_size=32768)
    to_bin(directory / "safetensors", directory / "bin")
    return directory


def load_in_a_process(side, *bases):
    """What benchmarks/load.py measures of a float32 and of a float16 load of each base."""
    command = [sys.executable, LOAD, "--side", side, "--bases", *bases, "--dtypes", "float32", "float16"]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def ours(bases):
    """File format -> what a load of ours takes."""
    both = load_in_a_process("ours", bases / "safetensors", bases / "bin")
    return {"safetensors": both[:2], "bin": both[2:]}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_memory_of_a_load(ours, file_format):
    single, half = ours[file_format]
    file_bytes = half["weight_bytes"]
    assert single["weight_bytes"] == 2 * file_bytes > 350 * 10**6
    assert single["own_bytes"] < single["weight_bytes"] + SLACK  # no second copy of the model
    assert single["peak_bytes"] < single["weight_bytes"] + file_bytes + SLACK  # with the pages of the mapped file
    assert half["own_bytes"] < SLACK  # the weights stay in the file


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_measure_sees_a_second_copy(bases):
    single, half = load_in_a_process("plain", bases / "bin")
    assert single["own_bytes"] > single["weight_bytes"] + half["weight_bytes"] - SLACK
    assert half["own_bytes"] > 2 * half["weight_bytes"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", list(MODES))
def test_weights_are_those_of_a_plain_load(mode, dtype):
    base = read_base(golden.base_path(mode))
    make_config = lambda: MODES[mode].config_class.from_pretrained(base.path)  # noqa: E731
    plain = plain_load(MODES[mode], make_config(), base, dtype, draw=True).state_dict()
    for device in (None, torch.device("cpu")):
        model = load_base(MODES[mode], base, make_config(), dtype, device=device)
        ours = model.state_dict()
        assert ours.keys() == plain.keys() and not model.training
        assert all(torch.equal(ours[name], plain[name]) and ours[name].dtype == dtype for name in ours)


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_changed_weights_do_not_change_the_file(tmp_path, file_format):
    shape = {"num_layers": 1, "hidden_size": 64, "vocab_size": 2560}
    make_base(tmp_path / "safetensors", "glm2", **shape)
    to_bin(tmp_path / "safetensors", tmp_path / "bin")
    base = read_base(tmp_path / file_format)
    before = [file.read_bytes() for file in base.weight_files]
    config = MODES["glm2"].config_class.from_pretrained(base.path)
    model = load_base(MODES["glm2"], base, config, torch.float16)  # as in the file: not copied
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert [file.read_bytes() for file in base.weight_files] == before
    again = load_base(MODES["glm2"], base, config, torch.float16)
    name = "transformer.output_layer.weight"
    assert not torch.equal(again.state_dict()[name], model.state_dict()[name])
