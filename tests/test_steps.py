"""Steps of a run, warm-up and learning-rate schedules: those of transformers."""

from functools import partial

import pytest
import torch
import transformers

from checkpoints.position import ResumeState
from checkpoints.resume import find_start
from data.loading import Step
from data.steps import count_steps, count_warmup
from options.sections import OutputOptions, StepOptions
from options.sections.optimizer import SCHEDULES
from training.engine import make_schedule
from training.summary import describe_plan

OFFICIAL = {
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "linear": transformers.get_linear_schedule_with_warmup,
    "constant": transformers.get_constant_schedule_with_warmup,
    "constant_with_warmup": transformers.get_constant_schedule_with_warmup,
    "cosine_with_restarts": transformers.get_cosine_with_hard_restarts_schedule_with_warmup,
    "polynomial": transformers.get_polynomial_decay_schedule_with_warmup,
}


def optimizer_of(rate=1e-3):
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(schedule, optimizer, count):
    lrs = []
    for _ in range(count):
        lrs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return lrs


def test_every_schedule_is_compared():
    assert set(OFFICIAL) == set(SCHEDULES)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 20), (6, 7), (7, 7), (12, 7), (0, 1), (1, 1)])
def test_rates_are_those_of_transformers(name, warmup, total):
    """Of every step that trains, also with a warm-up as long as the run, where polynomial divides by zero."""
    length = {} if name.startswith("constant") else {"num_training_steps": total}
    ours, theirs = optimizer_of(), optimizer_of()
    ours_rates = rates(make_schedule(name, warmup, total)(ours), ours, total)
    official = OFFICIAL[name](theirs, num_warmup_steps=warmup, **length)
    expected = [1e-3 * official.lr_lambdas[0](step) for step in range(total)]
    assert ours_rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_schedule_that_is_set_to_a_step_continues(name):
    """As `load_state` sets it."""
    optimizer = optimizer_of()
    uninterrupted = rates(make_schedule(name, 2, 9)(optimizer), optimizer, 9)
    for step in range(9):
        fresh = optimizer_of()
        schedule = make_schedule(name, 2, 9)(fresh)
        schedule.last_epoch = step
        fresh.param_groups[0]["lr"] = schedule.get_lr()[0]
        continued = [fresh.param_groups[0]["lr"]]
        for _ in range(step + 1, 9):
            fresh.step()
            schedule.step()
            continued.append(fresh.param_groups[0]["lr"])
        assert continued == uninterrupted[step:]


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"),
    [(0.001, 3, 1), (0.5, 3, 2), (0.5, 4, 2), (1, 3, 3), (1.0, 3, 3), (1.01, 3, 4), (2.25, 4, 9), (3.0, 10, 30)],
)
def test_a_fraction_of_an_epoch_ends_at_a_whole_step(epochs, per_epoch, steps):
    """max_steps = ceil(num_train_epochs * num_update_steps_per_epoch) in transformers/trainer.py."""
    assert count_steps(epochs, per_epoch) == steps
    assert count_steps(epochs, per_epoch, max_steps=7) == 7


# (epochs, the state's step, epoch and samples, of 4 samples an epoch): steps of the whole run
STARTS = {
    (2.5, None): 10,
    (2.5, (3, 1, 3)): 10,
    (2.5, (4, 1, 4)): 10,
    (2.5, (9, 3, 1)): 10,
    (2.5, (10, 3, 2)): 10,
    (2.5, (12, 3, 4)): 12,  # the run was longer before
    (0.5, (1, 1, 1)): 2,
    (0.5, (3, 1, 3)): 3,
    (3.0, (8, 2, 4)): 12,
    (1, (6, 2, 2)): 6,
}


@pytest.mark.parametrize(("epochs", "state"), STARTS)
def test_a_resumed_run_has_as_many_steps(epochs, state, monkeypatch, tmp_path):
    record = dict(zip(("step", "epoch", "samples"), state, strict=True)) if state else {}
    resumed = ResumeState(tmp_path, record) if state else None
    monkeypatch.setattr("checkpoints.resume.find_state", lambda *_: resumed)
    monkeypatch.setattr("checkpoints.resume.agree", lambda *_: None)
    plan_of = {skip: [None] * (4 - skip) for skip in range(5)}
    output, steps = OutputOptions(output_dir=str(tmp_path)), StepOptions(num_train_epochs=epochs)
    start = find_start(output, {}, lambda epoch, skip: plan_of[skip], steps, steps_per_epoch=4, keepers=[], at=print)
    assert start.total_steps == STARTS[epochs, state]


def test_a_warmup_longer_than_the_run_is_said():
    plan = [Step([[0]], 1, 1, 1, 1)] * 5
    steps = StepOptions(per_device_train_batch_size=1)
    said = partial(describe_plan, plan, steps, ranks=1, total_steps=5, row_length=None)
    assert "5 (5 per epoch), 5 of them warm-up" in said(warmup_steps=5)
    assert "a warm-up of 8 steps: --learning_rate is never reached" in said(warmup_steps=8)


@pytest.mark.parametrize(
    ("steps", "ratio", "total", "expected"),
    [(None, 0.1, 25, 2), (None, 0, 25, 0), (0, 0.1, 25, 0), (7, 0.1, 25, 7), (0.05, 0.5, 25, 2), (30, 0, 25, 30),
     (1, 0, 25, 1), (0.999, 0, 25, 25)],
)  # fmt: skip
def test_warmup(steps, ratio, total, expected):
    assert count_warmup(total, steps, ratio) == expected
    if steps is not None:
        arguments = transformers.TrainingArguments("unused", warmup_steps=steps, report_to=[], use_cpu=True)
        assert arguments.get_warmup_steps(total) == expected
