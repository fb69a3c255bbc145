"""training/guards.py: full memory, of a GPU or of the host, is one sentence with what helps."""

import mmap

import numpy as np
import pytest
import torch

from errors import UserError
from tests import launch
from training.guards import explain_full_memory


@explain_full_memory
def full(make):
    return make()


def raising(error):
    raise error


def test_a_full_gpu_is_one_sentence_with_what_helps(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert full(lambda: "done") == "done"
    text = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.65 GiB of which …"
    with pytest.raises(UserError, match=r"^the GPU memory is full \(2.50 GiB more needed\): .*--checkpoint_layers N"):
        full(lambda: raising(torch.OutOfMemoryError(text)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"^rank 1: the GPU memory is full: .*--per_device_train_batch_size"):
        full(lambda: raising(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(UserError, match="CUDA cannot allocate pinned host memory .*: start fewer ranks"):
        full(lambda: raising(torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be …")))


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: torch.empty(10**15), r" \(4000000000000000 bytes more needed\)"),
        (lambda: np.empty(10**15), r" \(7.\d+ PiB more needed\)"),
        (lambda: bytearray(10**16), ""),
        (lambda: mmap.mmap(-1, 10**16), ""),
    ],
)
def test_full_host_memory_is_one_sentence_with_what_helps(make, wanted):
    with pytest.raises(UserError, match=rf"^the host memory \(RAM\) is full{wanted}: start fewer ranks"):
        full(make)
    with pytest.raises(UserError, match="is full.*: lower it.$"):
        explain_full_memory(make, host="lower it")()


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        full((tmp_path / "nothing").read_text)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        full(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.slow
def test_predict_says_which_memory_is_full():
    """The prompt is copied for every beam."""
    words = ["predict.py", "--model_path", launch.GOLDEN / "glm2" / "base", "--instruction", "a"]
    result = launch.fork([*words, "--num_beams", "2000000000"])
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the host memory (RAM) is full (")
