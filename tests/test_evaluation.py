"""Tracking, history, report; on real ranks, loss and answers equal those on one rank and do not affect training."""

import json
import math
from pathlib import Path

import pytest

from evaluation.report import (
    append_row,
    describe_row,
    describe_samples,
    forgetting,
    read_history,
    write_report,
)
from evaluation.tracking import best_index, direction_of, is_best, should_stop, values_of
from tests import launch
from tests.evaluated_ranks import CASES, RECORDS
from tests.launch import GOLDEN

HISTORY = [
    {"step": 0, "epoch": 0, "probe_loss": 2.0, "probe_bleu4": 0.5},
    {"step": 10, "epoch": 1, "dev_loss": 1.5, "bleu4": 0.2, "probe_loss": 2.1, "probe_bleu4": 0.4},
    {"step": 20, "epoch": 1, "dev_loss": 1.0, "bleu4": 0.6, "probe_loss": 2.5, "probe_bleu4": 0.3},
    {"step": 30, "epoch": 2, "dev_loss": None, "bleu4": 0.6, "probe_loss": 3.0, "probe_bleu4": None},
]
SAMPLES = [
    {"asked": "抽取：水温高", "reference": "a_b_c", "prediction": "a_b_c\nd_e_f"},
    {"asked": "写代码", "reference": "```python\n1\n```", "prediction": ""},
    {"asked": "长", "reference": "好" * 1000, "prediction": "| x |\n# y"},
]


def test_which_is_better():
    assert [direction_of(name) for name in ("dev_loss", "probe_loss", "triples_f1", "bleu4")] == ["lower"] * 2 + [
        "higher"
    ] * 2


@pytest.mark.parametrize(
    ("values", "lower", "higher"),
    [
        ([], None, None),
        ([1.0], 0, 0),
        ([2.0, 1.0, 3.0], 1, 2),
        ([1.0, 1.0], 0, 0),
        ([None, math.nan, 5.0, math.inf], 2, 2),
        ([None, math.nan], None, None),
        ([0.0, -0.0], 0, 0),
    ],
)
def test_best(values, lower, higher):
    assert (best_index(values, "lower"), best_index(values, "higher")) == (lower, higher)
    assert is_best(values, "lower") == (lower is not None and lower == len(values) - 1)


def test_stopping():
    values = [1.0, 0.9, 0.9, math.nan, 0.8, 0.85, 0.81, None]
    stops = [should_stop(values[:n], "lower", 2) for n in range(len(values) + 1)]
    assert stops == [False, False, False, False, True, False, False, True, True]
    assert should_stop([None, None], "higher", 2) and not should_stop([None], "higher", 2)
    assert not should_stop([1.0] * 100, "higher", None)
    assert values_of(HISTORY, "dev_loss") == [1.5, 1.0, None]


def test_history_survives_kills_and_resumed_runs(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    assert read_history(path) == []
    for row in HISTORY:
        append_row(path, row)
    assert read_history(path) == HISTORY
    assert read_history(path, up_to_step=15) == HISTORY[:2]
    with path.open("a") as file:
        file.write('{"step": 40, "epo')  # killed
    append_row(path, {"step": 20, "epoch": 1, "dev_loss": math.nan})  # resumed from step 10
    assert read_history(path) == [*HISTORY[:2], {"step": 20, "epoch": 1, "dev_loss": None}]


def test_lines_for_the_terminal():
    assert describe_row(HISTORY[1]).startswith("evaluation at step 10: dev_loss 1.5000, bleu4 0.2000, probe_loss 2.1")
    assert describe_row(HISTORY[3]).startswith("evaluation at step 30: dev_loss –, bleu4 0.6000")
    text = describe_samples(SAMPLES, 2)
    assert text.splitlines() == [
        "  asked: 抽取：水温高",
        "  should say: a_b_c",
        "  says: a_b_c",
        "    d_e_f",
        "",
        "  asked: 写代码",
        "  should say: ```python",
        "    1",
        "    ```",
        "  says: (nothing)",
    ]


def test_report(tmp_path):
    train_rows = [{"step": step, "loss": 2 / step if step != 7 else None} for step in range(1, 31)]
    paths = write_report(
        tmp_path, HISTORY, metric="bleu4", samples=SAMPLES, samples_step=20, train_rows=train_rows, notes=["Stopped."]
    )
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # and nothing half-written
    report = json.loads(paths[0].read_text())
    assert report["best"] == HISTORY[2] and report["evaluations"] == HISTORY and report["samples"] == SAMPLES
    assert report["forgetting"]["probe_loss"] == {"first": 2.0, "best": 2.5, "last": 3.0}
    text = paths[1].read_text()
    assert "Stopped." in text and "Best step: 20 (epoch 1), bleu4 0.6000." in text
    table = [line for line in text.splitlines() if line.startswith("|")][:6]
    assert table == [
        "| step | epoch | probe_loss | probe_bleu4 | dev_loss | bleu4 |  |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 0 | 0 | 2.0000 | 0.5000 |  |  |  |",
        "| 10 | 1 | 2.1000 | 0.4000 | 1.5000 | 0.2000 |  |",
        "| **20** | **1** | **2.5000** | **0.3000** | **1.0000** | **0.6000** | best |",
        "| 30 | 2 | 3.0000 | – | – | 0.6000 |  |",
    ]
    assert "| probe_bleu4 | 0.5000 | 0.3000 | – |" in text
    assert "````text\n```python\n1\n```\n````" in text and "好" * 400 + "…" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_report_of_little(tmp_path):
    for history in ([], [{"step": 1, "epoch": 1, "dev_loss": math.inf}]):
        paths = write_report(tmp_path, history, metric="dev_loss")
        assert json.loads(paths[0].read_text())["best"] is None
        assert "No evaluation gave a finite dev_loss." in paths[1].read_text()
    assert forgetting([{"step": 1, "epoch": 1, "dev_loss": 1.0}], None) == {}


def test_a_report_that_fails_leaves_the_one_before(tmp_path):
    paths = write_report(tmp_path, HISTORY, metric="bleu4")
    before = [path.read_bytes() for path in paths]
    with pytest.raises(TypeError):
        write_report(tmp_path, [*HISTORY, {"step": object(), "epoch": 1}], metric="bleu4")
    assert [path.read_bytes() for path in paths] == before and len(list(tmp_path.iterdir())) == 3


def test_samples_and_batches_of_prompts():
    from data.loading import group_by_length
    from evaluation.sets import sample_indices

    assert sample_indices(5, None, 1) == sample_indices(5, 5, 1) == sample_indices(5, 9, 1) == [0, 1, 2, 3, 4]
    chosen = sample_indices(1000, 50, 1234)
    assert chosen == sample_indices(1000, 50, 1234) != sample_indices(1000, 50, 1235)
    assert chosen == sorted(set(chosen)) and len(chosen) == 50
    assert group_by_length([3, 9, 1, 5, 5], 2) == [[1, 3], [4, 0], [2]]
    assert group_by_length([], 2) == []


def test_training_goes_on_as_if_nothing_had_been():
    import torch

    from parallel.zero import evaluating

    module = torch.nn.Sequential(torch.nn.Dropout(0.5))
    state = torch.get_rng_state()
    with pytest.raises(KeyError), evaluating(module, torch.device("cpu")):
        assert not module[0].training and not torch.is_grad_enabled()
        torch.rand(3)
        raise KeyError
    assert module.training and module[0].training and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


NAMES = [f"{mode} {method}" for mode, method, _ in CASES]


def on_ranks(stage: int, num_ranks: int, path: Path) -> list[dict]:
    """What tests/evaluated_ranks.py writes."""
    result = launch.fork(["tests/evaluated_ranks.py", stage, path], num_ranks)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(path.with_suffix(f".{rank}").read_text()) for rank in range(num_ranks)]


@pytest.mark.parametrize(("start_step", "kept"), [({}, 0), ({"start_step": 0}, 1), ({"start_step": 10}, 2)])
def test_a_run_resumed_in_the_first_evaluation_keeps_that_of_the_base(start_step, kept, one_rank, tmp_path):
    """A run that begins keeps none, and one that was stopped in the evaluation of step 1 keeps that of step 0."""
    from evaluation.evaluator import HISTORY_FILE, make_evaluator

    for row in HISTORY:
        append_row(tmp_path / HISTORY_FILE, row)
    make_evaluator(None, [], tmp_path, metric="dev_loss", generate=list, **start_step)
    assert read_history(tmp_path / HISTORY_FILE) == HISTORY[:kept]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One rank, ZeRO-2."""
    return on_ranks(2, 1, tmp_path_factory.mktemp("alone") / "result")[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_give_the_loss_and_the_answers_of_one(alone, stage, tmp_path):
    ranks = on_ranks(stage, 2, tmp_path / "result")
    assert ranks[0] == ranks[1]  # all ranks know the result
    for name in NAMES:
        one, two = alone[name], ranks[0][name]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)  # float32
        assert two["answers"] == one["answers"]
        assert len(one["answers"]) == len(RECORDS)
        assert two["loss_after"] == pytest.approx(one["loss_after"], abs=1e-5)
        assert abs(two["loss_after"] - two["loss"]) > 1e-3
        assert two["trajectory"] == two["undisturbed"]  # bit by bit, dropout included
        check_verdicts(two, tmp_path / name.split()[0])
    assert len(set(ranks[0]["glm2 ptuning"]["answers"])) == len(set(ranks[0]["glm3 all"]["answers"])) == len(RECORDS)


def check_verdicts(result: dict, output_dir: Path) -> None:
    """Before training, a first evaluation, and two more of a resumed run that find nothing better."""
    rows, is_best, stops = zip(*result["verdicts"], strict=True)
    assert set(rows[0]) == {"step", "epoch"} | {f"probe_{name}" for name in ("loss", "rouge1", "rouge2", "rougeL")}
    assert rows[1]["dev_loss"] == rows[2]["dev_loss"] == result["loss_after"] == rows[1]["probe_loss"]
    assert rows[1]["rougeL"] == rows[2]["rougeL"] and [row["step"] for row in rows] == [0, 3, 4, 5]
    assert (is_best, stops) == ((False, True, False, False), (False, False, False, True))
    assert read_history(output_dir / "evaluation.jsonl") == list(rows)  # and nothing of earlier runs
    report = json.loads((output_dir / "evaluation.json").read_text())
    assert report["best"] == rows[1] and report["samples_step"] == 3 and len(report["samples"]) == len(RECORDS)


@pytest.mark.slow
def test_the_loss_is_that_of_the_plain_model(alone):
    import torch

    from methods import METHODS
    from modes import MODES

    for (mode, method, options), name in zip(CASES, NAMES, strict=True):
        directory = GOLDEN / mode / "base"
        config = MODES[mode].config_class.from_pretrained(directory)
        METHODS[method](**options).configure(config)
        model = MODES[mode].model_class.from_pretrained(directory, config=config, dtype=torch.float32)
        torch.manual_seed(0)  # as the ranks
        model = METHODS[method](**options).prepare(model).eval()
        tokenizer = MODES[mode].tokenizer_class.from_pretrained(directory)
        nats = tokens = 0
        for record in RECORDS:
            row = MODES[mode].encode(tokenizer, record, 256, 160)
            labels = torch.tensor([row["labels"]])
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels, use_cache=False).loss
            count = int((labels[:, 1:] != -100).sum())
            nats, tokens = nats + loss.item() * count, tokens + count
        assert alone[name]["loss"] == pytest.approx(nats / tokens, abs=1e-5)
