"""memory/gpus.py: what nvidia-smi prints."""

from memory.gpus import read_gpus


def test_gpus_as_nvidia_smi_prints_them():
    (gpu, other) = read_gpus(
        "0, NVIDIA H200, 1024, 143771, 97, 41, 612.25\n1, NVIDIA GB10, [N/A], [N/A], 3, [N/A], [N/A]\n"
    )
    assert gpu["name"] == "NVIDIA H200" and gpu["memory_used"] == 2**30 and gpu["watts"] == 612.25
    assert other == {**dict.fromkeys(gpu), "index": 1, "name": "NVIDIA GB10", "percent": 3}
    assert read_gpus("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n") == []
