"""benchmarks/smoke.py: its cases are well formed, a difference of losses is found, and cases run on a CPU."""

import json

import pytest

from benchmarks.smoke import STEPS, TOLERANCE, ZERO, all_cases, chosen, compare
from tests import launch


def test_cases_are_compared_with_cases():
    cases = {case.name: case for case in all_cases()}
    assert len(cases) == len(all_cases())
    for case in cases.values():
        assert case.zero in ZERO
        assert not case.like or cases[case.like].train_type == case.train_type
    assert {case.train_type for case in cases.values()} == {"lora", "ptuning", "freeze", "all"}
    assert {case.then for case in cases.values()} == {"", "interrupt", "kill"}


def test_a_choice_brings_what_it_is_compared_with():
    assert {case.name for case in chosen("features", False)} == {"glm3-features", "glm3-freeze"}
    assert not any(case.needs_gpu for case in chosen("", False))


@pytest.mark.parametrize("changed, agrees", [
    ({}, True), ({8: 1.0005}, True), ({8: 1.01}, False), ({8: float("nan")}, False), ({8: None}, False),
])  # fmt: skip
def test_losses_that_differ_are_found(changed, agrees):
    (case,) = [case for case in all_cases() if case.name == "glm3-features"]
    losses = dict.fromkeys(range(1, STEPS + 1), 1.0)
    changed_losses = {step: loss for step, loss in {**losses, **changed}.items() if loss is not None}
    comparison = compare(
        case, {"glm3-freeze": {"losses": losses}, case.name: {"losses": changed_losses}}, TOLERANCE["float32"]
    )
    assert comparison["agrees"] is agrees
    assert compare(case, {"glm3-freeze": {"losses": losses}}, 1.0) is None


@pytest.mark.slow
def test_cases_run_and_agree(tmp_path):
    words = [
        "--work_dir",
        tmp_path / "smoke",
        "--parallel",
        2,
        "--only",
        "features",
        "--output",
        tmp_path / "smoke.json",
    ]
    result = launch.fork(["benchmarks/smoke.py", *words])
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "smoke.json").read_text())
    assert [pair["agrees"] for pair in report["pairs"]] == [True]
    assert "2 of 2 cases ran, 1 of 1 pairs agree" in result.stdout
