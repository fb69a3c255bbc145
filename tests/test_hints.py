"""training/hints.py: what the programs say to options of other tools, misspelled ones and values too many."""

import pytest
from training.hints import EXPLAINED, RENAMED
from training.options import build_parser, parse_options

import merge_lora
from errors import UserError
from training import predict_options

PARSERS = {
    "train.py": build_parser(),
    "predict.py": predict_options.build_parser(),
    "merge_lora.py": merge_lora.build_parser(),
}


def said(program: str, words: list[str]) -> list[str]:
    """The sentences that a command line is refused with."""
    with pytest.raises(UserError) as error:
        PARSERS[program].parse_args(words)
    return str(error.value).split("\n")


@pytest.mark.parametrize("program", PARSERS)
def test_every_name_of_the_tables_is_answered_once(program):
    known, seen = PARSERS[program]._option_string_actions, set()
    for table in (RENAMED[program], EXPLAINED[program]):
        for answer, names in table.items():
            if table is RENAMED[program]:
                flag, *value = answer.split()
                assert flag in known and len(value) <= 1, answer
            for name in names.split():
                assert f"--{name}" not in known, f"{program} has --{name}"
                assert name not in seen, f"--{name} stands twice"
                seen.add(name)
                use = f"use {answer}" if table is RENAMED[program] else answer
                assert said(program, [f"--{name}", "1"]) == [f"--{name} is an unknown option: {use}."]


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
    "--deepspeed x.json": ["--deepspeed takes no value: use --ds_file x.json."],
    "--deepspeed=x.json": ["--deepspeed takes no value: use --ds_file x.json."],
    "--gradient_checkpointing True": ["--gradient_checkpointing takes no value: leave out True."],
    "--gradient_checkpointing=true": ["--gradient_checkpointing takes no value: leave out true."],
    "--is_skip False": ["--is_skip takes no value: leave out --is_skip and False."],
    "--lora_module_name a b c --seed 1": [
        "--lora_module_name takes one value: separate names by commas (--lora_module_name a,b,c)."
    ],
    "--train_path a.json b": ["--train_path takes one value: separate names by commas (--train_path a.json,b)."],
    "--report_to wandb mlflow": ["--report_to takes one value: separate names by commas (--report_to wandb,mlflow)."],
    "--seed 1 2": [
        "2 belongs to no option: --seed takes one value: put it in quotation marks if it holds blanks "
        "(train.py --help lists all options)."
    ],
    "stray --seed 1": ["stray belongs to no option: leave it out (train.py --help lists all options)."],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command):
    assert said("train.py", command.split()) == COMMANDS[command]


def test_what_is_no_option_stays_a_value():
    words = ["--model_path", "m", "--instruction", "--rank of what?", "--input", "-5", "--metrics", "rougeL, bleu4"]
    options = PARSERS["predict.py"].parse_args(words)
    assert (options.instruction, options.input, options.metrics) == ("--rank of what?", "-5", ("rougeL", "bleu4"))
    assert parse_options(["--model_name_or_path", "b", "--prefix_projection", "--seed", "3"]).prefix_projection is True


@pytest.mark.parametrize("value", ["a b", "a b,c", "a, b c"])
def test_names_separated_by_blanks(value):
    apart = ",".join(value.replace(",", " ").split())
    (sentence,) = said("train.py", ["--model_name_or_path", "b", "--modules_to_save", value])
    assert f"separate names by commas: {apart} " in sentence
