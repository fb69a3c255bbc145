"""A handful of bad inputs through real processes: alone, and under `deepspeed` with two ranks."""

import pytest

from tests import launch
from tests.bad_input.place import check_sentences, cut, snapshot, train_flags, write

pytestmark = pytest.mark.slow


def question(place):
    return launch.flags({"model_path": place / "lora", "base_model": place / "base", "instruction": "a"})


def merge(place):
    return launch.flags(
        {"ori_model_dir": place / "base", "model_dir": place / "lora", "output_dir": place / "records.json"}
    )


# name: (program, damage, flags, what the sentence says)
ALONE = {
    "a flag": ("train.py", lambda place: None, lambda place: train_flags(place, mode="glm"), "--mode glm2"),
    "a record": (
        "train.py",
        lambda place: write(place / "records.json", b"\xff\xfe{"),
        train_flags,
        r"records\.json is UTF-16.*UTF-8",
    ),
    "a shard": (
        "train.py",
        lambda place: cut(place / "base" / "pytorch_model-00002-of-00002.bin"),
        train_flags,
        "00002-of-00002.bin cannot be read",
    ),
    "a checkpoint": (
        "predict.py",
        lambda place: cut(place / "lora" / "checkpoint.json", 9),
        question,
        "checkpoint.json",
    ),
    "a place to merge into": ("merge_lora.py", lambda place: None, merge, "--output_dir .* exists already"),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone(name, checkpoints):
    program, damage, flags, pattern = ALONE[name]
    damage(checkpoints)
    before = snapshot(checkpoints)
    result = launch.fork([program, *flags(checkpoints)])
    assert result.returncode == 2, result.stderr
    check_sentences(result.stdout + result.stderr, pattern)
    assert snapshot(checkpoints) == before


@pytest.mark.parametrize("flaw", ["wrong mode", "broken record"])
def test_on_two_ranks(flaw, place):
    """The sentence appears once, no traceback, an exit code that says so, nothing written; once by `deepspeed`."""
    if flaw == "broken record":
        write(place / "records.json", "{oops\n")
    before = snapshot(place)
    flags = train_flags(place, **({"mode": "glm"} if flaw == "wrong mode" else {}))
    if flaw == "wrong mode":
        result = launch.fork(["train.py", *flags], 2)
    else:
        port = str(launch.free_port())
        result = launch.start(["deepspeed", "--num_gpus", "2", "--master_port", port, "train.py", *flags])
    text = result.stdout + result.stderr
    assert result.returncode == 2, text
    assert text.count("error: ") == 1 and "Traceback" not in text
    assert ("--mode glm2" if flaw == "wrong mode" else "records.json:1") in text
    assert snapshot(place) == before
