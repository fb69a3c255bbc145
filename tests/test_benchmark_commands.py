"""benchmarks/command.py: the command lines of all benchmarks, those in the pages and in the sources among them."""

import re
import shlex
from importlib import import_module

import pytest

from benchmarks.kill_proof import PROGRAM as KILLS
from benchmarks.plot import PROGRAM as PLOT
from benchmarks.tokenization import PROGRAM as TOKENIZATION
from benchmarks.tokenization import TokenizationOptions
from benchmarks.trl_side import PROGRAM as TRL
from errors import UserError
from flags import flags_of
from options.parser import parse_and_check, read_command_line, section
from tests import launch
from tests.processor_time import check_quick_answer

REPOSITORY = launch.REPOSITORY
SOURCES = {path for path in (REPOSITORY / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
PROGRAMS = {path: import_module(f"benchmarks.{path.stem}") for path in sorted(SOURCES)}
OWN_PROGRAM = {path: module for path, module in PROGRAMS.items() if path.stem != "card_run"}  # train.py's flags
SCRIPTS = {path for path in (REPOSITORY / "scripts").glob("*.py") if '__name__ == "__main__"' in path.read_text()}


def commands() -> list[tuple[str, list[str]]]:
    """(name, words) of every command line of a benchmark in docs/, in the sources and in the script for a card."""
    pages = [*(REPOSITORY / "docs").glob("*.md"), *SOURCES, REPOSITORY / "scripts" / "card_check.sh"]
    text = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", " ") for page in pages)
    matches = re.findall(r"python benchmarks/(\w+)\.py([^`|\n]*)", text)
    lines = {(name, re.split(r" #|(?<!\S)- ", words)[0].strip()) for name, words in matches}
    return [(name, shlex.split(words)) for name, words in sorted(lines)]


@pytest.mark.parametrize(
    "name, words", commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_documented_command_parses(name, words):
    program = import_module(f"benchmarks.{name}").PROGRAM
    words = [re.sub(r"^\$\{MINUTES:-(\d+)\}$", r"\1", word) for word in words]
    assert parse_and_check(program, words).problems == []


def test_commands_are_found():
    named = {name for name, _ in commands()}
    assert named == {path.stem for path in OWN_PROGRAM} and len(commands()) > 30


@pytest.mark.parametrize("path", OWN_PROGRAM, ids=lambda path: path.stem)
def test_a_benchmark_has_one_parser_and_help_in_both_languages(path, capsys):
    program = OWN_PROGRAM[path].PROGRAM
    assert program.name == f"benchmarks/{path.name}"
    for kind in program.sections:
        for flag in flags_of(kind).values():
            assert flag.section and flag.help.endswith((".", ")")) and flag.zh.endswith("。"), flag.name
    with pytest.raises(SystemExit) as end:
        OWN_PROGRAM[path].main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("chatglm-finetuning ")
    with pytest.raises(UserError, match="--nothing is an unknown option"):
        OWN_PROGRAM[path].main(["--nothing"])


def test_nothing_else_parses_a_command_line():
    """Every program with flags or without has --version and refuses what it does not know."""
    assert len(SCRIPTS) > 5
    assert all("read_command_line(" in path.read_text() for path in SCRIPTS)
    sources = [path for path in REPOSITORY.glob("*/*.py") if path.parent.name != "options"]
    assert not [
        path for path in (*sources, *REPOSITORY.glob("*.py")) if re.search("^import argparse", path.read_text(), re.M)
    ]


@pytest.mark.parametrize("name", ["card_flags", "data_formats", "method_sizes", "variant_sizes", "write_flag_pages"])
def test_scripts_without_flags(name, capsys):
    main = import_module(f"scripts.{name}").main
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("chatglm-finetuning ")
    for words in (["--table"], ["table"]):
        with pytest.raises(UserError, match=words[0]):
            main(words)


@pytest.mark.parametrize("words, modes", [
    ("--modes glm glm3 --repeats 2", ("glm", "glm3")), ("--modes glm,glm3", ("glm", "glm3")),
    ("--modes=glm glm3 repeats=2", ("glm", "glm3")), ("modes=glm3", ("glm3",)), ("--repeats 2 --modes glm2", ("glm2",)),
])  # fmt: skip
def test_lists_with_blanks_or_commas(words, modes):
    assert section(TokenizationOptions, read_command_line(TOKENIZATION, words.split())).modes == modes


@pytest.mark.parametrize("words, sentence", [
    ("--modes", "expected one argument"), ("--modes glm glm4", "glm4 is unknown: choose glm, glm2 or glm3"),
    ("--repeats 2 3", "3 belongs to no option"), ("--repeats 0", "must be at least 1"),
])  # fmt: skip
def test_what_is_wrong_with_a_list(words, sentence):
    with pytest.raises(UserError, match=sentence):
        read_command_line(TOKENIZATION, words.split())


def test_numbers_in_a_list():
    assert read_command_line(PLOT, ["--targets", "1", "2.5"]).values["targets"] == (1.0, 2.5)
    assert read_command_line(PLOT, ["--targets="]).values["targets"] == ()
    with pytest.raises(UserError, match="'1,x' holds something else than numbers"):
        read_command_line(PLOT, ["--targets", "1", "x"])


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        read_command_line(KILLS, ["--kills", "0", "--mode", "glm4"])
    missing, *invalid = error.value.sentences
    assert missing == "--work_dir is missing: give a directory for outputs and logs." and len(invalid) == 2


def test_a_missing_choice_is_named_with_its_choices():
    with pytest.raises(UserError, match=r"--train_type is missing: give the method \(lora or all\)\."):
        read_command_line(TRL, ["--mode", "glm3"])


@pytest.mark.parametrize("path", sorted(SOURCES | SCRIPTS), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_benchmark_or_script_answers_before_torch_loads(path):
    """A mistyped flag; the same call answers --help."""
    check_quick_answer([str(path), "--nothing"], 2, "--nothing is an unknown option: ")
