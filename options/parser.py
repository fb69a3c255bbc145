"""The parser of all programs: reads flags from a command line, key=value arguments and a run.yaml.

    given = parse_and_check(PROGRAM, ["--max_len", "512", "learning_rate=1e-4", "--config", "run.yaml"])
    steps, problems = section(StepOptions, given), given.problems

Problems are collected, so that a program can report them together with all others. `read_command_line` raises them.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn, TypeVar

from errors import UserError
from flags import Flag, flags_of
from options.config_file import read_config
from options.hints import describe_stray, hint, stray_value, unknown_flags
from options.values import as_text, check_texts, check_values, convert
from texts import shown
from version import VERSION

CONFIG = Flag(
    "config", str, "", "Path to a run.yaml with flags; the command line takes precedence.",
    "run.yaml 的路径，其中每个键是一个参数；命令行优先。", "", metavar="FILE",
)  # fmt: skip
KEY_VALUE = re.compile(r"[A-Za-z][A-Za-z_]*=", re.ASCII)
Section = TypeVar("Section")


@dataclass(frozen=True)
class Program:
    """A program's command line.

    name: such as train.py. usage: its first line of --help.
    sections: dataclasses of flags (flags.py), in the order of --help.
    advice: what to do -> names of other tools' options that have no counterpart here.
    positional: a flag whose value may be given without its name, if it is not given with it; "" for none.
    spaced_lists: whether spaces may separate the values of a list (--modes glm glm3), as commas do.
    repeated_lists: whether a list may be given in parts (--lora a=DIR --lora b=DIR); else the last one counts.
    """

    name: str
    description: str
    sections: Sequence[type]
    usage: str | None = None
    advice: Mapping[str, str] = field(default_factory=dict)
    positional: str = ""
    spaced_lists: bool = False
    repeated_lists: bool = False

    @cached_property
    def flags(self) -> dict[str, Flag]:
        """Name -> flag of all sections."""
        return {name: flag for section in self.sections for name, flag in flags_of(section).items()}


@dataclass(frozen=True)
class Given:
    """The flags of a command line and a run.yaml.

    values: of every flag of the program; the default if it is not given or invalid.
    names: of the given flags; in a run.yaml only those that differ from their defaults count.
    problems: one sentence for each unknown flag or invalid value, after `parse_and_check` for everything that is wrong.
    """

    values: dict[str, object]
    names: frozenset[str]
    problems: list[str]


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError instead of printing a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{shown(message.removeprefix('argument '))} ({self.prog} --help lists all flags).")


def build_parser(program: Program) -> argparse.ArgumentParser:
    """The argparse parser of a program; it keeps values as texts, and only those that are given."""
    parser = Parser(
        prog=program.name, usage=program.usage, description=program.description, allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"chatglm-finetuning {VERSION}")
    parser.add_argument("--config", metavar=CONFIG.metavar, help=CONFIG.help)
    for section in program.sections:
        flags = flags_of(section)
        group = parser.add_argument_group(next(iter(flags.values())).section) if flags else parser
        for flag in flags.values():
            optional: dict[str, Any] = {"nargs": "?", "const": "True"} if flag.kind is bool else {}
            group.add_argument(
                *(f"--{name}" for name in (flag.name, *flag.synonyms)),
                dest=flag.name, metavar=metavar(flag), help=describe(flag).replace("%", "%%"), **optional,
            )  # fmt: skip
    return parser


def metavar(flag: Flag) -> str:
    """The placeholder of a flag's value in --help."""
    if flag.choices:
        return "|".join(map(str, flag.choices))
    return flag.metavar or {bool: "True|False", int: "N", float: "X", tuple: "NAMES", str: "TEXT"}[flag.kind]


def describe(flag: Flag) -> str:
    """A flag's help sentence with its default, if there is one to show."""
    text = default_text(flag)
    return f"{flag.help} (default {text})" if text else flag.help


def default_text(flag: Flag) -> str:
    """A flag's default as on a command line; "" if there is none."""
    if flag.default in (None, "") or flag.ignored:
        return ""
    return as_text(flag.default)


def parse(program: Program, argv: Sequence[str] | None = None) -> Given:
    """Parse the command line and the file of --config; --help and --version end the process.

    Raises:
        UserError: the command line cannot be parsed.
    """
    flags, parser = program.flags, build_parser(program)
    words = sys.argv[1:] if argv is None else argv
    words = as_flags(join_lists(words, program) if program.spaced_lists else words, program)
    words = join_repeated(words, program) if program.repeated_lists else words
    known = parser._option_string_actions
    problems = []
    unknown = list(dict.fromkeys(unknown_flags(words, known)))
    for word in unknown:
        advice = hint(program.name, word, flags, program.advice)
        problems.append(f"{shown(word)} is an unknown option: {advice}{'' if advice.endswith('?') else '.'}")
    if not unknown:
        stray = stray_value(words, known)
        if stray:
            problems.append(f"{shown(describe_stray(program.name, flags, *stray))}.")
    namespace, _ = parser.parse_known_args(words)
    texts = vars(namespace)
    empty = [name for name, text in texts.items() if isinstance(text, list)]  # argparse's result for --flag=--
    problems += [f"--{name}=-- has no value: write one after the equals sign." for name in empty]
    texts = {name: text for name, text in texts.items() if name not in empty}
    values = {name: flag.default for name, flag in flags.items()}
    config = texts.pop("config", None)
    of_file: dict[str, object] = {}
    if config:
        of_file, config_problems = read_config(config, program.name, flags, program.advice)
        problems += config_problems
    converted: dict[str, object] = {}
    for name, text in texts.items():
        try:
            converted[name] = convert(flags[name], text)
        except ValueError as error:
            problems.append(f"--{name}: {error} ({program.name} --help lists all flags).")
    names = frozenset(converted) | {name for name, value in of_file.items() if value != flags[name].default}
    return Given({**values, **of_file, **converted}, names, problems)


def as_flags(words: Sequence[str], program: Program) -> list[str]:
    """The words of a command line, key=value arguments as --key=value and a positional value with its name."""
    result, takes_value, positional = [], False, program.positional
    if any(word.partition("=")[0].removeprefix("--") == positional for word in words):
        positional = ""
    for word in words:
        if not takes_value and KEY_VALUE.match(word):
            word = f"--{word}"
        elif not takes_value and positional and not word.startswith("-"):
            word, positional = f"--{positional}={word}", ""
        flag = program.flags.get(word[2:])  # None: another program's option, which is reported, or --config
        takes_value = word.startswith("--") and "=" not in word and (flag is None or flag.kind is not bool)
        result.append(word)
    return result


def join_lists(words: Sequence[str], program: Program) -> list[str]:
    """The words of a command line with --modes glm glm3 as --modes=glm,glm3."""
    joined: list[str] = []
    for word in words:
        name, equals, values = joined[-1].partition("=") if joined else ("", "", "")
        flag = program.flags.get(name.removeprefix("--")) if name.startswith("--") else None
        if flag is None or flag.kind is not tuple or word.startswith("-") or KEY_VALUE.match(word):
            joined.append(word)
        else:
            joined[-1] = f"{name}={values},{word}" if equals else f"{name}={word}"
    return joined


def join_repeated(words: Sequence[str], program: Program) -> list[str]:
    """The words of a command line with --lora a=DIR --lora=b=DIR as --lora=a=DIR,b=DIR."""
    joined: list[str] = []
    values: dict[str, list[str]] = {}
    for word in words:
        if joined and joined[-1].removeprefix("--") in values and not word.startswith("--"):
            values[joined.pop().removeprefix("--")].append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        flag = program.flags.get(name) if word.startswith("--") else None
        is_list = flag is not None and flag.kind is tuple
        if is_list:
            values.setdefault(name, []).extend([value] * bool(equals))
        if not (is_list and equals):
            joined.append(word)  # a list's name, until its value follows
    return joined + [f"--{name}={','.join(parts)}" for name, parts in values.items() if parts]


def section(kind: type[Section], given: Given) -> Section:
    """A section's dataclass with the values of a command line."""
    return kind(**{name: given.values[name] for name in flags_of(kind)})


def parse_and_check(program: Program, argv: Sequence[str] | None = None) -> Given:
    """`parse`; the problems include those of `check_values`.

    Raises:
        UserError: the command line cannot be parsed, or a value would not print (its line end would split a sentence).
    """
    given = parse(program, argv)
    unprintable = check_texts(program.flags, given.values)
    if unprintable:
        raise UserError(*unprintable)
    return replace(given, problems=given.problems + check_values(program.flags, given.values, given.names))


def read_command_line(program: Program, argv: Sequence[str] | None = None) -> Given:
    """The flags of a valid command line; --help and --version end the process.

    Raises:
        UserError: all problems of the command line.
    """
    given = parse_and_check(program, argv)
    if given.problems:
        raise UserError(*given.problems)
    return given


def refuse(problems: Sequence[str]) -> None:
    """Raise UserError if there are problems."""
    if problems:
        raise UserError(*problems)


def refuse_early(program: Program, problems_of: Callable[[], list[str]], ready: bool = True) -> None:
    """Exit on --help and --version, and on an invalid command line.

    Args:
        problems_of: () -> all problems of this process's command line.
        ready: whether problems may be reported now.

    Raises:
        UserError: all problems, if the command line is invalid.
    """
    if parse(program).problems and ready:
        raise UserError(*problems_of())
