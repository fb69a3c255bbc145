"""training/process_file.py: the devices of a run."""

import pytest

from training.process_file import devices_of


@pytest.mark.parametrize(
    ("local_ranks", "visible", "devices"),
    [
        ([0, 1], "2,3", ["2", "3"]),
        ([0], "2,3", ["2"]),  # without a launcher, one GPU is used
        ([0], "GPU-1f2e", ["GPU-1f2e"]),
        ([0, 1], None, ["0", "1"]),
    ],
)
def test_the_gpus_of_ranks(monkeypatch, local_ranks, visible, devices):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_of(local_ranks, on_gpu=True) == devices
    assert devices_of(local_ranks, on_gpu=False) == ["cpu"]
