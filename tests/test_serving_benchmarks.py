"""benchmarks/serving.py and benchmarks/serving_load.py: what they compute, and that the load finds what is wrong."""

import asyncio
import json
import os
from types import SimpleNamespace

import pytest
import torch

from benchmarks import serving, serving_load
from benchmarks.serving_clients import Answered, in_a_queue, make_questions
from benchmarks.serving_sides import answer_alone, make_talking_base
from errors import UserError
from generation.models import load_answerer
from modes import MODES

pytest.importorskip("fastapi")


@pytest.fixture(scope="module", params=MODES)
def base(request, tmp_path_factory):
    """(generation, a small base that generates text only)"""
    directory = tmp_path_factory.mktemp("bases") / request.param
    make_talking_base(directory, request.param, num_layers=1, hidden_size=64)
    return MODES[request.param], directory


def options(**changes):
    return serving.ServingOptions(work_dir="x", **changes)


def test_questions_are_those_of_their_seed():
    questions = make_questions(50, seed=3, longest=40, tokens=(2, 9))
    assert questions == make_questions(50, seed=3, longest=40, tokens=(2, 9)) != make_questions(50, seed=4)
    assert {question.max_tokens for question in questions} == set(range(2, 10))
    assert all(8 <= len(question.text) <= 40 for question in questions)


def test_loads_and_turns_share_no_question():
    asked = [question.text for turn in range(2) for clients in (1, 4, 16) for question in
             serving.questions_for(clients, turn, options())]  # fmt: skip
    assert len(set(asked)) == len(asked) == 2 * (8 + 16 + 64)


def test_a_queue_answers_one_after_another():
    answers = [Answered(first, whole, 1, "") for first, whole in ((1, 2), (1, 3), (2, 5))]
    assert in_a_queue(answers, clients=1) == ([1, 1, 2], 10)
    assert in_a_queue(answers, clients=2) == ([1, 3, 5], 10)  # the third is asked at 2, begins at 5 and says it at 7
    assert in_a_queue(answers, clients=3) == ([1, 3, 7], 10)


def test_a_base_generates_text_only(base):
    mode, directory = base
    answerer = load_answerer(directory, precision="fp32")
    texts = answerer.tokenizer.token_bytes()
    rows = answerer.model.get_output_embeddings().weight.abs().sum(1)
    silent = {index for index, row in enumerate(rows.tolist()) if not row}
    assert set(mode.stop_ids(answerer.tokenizer)) <= silent and set(range(len(texts), len(rows))) <= silent
    assert all(text.decode().strip() for index, text in enumerate(texts) if index not in silent)
    for question, answer in zip(asked := make_questions(5, seed=0), answer_alone(answerer, asked), strict=True):
        assert answer.tokens == question.max_tokens and answer.text and 0 < answer.first < answer.whole


def test_figures_of_a_load():
    def found(speed, text):
        return serving.Measured(speed, 2 * speed, [0.1, 0.3, 0.2], [text] * 9)

    turns = [{"alone": found(10.0, "a"), "ours": found(50.0, "a"), "transformers": found(40.0, "b")},
             {"alone": found(10.0, "a"), "ours": found(30.0, "a"), "transformers": found(40.0, "a")}]  # fmt: skip
    row = serving.row_of(16, turns)
    assert row["ratios"] == {"alone": 4.0, "transformers": 1.0}
    assert row["processor_ratios"] == row["ratios"] and row["tokens_per_processor_second"]["ours"] == [100, 60]
    assert row["equal_answers"] == {"alone": "8 of 8", "transformers": "0 of 8"}
    assert row["first_token_seconds"]["ours"] == {"median": 0.2, "p95": 0.3}
    assert "| 16 | ours | 40.0 | 0.20 s | 0.30 s |  |  |" in serving.table("glm3", [row])
    assert [line.rpartition(": ")[2] for line in serving.targets("glm3", [row])] == ["met", "met"]
    slower = {**row, "ratios": {"alone": 2.6, "transformers": 0.94}}
    assert [line.rpartition(": ")[2] for line in serving.targets("glm3", [slower])] == ["missed", "missed"]
    assert "target 2.5: met" in serving.targets("glm", [slower])[0]


def test_numbers_of_clients():
    words = ["--work_dir", "x", "--clients", "1,16"]
    assert serving.section(serving.ServingOptions, serving.read_command_line(serving.PROGRAM, words)).clients == (1, 16)
    with pytest.raises(UserError, match="'0,x' holds something else than numbers from 1"):
        serving.read_command_line(serving.PROGRAM, ["--work_dir", "x", "--clients", "0,x"])


def test_a_metric_is_summed_over_its_labels():
    text = '# HELP a b\na{model_name="x"} 2.0\na{model_name="y"} 3.0\na_total 7.0\n'
    assert serving_load.metric(text, "a") == 5 and serving_load.metric(text, "a_total") == 7
    with pytest.raises(ValueError, match="no metric b"):
        serving_load.metric(text, "b")


@pytest.mark.slow
def test_a_load_finds_what_is_wrong():
    from tests.servers import serving as running

    with running("glm3") as server:
        questions = make_questions(2, seed=0, tokens=(3, 5))
        load = serving_load.Load(server.url, server.model.name, questions, ["", "no such answer"])
        given = serving_load.LoadOptions(work_dir="x", clients=3, seconds=2)
        asyncio.run(serving_load.put_on(load, SimpleNamespace(pid=os.getpid()), given))
        assert any(problem.startswith("wrong: ") for problem in load.problems)
        assert serving_load.left_over(server.url) == 0
        load = serving_load.Load(server.url, "no such model", questions, ["", ""])
        asyncio.run(serving_load.put_on(load, SimpleNamespace(pid=os.getpid()), given))
        assert all(problem.startswith("lost: HTTPStatusError") for problem in load.problems) and load.problems


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["glm", "glm3"])
def test_a_short_load(mode, tmp_path, capsys):
    words = ["--work_dir", str(tmp_path), "--mode", mode, "--clients", "8", "--seconds", "3"]
    with pytest.raises(SystemExit) as ended:
        serving_load.main([*words, "--output", str(tmp_path / "load.json")])
    assert ended.value.code == 0, capsys.readouterr().out
    result = json.loads((tmp_path / "load.json").read_text())
    assert result["problems"] == [] and set(result["counts"]) == {"streamed", "waited for", "disconnected"}


@pytest.mark.slow
def test_both_sides_of_the_smallest_benchmark(tmp_path, capsys):
    words = ["--work_dir", str(tmp_path), "--modes", "glm", "--clients", "1,2", "--repeats", "1", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        serving.main([*words, "--num_layers", "1", "--hidden_size", "64", "--output", str(tmp_path / "a.json")])
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "a.json").read_text())["results"]["glm"]
    assert [row["clients"] for row in rows] == [1, 2]
    assert all(row["equal_answers"] == {"alone": "8 of 8"} for row in rows)
    assert all(min(speeds) > 0 for row in rows for speeds in row["tokens_per_second"].values())
