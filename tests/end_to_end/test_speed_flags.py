"""--packing, --share_prompts, --cache_frozen_features and --torch_compile through the program, on two real ranks."""

import re

import pytest

from tests import launch, losses

TOLERANCE = 1e-5  # relative, float32: the order of summation is all that differs


def run(tmp_path, name, *, mode="glm3", train_type="lora", num_ranks=2, **changes):
    """(losses, what was printed) of a run with steps of four rows."""
    result = launch.train(losses.speed_options(mode, train_type, tmp_path / name, **changes), num_ranks)
    return launch.losses(tmp_path / name), result.stdout


@pytest.mark.slow
def test_features_are_computed_once_and_found_again(tmp_path):
    """ZeRO-3, where every pass needs both ranks, and one has a batch fewer; then ZeRO-2 on one rank."""
    expected, _ = run(tmp_path, "plain", train_type="freeze")
    _, train_type, changes = losses.SPEED["features-glm3"]
    found, printed = run(tmp_path, "kept", train_type=train_type, **changes)
    losses.assert_as_recorded("features-glm3", tmp_path / "kept")
    assert found == pytest.approx(expected, rel=TOLERANCE)
    told = re.search(
        r"features of the 3 frozen layers: ([\d,]+) tokens × 64 values × 4 bytes = .*computed once", printed
    )
    file = next((tmp_path / "cache").glob("features-*"))
    assert file.stat().st_size == int(told[1].replace(",", "")) * 64 * 4
    changed = file.stat().st_mtime_ns
    again, printed = run(
        tmp_path, "again", train_type=train_type, cache_frozen_features=True, num_ranks=1, gradient_accumulation_steps=4
    )
    assert again == pytest.approx(expected, rel=TOLERANCE)
    assert f"cached in {file}" in printed and file.stat().st_mtime_ns == changed
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_file()] == [file]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["glm", "glm3"])
def test_packed_rows_on_any_ranks(mode, tmp_path):
    """Two ranks and one rank learn the same rows in the same steps."""
    _, train_type, changes = losses.SPEED[f"packing-{mode}"]
    packed = {"mode": mode, "train_type": train_type, **changes}
    expected, printed = run(tmp_path, "two ranks", **packed)
    losses.assert_as_recorded(f"packing-{mode}", tmp_path / "two ranks")
    assert re.search(r"packed: 5 samples in \d rows of at most 256 tokens, \d\d\.\d% full", printed)
    alone, _ = run(tmp_path, "one rank", **packed, num_ranks=1, gradient_accumulation_steps=1,
                   per_device_train_batch_size=4, max_steps=2)  # fmt: skip
    assert alone == pytest.approx(expected[:2], rel=TOLERANCE)


@pytest.mark.slow
def test_shared_prompts_change_no_loss(tmp_path):
    runs = [
        run(tmp_path, f"{shared}", share_prompts=shared, per_device_train_batch_size=2, num_ranks=1,
            train_path=launch.REPOSITORY / "data" / "samples" / "reviews_test.json", max_steps=10)[0]
        for shared in ("True", "False")
    ]  # fmt: skip
    assert runs[0] == pytest.approx(runs[1], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "train_type", "num_ranks"), [("glm", "all", 2), ("glm3", "lora", 1)])
def test_compiled_layers_change_no_loss(mode, train_type, num_ranks, tmp_path):
    """One rank compiles what two would compile twice."""
    same = {"mode": mode, "train_type": train_type, "num_ranks": num_ranks}
    same |= {"gradient_checkpointing": True, "checkpoint_layers": 1}
    expected, _ = run(tmp_path, "plain", **same)
    found, _ = run(tmp_path, "compiled", **same, torch_compile=True)
    assert found == pytest.approx(expected, rel=TOLERANCE)
