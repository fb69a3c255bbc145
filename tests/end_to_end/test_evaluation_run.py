"""Evaluation while training, on real ranks: the best checkpoint, early stopping, the report, and a resumed run."""

import json

import pytest

import predict
from checkpoints.output_names import kind_of
from tests import launch

SAMPLES = launch.GOLDEN / "samples.jsonl"


@pytest.fixture
def short(tmp_path):
    """Two samples with short answers: a token at ZeRO-3 takes long."""
    records = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()[:2]]
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({**one, "output": one["output"][:3]}) + "\n" for one in records))
    return path


def options_of(mode, output, records, **changes):
    """Three epochs of eight steps on two ranks; enough to learn a sample by heart."""
    train_path = output.parent / "train.jsonl"
    train_path.write_text(8 * records.read_text())
    return launch.train_options(
        mode,
        "all",
        output,
        train_path=train_path,
        dev_path=records,
        eval_metric="exact_match",
        num_train_epochs=3,
        learning_rate=1e-2,
        save_state_step=1,
        save_total_limit=2,
        **changes,
    )


def rows_of(output):
    return [json.loads(line) for line in (output / "evaluation.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "ds_file"), [("glm3", "ds_zero2_no_offload.json"), ("glm", "ds_zero3_offload.json")])
def test_the_best_is_kept_and_scores_the_same_afterwards(mode, ds_file, short, tmp_path, capsys):
    output = tmp_path / "output"
    options = options_of(mode, output, short, ds_file=ds_file, probe_path=short)
    printed = launch.train({**options, "max_steps": 9}, num_ranks=2).stdout
    assert "evaluation at step 0: probe_loss" in printed and printed.count("  should say: ") == 4
    first = rows_of(output)
    assert [row["step"] for row in first] == [0, 8, 9]  # the end of every epoch, and of the run
    launch.train(options, num_ranks=2)  # resumes
    rows = rows_of(output)
    assert rows[:3] == first and [row["step"] for row in rows[3:]] == [16, 24]
    assert all(row["dev_loss"] == row["probe_loss"] for row in rows[1:])  # here the sets are the same
    assert rows[-1]["dev_loss"] < 0.5 * rows[1]["dev_loss"]

    best = max(rows[1:], key=lambda row: row["exact_match"])
    assert best["exact_match"] > 0
    assert json.loads((output / "best" / "checkpoint.json").read_text())["step"] == best["step"]
    report = json.loads((output / "evaluation.json").read_text())
    assert report["best"] == best and report["forgetting"]["probe_loss"]["first"] == rows[0]["probe_loss"]
    assert (output / "evaluation.md").is_file() and (output / "evaluation.png").stat().st_size > 1000
    assert [path.name for path in output.iterdir() if kind_of(path.name) == (None, False)] == []

    answers = tmp_path / "answers.jsonl"
    test = ["--test_path", str(short), "--output_path", str(answers), "--metrics", "exact_match,rougeL"]
    predict.main(["--model_path", str(output / "best"), "--batch_size", "1", "--max_new_tokens", "80", *test])
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["exact_match"] == pytest.approx(best["exact_match"], abs=1e-4) and scores["rougeL"] > 0


@pytest.mark.slow
def test_early_stopping(short, tmp_path):
    output = tmp_path / "output"
    options = options_of("glm2", output, short, early_stopping_patience=2)
    options |= {"learning_rate": 1e-9, "num_train_epochs": 5}  # too small to train anything
    printed = launch.train(options).stdout
    rows, last = rows_of(output), launch.newest_checkpoint(output)
    assert [row["step"] for row in rows] == [16, 32, 48] and last.name == "epoch-3-step-48"
    assert "should say: " in printed
    assert "Stopped early: 2 evaluations" in (output / "evaluation.md").read_text()
    assert len(rows) < options["num_train_epochs"]
    again = launch.train(options).stdout
    assert "finished run" in again and rows_of(output) == rows


@pytest.mark.slow
def test_replay_mixes_general_records_in(tmp_path):
    output = tmp_path / "output"
    options = launch.train_options("glm3", "lora", output, num_train_epochs=1)
    printed = launch.train(options | {"replay_path": SAMPLES, "replay_ratio": 0.4}).stdout
    assert "2 replayed records mixed in, from 5" in printed and "(7 per epoch)" in printed
    dry = launch.fork(
        ["train.py", *launch.flags({**options, "replay_path": SAMPLES, "replay_ratio": 0.4}), "--dry_run"]
    )
    assert dry.returncode == 0 and "(7 per epoch)" in dry.stdout
    changed = launch.fork(["train.py", *launch.flags({**options, "replay_path": SAMPLES, "replay_ratio": 0.8})])
    assert changed.returncode == 2 and "is the state of another run (training data:" in changed.stderr
