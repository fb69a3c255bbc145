"""options/hints.py, options/advice.py: advice on options of other tools, misspelled ones, and stray values."""

import pytest

from errors import UserError
from options.chat import CHAT
from options.hints import hint
from options.merge import MERGE
from options.parser import build_parser, parse_and_check
from options.predict import PREDICT
from options.serve import SERVE
from options.train import TRAIN
from options.webui import WEBUI

PROGRAMS = {program.name: program for program in (TRAIN, PREDICT, MERGE, CHAT, SERVE, WEBUI)}


def said(program: str, words: list[str]) -> list[str]:
    """The sentences that a command line with all required flags is refused with."""
    required = [f"--{name}=given" for name, flag in PROGRAMS[program].flags.items() if flag.required]
    try:
        return parse_and_check(PROGRAMS[program], [*required, *words]).problems
    except UserError as error:
        return [*error.sentences]


def answers(program: str) -> list[tuple[str, str]]:
    """(a name elsewhere, what to do about it) of every flag and every piece of advice."""
    pairs = []
    for flag in PROGRAMS[program].flags.values():
        pairs += [(name, f"use --{flag.name}") for name in flag.elsewhere.split()]
        for value, names in flag.by_value.items():
            pairs += [(name, f"use --{flag.name} {value}") for name in names.split()]
    for answer, names in PROGRAMS[program].advice.items():
        pairs += [(name, answer) for name in names.split()]
    return pairs


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_name_is_answered_once(program):
    known, seen = build_parser(PROGRAMS[program])._option_string_actions, set()
    for name, answer in answers(program):
        assert f"--{name}" not in known, f"{program} has --{name}"
        assert name not in seen, f"--{name} stands twice"
        seen.add(name)
        assert said(program, [f"--{name}", "1"]) == [f"--{name} is an unknown option: {answer}."]
    assert len(seen) > 20


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_value_that_a_name_stands_for_can_be_given(program):
    for flag in PROGRAMS[program].flags.values():
        for value in flag.by_value:
            assert said(program, [f"--{flag.name}", value]) == [], flag.name


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_misspelled_flag_is_recognized(program):
    flags, advice = PROGRAMS[program].flags, PROGRAMS[program].advice
    for name in flags:
        if len(name) > 5:
            said_of = hint(program, f"--{name[:-2]}{name[-1]}{name[-2]}", flags, advice)  # the last letters exchanged
            assert said_of == f"did you mean --{name}?" or said_of.startswith("use --") or name[-1] == name[-2], name


# command line: the sentences
COMMANDS = {
    "--lora_rank 8": ["--lora_rank is an unknown option: use --lora_dim."],
    "--lora_r=8": ["--lora_r is an unknown option: use --lora_dim."],
    "--lora-rank 8": ["--lora-rank is an unknown option: use --lora_dim."],
    "--LoRA_Rank 8": ["--LoRA_Rank is an unknown option: use --lora_dim."],
    "--max-len 8": ["--max-len is an unknown option: use --max_len."],
    "-lr 1": ["-lr is an unknown option: use --learning_rate."],
    "--lerning_rate 1": ["--lerning_rate is an unknown option: did you mean --learning_rate?"],
    "--early 1": ["--early is an unknown option: did you mean --early_stopping_patience?"],
    "--xyzzy 1": ["--xyzzy is an unknown option: train.py --help lists all options."],
    "--lora_target q --save_steps 5 --lora_target q": [
        "--lora_target is an unknown option: use --lora_module_name.",
        "--save_steps is an unknown option: use --save_model_step.",
    ],
    "--deepspeed x.json": ["--deepspeed: it takes no value: use --ds_file x.json (train.py --help lists all flags)."],
    "--deepspeed=x.json": ["--deepspeed: it takes no value: use --ds_file x.json (train.py --help lists all flags)."],
    "--gradient_checkpointing yess": [
        "--gradient_checkpointing: 'yess' is neither True nor False (train.py --help lists all flags)."
    ],
    "--lora_module_name a b c --seed 1": [
        "--lora_module_name takes one value: separate names by commas (--lora_module_name a,b,c)."
    ],
    "--train_path a.json b": ["--train_path takes one value: separate names by commas (--train_path a.json,b)."],
    "--report_to wandb mlflow": ["--report_to takes one value: separate names by commas (--report_to wandb,mlflow)."],
    "--seed 1 2": [
        "2 belongs to no option: --seed takes one value: put it in quotation marks if it contains spaces "
        "(train.py --help lists all options)."
    ],
    "--is_skip True 2": [
        "2 belongs to no option: --is_skip takes one value: put it in quotation marks if it contains spaces "
        "(train.py --help lists all options)."
    ],
    "stray --seed 1": ["stray belongs to no option: leave it out (train.py --help lists all options)."],
    # what other tools' command lines have, and now means the same here
    "--gradient_checkpointing True": [],
    "--gradient_checkpointing=true": [],
    "--is_skip False": [],
}  # fmt: skip


def test_names_of_another_program_with_values():
    assert said("serve.py", ["--lora-modules", "a=b"]) == ["--lora-modules is an unknown option: use --lora."]
    assert said("chat.py", ["--model", "x"]) == ["--model is an unknown option: use --model_path."]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command):
    assert said("train.py", command.split()) == COMMANDS[command]
