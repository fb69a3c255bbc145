"""How a step is split over ranks and micro-batches, and how it is computed, must not change the losses."""

import pytest
from safetensors.torch import load_file

from tests import launch

TOLERANCE = 1e-5  # relative, float32: the order of summation is all that differs


def curve(tmp_path, name, num_ranks=0, mode="glm2", train_type="all", **changes):
    output = tmp_path / name
    options = launch.train_options(mode, train_type, output, num_train_epochs=3, learning_rate=3e-3, **changes)
    launch.train(options, num_ranks)
    return launch.losses(output)


@pytest.mark.slow
@pytest.mark.parametrize("mode", launch.MODES)
def test_split_of_a_step(mode, tmp_path):
    """Five samples, four per step: 4×1, 1×4 and 2 ranks × 2 see the same steps, the last one short."""
    whole = curve(tmp_path, "4x1", mode=mode, per_device_train_batch_size=4)
    assert len(whole) == 6 and whole[-1] < whole[0]
    accumulated = curve(tmp_path, "1x4", mode=mode, gradient_accumulation_steps=4)
    assert accumulated == pytest.approx(whole, rel=TOLERANCE)
    ranks = curve(tmp_path, "2 ranks x 2", 2, mode=mode, gradient_accumulation_steps=2)
    assert ranks == pytest.approx(whole, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("train_type", ["lora", "all"])
def test_zero_stage_offload_and_checkpointing(train_type, tmp_path):
    plain = curve(tmp_path, "plain", 2, train_type=train_type, gradient_accumulation_steps=2)
    names = ["ds_zero2_offload.json", "ds_zero3_no_offload.json"]
    for name, layers in zip(names, (2, 4), strict=True):
        changed = curve(
            tmp_path,
            name,
            2,
            train_type=train_type,
            gradient_accumulation_steps=2,
            ds_file=name,
            gradient_checkpointing=True,
            checkpoint_layers=layers,
        )
        assert changed == pytest.approx(plain, rel=TOLERANCE)
    stem = {"lora": "adapter_model", "all": "model"}[train_type]
    weights = [load_file(launch.newest_checkpoint(tmp_path / run) / f"{stem}.safetensors") for run in ["plain", *names]]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        for name, tensor in weights[0].items():
            if name.endswith("query_key_value.bias"):
                continue  # a bias of the keys hardly has a gradient, and Adam makes full steps of its noise
            assert (other[name] - tensor).abs().max() <= 1e-4, name


@pytest.mark.slow
def test_the_same_command_twice(tmp_path):
    """Seeded: dropout, order and initialization are equal, to the last bit."""
    runs = [curve(tmp_path, name, 2, train_type="lora", lora_dropout=0.1) for name in ("first", "second")]
    assert runs[0] == runs[1]
    other = curve(tmp_path, "other seed", 2, train_type="lora", lora_dropout=0.1, seed=4321)
    assert other != runs[0]


@pytest.mark.slow
def test_threads_that_prepare_batches_change_no_loss(tmp_path):
    """Replayed records, a dev set and cached features are read by them too; dropout is drawn by the main thread."""
    changes = {"train_type": "freeze", "cache_frozen_features": True, "replay_ratio": 0.5, "eval_step": 2}
    changes |= {"replay_path": launch.REPOSITORY / "data" / "spo_1.json", "dev_path": launch.GOLDEN / "samples.jsonl"}
    changes |= {"gradient_accumulation_steps": 2, "ds_file": "ds_zero3_offload.json"}
    runs = [curve(tmp_path, str(n), 2, **changes, dataloader_num_workers=n) for n in range(3)]
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) == 6
    dev = [(tmp_path / str(n) / "evaluation.jsonl").read_text() for n in range(3)]
    assert dev[0] == dev[1] == dev[2] and dev[0].count("dev_loss") == 3
    dropped = [curve(tmp_path, f"dropout {n}", train_type="lora", lora_dropout=0.1, dataloader_num_workers=n)
               for n in (0, 2)]  # fmt: skip
    assert dropped[0] == dropped[1]
