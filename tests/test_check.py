"""training/check.py, training/command.py: all problems of a run are reported at once; a valid run becomes a command."""

import json
import re

import pytest

from errors import UserError
from options.train import parse_train, train_options
from tests import launch
from tests.launch import GOLDEN
from training.check import check, read_command


def run_of(tmp_path, base="glm2", **changes):
    """Flags of a run that nothing is wrong with."""
    return {
        "model_name_or_path": GOLDEN / base / "base", "train_path": GOLDEN / "samples.jsonl",
        "output_dir": tmp_path / "out", "data_cache_dir": tmp_path / "cache", **changes,
    }  # fmt: skip


def sentences(run):
    """What is wrong with a run."""
    with pytest.raises(UserError) as caught:
        read_command(launch.flags(run))
    return caught.value.sentences


@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
def test_a_command(mode, tmp_path):
    command = read_command(launch.flags(run_of(tmp_path, mode, lora_dim=4)))
    assert command.base.mode == mode and command.options.model.mode is None  # recognized from the base's files
    assert (command.ds.precision, command.ds.stage, command.first_block) == ("fp32", 2, 0)
    trained = command.shapes.trained
    assert trained > 0 and command.save_bytes == (4 * trained, 12 * trained)
    record = command.record()
    assert (record["mode"], record["train_type"], record["precision"]) == (mode, "lora", "fp32")
    assert record["options"] == {**command.options.flat(), "mode": mode} and record["method"]["lora_dim"] == 4
    assert command.identity("x")["training data"] == "x"
    json.dumps([record, command.identity("x")])
    assert list(tmp_path.iterdir()) == []


def test_options_from_python_make_the_same_command(tmp_path):
    run = run_of(tmp_path, is_skip=True, max_steps=3)
    command = check(train_options(**run))
    same = read_command(launch.flags(run))
    assert (command.options, command.record(), command.notes) == (same.options, same.record(), same.notes)


def test_all_problems_come_at_once(tmp_path):
    """Also those of places, base and DeepSpeed file beside wrong values."""
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 5}}))
    run = run_of(
        tmp_path, mode="glm4", max_len=3, train_path=tmp_path / "none.json", ds_file=tmp_path / "ds.json",
        lora_module_name="no_such", save_total_limit=0,
    )  # fmt: skip
    problems = sentences(run)
    parts = (
        "--mode glm4",
        "--max_len 3",
        "--save_total_limit 0",
        "--train_path",
        "stage 5",
        "--lora_module_name no_such",
    )
    assert len(problems) == len(parts)
    for part in parts:
        assert sum(part in problem for problem in problems) == 1


def test_a_base_that_is_not_there_hides_nothing_else(tmp_path):
    run = run_of(tmp_path, model_name_or_path=tmp_path / "none", learning_rate=-1, ds_file="no.json")
    flags = [re.match(r"--\w+", sentence)[0] for sentence in sentences(run)]
    assert flags == ["--learning_rate", "--model_name_or_path", "--ds_file"]


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dim": 0},
        {"lora_dim": -8},
        {"lora_alpha": 0},
        {"lora_dropout": 2},
        {"lora_dropout": "nan"},
        {"lora_variant": "vera"},
        {"lora_variant": "adalora", "adalora_target_r": 0},
        {"train_type": "ptuning", "pre_seq_len": 0},
        {"train_type": "ptuning", "pre_seq_len": -1},
        {"train_type": "ptuning", "prefix_layers": "some"},
        {"train_type": "ptuning", "pre_seq_len": 10**10},
        {"train_type": "qlora"},
        {"per_device_train_batch_size": 0},
        {"gradient_accumulation_steps": -1},
        {"max_grad_norm": -1},
        {"max_grad_norm": "inf"},
        {"precision": "int8"},
        {"quantization_bit": 5},
        {"attn_implementation": "flash"},
        {"ds_file": "no.json"},
        {"dev_path": "no.json"},
        {"report_to": "comet"},
        {"cache_frozen_features": True},
    ],
    ids=str,
)
def test_one_mistake_is_one_sentence(changes, tmp_path):
    """What is checked further on does not fail over a value that is wrong."""
    problems = sentences(run_of(tmp_path, **changes))
    name = [name for name in changes if name != "train_type"] or ["train_type"]
    assert len(problems) == 1 and f"--{name[-1]}" in problems[0], problems


def test_a_ds_file_is_named_with_its_line(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{\n  "a": 1,\n}\n')
    (sentence,) = sentences(run_of(tmp_path, ds_file=bad))
    assert sentence.startswith(f"--ds_file {bad}:3 is not JSON")


def test_the_mode_is_that_of_the_base(tmp_path):
    (sentence,) = sentences(run_of(tmp_path, mode="glm"))
    assert "--mode glm2" in sentence
    assert read_command(launch.flags(run_of(tmp_path, mode="glm2"))).base.mode == "glm2"


def test_problems_that_were_found_before_come_first(tmp_path):
    options, problems = parse_train(launch.flags(run_of(tmp_path)))
    with pytest.raises(UserError) as caught:
        check(options, [*problems, "First."])
    assert caught.value.sentences == ("First.",)
