"""options/parser.py: a command line, key=value arguments and a run.yaml; and what it may import."""

import json
import sys

import pytest

from errors import UserError
from options.chat import CHAT
from options.merge import MERGE
from options.parser import build_parser, parse, parse_and_check
from options.predict import PREDICT
from options.serve import SERVE
from options.train import TRAIN, parse_train
from tests.launch import start
from tests.processor_time import check_quick_answer
from version import VERSION

PROGRAMS = {program.name: program for program in (TRAIN, PREDICT, MERGE, CHAT, SERVE)}


def problems_of(program, words):
    """The sentences about a command line, also where it cannot be taken apart."""
    try:
        return parse_and_check(PROGRAMS[program], words).problems
    except UserError as error:
        return [*error.sentences]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--prefix_projection", "maybe"], ["--prefix_projection", "'maybe'", "True"]),
        (["--max_len", "1k"], ["--max_len", "'1k'"]),
        (["--freeze_module_name", " , ,"], ["--freeze_module_name", "name"]),
        (["--lora_module_name", ""], ["--lora_module_name", "name"]),
        (["--max_length", "5"], ["--max_length", "use --max_len."]),
        (["--max_le", "5"], ["--max_le "]),  # no abbreviations
        (["stray"], ["stray"]),
        (["--max_len"], ["--max_len", "expected one argument"]),
    ],
)
def test_a_bad_command_line_is_one_sentence(argv, parts):
    (sentence,) = problems_of("train.py", argv)
    assert all(part in sentence for part in parts)
    assert "\n" not in sentence and "usage:" not in sentence


def test_everything_that_is_not_understood_comes_at_once():
    words = ["--lora_rank", "8", "--max_len", "1k", "--is_skip", "maybe", "--seed=--"]
    starts = ("--lora_rank is an unknown option", "--seed=-- has", "--max_len: '1k' is", "--is_skip: 'maybe' is")
    sentences = problems_of("train.py", words)
    assert len(sentences) == len(starts)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, starts, strict=True))


@pytest.mark.parametrize("flag", ["model_name_or_path", "max_len", "lora_module_name"])
def test_two_dashes_are_no_value(flag):
    assert problems_of("train.py", [f"--{flag}=--"]) == [f"--{flag}=-- has no value: write one after the equals sign."]


def test_the_flags_that_are_given():
    argv = ["--model_name_or_path", "b", "--max_grad_norm=1.0", "--is_skip", "prefix_projection=True"]
    assert parse(TRAIN, argv).names == {"model_name_or_path", "max_grad_norm", "is_skip", "prefix_projection"}
    assert parse(TRAIN, []).names == frozenset()


# key=value arguments, and the command line with flags that they stand for
KEYS_AND_VALUES = [
    ("max_len=64 learning_rate=1e-4", "--max_len 64 --learning_rate 1e-4"),
    ("is_skip=true packing=no", "--is_skip"),
    ("--max_len 64 seed=3 --is_skip lora_dim=4", "--max_len 64 --seed 3 --is_skip --lora_dim 4"),
    ("lora_module_name=dense,query_key_value", "--lora_module_name dense,query_key_value"),
    ("source_prefix=max_len=3", "--source_prefix=max_len=3"),
    ("--source_prefix max_len=3", "--source_prefix=max_len=3"),  # the value of a flag is no argument of its own
    ("--source_prefix=a=b", "--source_prefix=a=b"),
    ("seed=1 --seed 2", "--seed 2"),
    ("--seed 1 seed=2", "--seed 2"),
    ("train_path=a,b.json", "--train_path a,b.json"),
]


@pytest.mark.parametrize(("words", "same"), KEYS_AND_VALUES)
def test_keys_and_values(words, same):
    given = parse(TRAIN, words.split())
    assert given.problems == [] and given.values == parse(TRAIN, same.split()).values


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("max_le=5", "--max_le is an unknown option: did you mean --max_len?"),
        ("lora_rank=5", "--lora_rank is an unknown option: use --lora_dim."),
        ("max_len=", "--max_len: '' is not a whole number (train.py --help lists all flags)."),
        ("max_len=1k", "--max_len: '1k' is not a whole number (train.py --help lists all flags)."),
        ("seed=-1", "--seed -1 is out of bounds: it must be at least 0 and less than 4294967296."),
        ("max_len 5", "max_len belongs to no option: leave it out (train.py --help lists all options)."),
    ],
)
def test_keys_and_values_that_are_wrong(words, sentence):
    assert problems_of("train.py", words.split()) == [sentence]


@pytest.mark.parametrize("program", PROGRAMS)
def test_version(program, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(PROGRAMS[program], ["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"chatglm-finetuning {VERSION}\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(PROGRAMS[program], ["--max_len", "x", "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith("usage: ") and out == build_parser(PROGRAMS[program]).format_help()


def test_parsing_loads_no_library():
    code = """
import json, sys
from options.merge import parse_merge
from options.predict import parse_predict
from options.train import parse_train
for parse in (parse_train, parse_predict, parse_merge):
    parse([])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    result = start([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    slow = {"torch", "deepspeed", "transformers", "peft", "numpy", "pandas", "matplotlib", "rich", "safetensors"}
    assert not slow & {*json.loads(result.stdout)}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("word", "code", "text"),
    [("--help", 0, "usage: "), ("--version", 0, VERSION), ("--lora_rnk", 2, "--lora_rnk is an unknown option: ")],
)
def test_a_program_answers_before_torch_loads(program, word, code, text):
    check_quick_answer([program, word], code, text)


def test_what_is_no_option_stays_a_value():
    words = ["--instruction", "--rank of what?", "--input", "-5", "--metrics", "rougeL, bleu4"]
    given = parse(PREDICT, words)
    assert given.problems == []
    values = [given.values[name] for name in ("instruction", "input", "metrics")]
    assert values == ["--rank of what?", "-5", ("rougeL", "bleu4")]
    options, problems = parse_train(["--train_type", "ptuning", "--prefix_projection", "--seed", "3"])
    assert problems == [] and options.method.prefix_projection is True and options.steps.seed == 3
