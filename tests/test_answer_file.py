"""predict.py: where answers go, what a kill leaves, what the flags of 2023 mean."""

import json
import os
import signal

import pytest

import predict
from checkpoints.read import read_model
from generation import prediction
from generation.answer_file import output_problem, part_path, with_answer
from generation.answerer import answer
from generation.models import find_model, load_model
from generation.prediction import generation_config
from generation.questions import read_questions
from options.predict import GenerationOptions, parse_predict
from tests.bad_input.place import refused, write
from tests.launch import GOLDEN, REPOSITORY, fork, start_fork, wait_for

BASE = GOLDEN / "glm3" / "base"
RECORDS = [json.loads(line) for line in (REPOSITORY / "data" / "spo_1.json").read_text().splitlines()[:5]]


@pytest.fixture
def place(tmp_path):
    write(tmp_path / "records.json", "\n".join(json.dumps(record) for record in RECORDS))
    return tmp_path


def flags_of(place, *more):
    """Five records in batches of two; answers of random weights do not end by themselves."""
    files = ["--test_path", str(place / "records.json"), "--output_path", str(place / "answers.jsonl")]
    return ["--model_path", str(BASE), "--max_new_tokens", "5", "--batch_size", "2", *files, *more]


OWN = {
    "none": ({"a": 1}, {"a": 1, "prediction": "new"}),
    "one": ({"prediction": "old", "a": 1}, {"previous_prediction": "old", "a": 1, "prediction": "new"}),
    "of any type": ({"prediction": None}, {"previous_prediction": None, "prediction": "new"}),
    "two": (
        {"prediction": "b", "previous_prediction": "a"},
        {"previous_prediction_2": "b", "previous_prediction": "a", "prediction": "new"},
    ),
    "three": (
        {"prediction": 3, "previous_prediction": 1, "previous_prediction_2": 2},
        {"previous_prediction_3": 3, "previous_prediction": 1, "previous_prediction_2": 2, "prediction": "new"},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_prediction_that_the_record_has_is_kept(name):
    record, expected = OWN[name]
    assert with_answer(record, "new") == expected


# name: (--output_path, what the sentence says)
UNWRITABLE = {
    "a directory": ("sub", "not a file in an existing directory"),
    "no directory": ("no/answers.jsonl", "not a file in an existing directory"),
    "below a file": ("records.json/answers.jsonl", "not a file in an existing directory"),
    "a long name": ("a" * 300, "cannot be written"),
    "a name too long for .part": ("a" * 253, "cannot be written"),
    "a device": ("/dev/null", "not a regular file"),
    "read-only": ("/proc/answers.jsonl", "cannot be written"),
    "a pipe": ("pipe", "not a regular file"),
    "a directory named .part": ("odd.jsonl", "cannot be written"),
    "the test file": ("records.json", "is the test file itself"),
    "a link to the test file": ("link", "is the test file itself"),
    "before the test file's .part": ("records", "is the test file itself"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_cannot_be_written_is_found_first(name, place):
    path, pattern = UNWRITABLE[name]
    (place / "sub").mkdir()
    (place / "odd.jsonl.part").mkdir()
    os.mkfifo(place / "pipe")
    (place / "link").symlink_to(place / "records.json")
    flags = flags_of(place)
    if name.startswith("before"):
        (place / "records.json").rename(place / "records.part")
        flags[flags.index("--test_path") + 1] = str(place / "records.part")
    flags[flags.index("--output_path") + 1] = str(place / path)
    refused(predict.main, flags, pattern, place)


def test_a_good_path_is_left_as_it_was(place):
    assert output_problem(place / "answers.jsonl") is None
    assert [path.name for path in place.iterdir()] == ["records.json"]


def interrupt(*_):
    raise KeyboardInterrupt


def stop_early(place, flags, monkeypatch, lines, rest=""):
    """Answer a file, but leave it as a kill would: so many whole lines of answers, and a part of one more."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prediction, "finish", interrupt)
        predict.main(flags)
    part = place / "answers.jsonl.part"
    kept = part.read_text().splitlines(keepends=True)
    assert len(kept) == 1 + len(RECORDS)
    part.write_text("".join(kept[: 1 + lines]) + rest)


SAMPLING = ["--do_sample", "True", "--temperature", "2", "--top_p", "1"]


def test_values_of_sampling_without_it_are_named(place):
    _, problems, notes = parse_predict(flags_of(place, "--temperature", "2", "--top_p", "0.5"))
    assert notes == [f"--{value} has no effect without --do_sample." for value in ("temperature 2.0", "top_p 0.5")]
    assert problems == []
    assert parse_predict(flags_of(place, *SAMPLING))[1:] == ([], [])


@pytest.mark.parametrize("more", [[], SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("lines", "rest"), [(0, ""), (2, ""), (3, '{"index": 1, "ans'), (5, "")])
def test_the_same_command_continues(more, lines, rest, place, monkeypatch, capsys):
    output, flags = place / "answers.jsonl", flags_of(place, *more)
    predict.main(flags)
    complete = output.read_text()
    assert [json.loads(line)["input"] for line in complete.splitlines()] == [record["input"] for record in RECORDS]
    write(output, "an earlier file\n")
    stop_early(place, flags, monkeypatch, lines, rest)
    assert output.read_text() == "an earlier file\n"
    capsys.readouterr()
    predict.main(flags)
    assert output.read_text() == complete and not part_path(output).exists()
    assert (f"{lines} of 5 answers are in" in capsys.readouterr().out) == bool(lines)
    assert sorted(path.name for path in place.iterdir()) == ["answers.jsonl", "records.json"]


def test_another_batch_size_continues_a_greedy_command(place, monkeypatch):
    output, flags = place / "answers.jsonl", flags_of(place)
    predict.main(flags)
    complete = output.read_text()
    stop_early(place, flags, monkeypatch, 3)
    predict.main([*flags, "--batch_size", "1"])
    assert output.read_text() == complete


# what the second command has otherwise: (its flags, what the sentence names)
OTHERS = {
    "length": (["--max_new_tokens", "6"], "differs in --max_new_tokens"),
    "sampling": (["--do_sample"], "differs in --do_sample"),
    "precision": (["--precision", "bf16"], "differs in --precision"),
    "prefix": (["--source_prefix", "a"], "differs in records or prompts"),
    "limit": (["--max_src_len", "8"], "differs in records or prompts"),
    "model": (["--model_path", str(GOLDEN / "glm" / "base")], "differs in model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_command_does_not_take_the_answers(name, place, monkeypatch):
    changes, pattern = OTHERS[name]
    stop_early(place, flags_of(place), monkeypatch, 3)
    refused(predict.main, [*flags_of(place), *changes], pattern, place)


@pytest.mark.parametrize("content", ["notes\n", "[1]\n", '{"a": 1}\n', b"\xff\n"])
def test_a_file_of_something_else_is_left_alone(content, place):
    write(place / "answers.jsonl.part", content)
    refused(predict.main, flags_of(place), "is not a file of answers", place)


@pytest.mark.slow
def test_a_kill(place):
    output = place / "answers.jsonl"
    words = ["predict.py", *flags_of(place, "--max_new_tokens", "100", "--batch_size", "1")]
    run = start_fork(words)
    part = part_path(output)
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 2, run.has_ended)
    run.kill()
    assert run.finish(60).returncode == -signal.SIGKILL
    kept = part.read_bytes().count(b"\n") - 1
    assert 2 <= kept < len(RECORDS) and not output.exists()
    result = fork(words)
    assert result.returncode == 0 and f"{kept} of 5 answers are in" in result.stdout
    assert len(output.read_text().splitlines()) == len(RECORDS)


def test_roles_are_checked_before_weights_load(place):
    roles = ("user", "assistant", "observation")
    write(place / "records.json", {"messages": [{"role": role, "content": "a"} for role in roles]})
    flags = [*flags_of(place), "--model_path", str(GOLDEN / "glm" / "base")]
    refused(predict.main, flags, "only ChatGLM3-6B supports", place)


ASK = ["--instruction", "a"]
# name: (flags of 2023, what they become)
FLAGS_OF_2023 = {
    "model": (["--model_dir", "m", *ASK], {"model_path": "m", "base_model": None}),
    "adapter": (["--ori_model_dir", "b", "--model_dir", "m", *ASK], {"model_path": "m", "base_model": "b"}),
    "prefix": (["--model_dir", "b", "--ptuning_checkpoint", "p", *ASK], {"model_path": "p", "base_model": "b"}),
    "prefix alone": (["--ptuning_checkpoint", "p", *ASK], {"model_path": "p", "base_model": None}),
    "its sizes": (["--model_dir", "m", "--pre_seq_len", "16", "--prefix_projection", "True", *ASK], {}),
    "question": (["--model_dir", "m", "--prompt_text", "q", "--input", "i"], {"instruction": "q", "input": "i"}),
    "device": (["--model_dir", "m", "--device", "0", *ASK], {"device": "0"}),
    "mode": (["--model_dir", "m", "--mode", "glm2", *ASK], {"mode": "glm2"}),
    "length": (["--model_dir", "m", "--max_len", "1560", *ASK], {"max_len": 1560, "max_new_tokens": 1560}),
    "length of chat": (["--model_path", "m", "--max_length", "2048", *ASK], {"max_len": 2048}),
    "no length": (["--model_path", "m", *ASK], {"max_len": None, "max_new_tokens": 512}),
    "sampling": (["--model_path", "m", "--do_sample", "True", *ASK], {"do_sample": True}),
    "no sampling": (["--model_path", "m", "--do_sample", "False", *ASK], {"do_sample": False}),
}


@pytest.mark.parametrize("name", FLAGS_OF_2023)
def test_flags_of_2023(name):
    argv, expected = FLAGS_OF_2023[name]
    options, problems, _ = parse_predict(argv)
    values = {key: value for section in options.sections for key, value in vars(section).items()}
    assert problems == [] and {key: values[key] for key in expected} == expected


WRONG = {
    "no model": (ASK, "--model_path is missing"),
    "two models": (["--model_path", "m", "--model_dir", "m", *ASK], "--model_path and --model_dir are mutually"),
    "two bases": (
        ["--model_dir", "m", "--ptuning_checkpoint", "p", "--ori_model_dir", "b", *ASK],
        "mutually exclusive",
    ),
    "two questions": (["--model_dir", "m", "--prompt_text", "q", *ASK], "--prompt_text and --instruction"),
    "mode": (["--model_dir", "m", "--mode", "glm4", *ASK], "--mode"),
    "another mode": (["--model_dir", str(BASE), "--mode", "glm", *ASK], "--mode"),
    "device": (["--model_dir", "m", "--device", "gpu", *ASK], "--device: 'gpu' is unknown"),
    "no such device": (["--model_dir", str(BASE), "--device", "99", *ASK], "--device 99: torch has"),
    "no room": (["--model_dir", str(BASE), "--max_len", "3", *ASK], "--max_len 3 is out of bounds"),
    "not UTF-8": (["--model_dir", str(BASE), "--instruction", "a\udcff"], "--instruction is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags(name, tmp_path):
    argv, pattern = WRONG[name]
    refused(predict.main, argv, pattern, tmp_path)


def questions_of(argv):
    """What a command line asks."""
    options, problems, _ = parse_predict(argv)
    assert problems == []
    return options.questions


def test_prompt_text_is_for_records_without_an_instruction(place):
    questions = read_questions(questions_of(flags_of(place, "--prompt_text", "题：")), {})
    assert [record["instruction"] for record in questions] == [record["instruction"] for record in RECORDS]
    write(place / "records.json", {"text": "水泵渗漏。", "answer": "a"})
    more = ["--prompt_text", "题：", "--prompt_column", "text", "--response_column", "answer"]
    (record,) = read_questions(questions_of(flags_of(place, *more)), {})
    assert record["instruction"] == "题：水泵渗漏。"


@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
def test_max_len_bounds_prompt_and_answer(mode, capsys):
    base = GOLDEN / mode / "base"
    question = "抽取三元组：水泵渗漏。" * 3
    checkpoint = read_model(base)
    located = find_model(checkpoint, max_len=24)
    prompt = located.mode.prompt_ids(located.tokenizer, {"instruction": question, "input": ""}, **located.limits)
    assert len(prompt) < 24
    located = find_model(checkpoint, max_len=len(prompt) + 3)
    answerer = load_model(located)
    config = generation_config(located.mode, located.tokenizer, GenerationOptions(max_new_tokens=99))
    short, long = (answer(answerer, [prompt], config, max_len=len(prompt) + n)[0] for n in (3, 8))
    assert long.startswith(short) and len(answerer.tokenizer.encode(short)) <= len(answerer.tokenizer.encode(long))
