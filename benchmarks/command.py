"""The command line of a benchmark: its dataclasses of flags (flags.py), read by the parser of all programs.

    PROGRAM = Program("benchmarks/plot.py", __doc__.split("\\n")[0], (PlotOptions,))
    options = options_of(PlotOptions, PROGRAM, argv)

Lists are separated by commas; blanks are accepted, too (--modes glm glm3).
"""

import sys
from collections.abc import Collection, Sequence
from typing import Any

from errors import UserError
from flags import flag
from modes import GENERATIONS
from options.parser import KEY_VALUE, Given, Program, Section, check_given, metavar, parse, section


def output_flag() -> Any:
    """The field of --output, which every benchmark with a result has."""
    return flag("", help="Path to a JSON file for the result.", zh="把结果写成 JSON 的文件。", metavar="FILE")


def repeats_flag(default: int) -> Any:
    """The field of --repeats."""
    return flag(default, help="Number of measurements of each side.", zh="每一方测量几次。", at_least=1)


def modes_flag(*default: str) -> Any:
    """The field of --modes."""
    return flag(default, help="Comma-separated generations.", zh="哪几代模型，用逗号分隔。", choices=GENERATIONS)


def mode_flag(default: str) -> Any:
    """The field of --mode."""
    return flag(default, help="Generation of the model.", zh="哪一代模型。", choices=GENERATIONS)


def size_flag(default: int | None, help: str, zh: str) -> Any:
    """A field that counts something, at least 1."""
    return flag(default, help=help, zh=zh, at_least=1)


def seed_flag(default: int) -> Any:
    """The field of --seed."""
    return flag(default, help="Random seed.", zh="随机种子。", at_least=0)


def join_values(words: Sequence[str], program: Program) -> list[str]:
    """The words of a command line with --modes glm glm3 as --modes=glm,glm3."""
    joined: list[str] = []
    for word in words:
        name, equals, values = joined[-1].partition("=") if joined else ("", "", "")
        known = program.flags.get(name.removeprefix("--")) if name.startswith("--") else None
        if known is None or known.kind is not tuple or word.startswith("-") or KEY_VALUE.match(word):
            joined.append(word)
        else:
            joined[-1] = f"{name}={values},{word}" if equals else f"{name}={word}"
    return joined


def understand(program: Program, argv: Sequence[str] | None, required: Collection[str] = ()) -> tuple[Given, list[str]]:
    """(what a command line says, a sentence for everything that is wrong with it).

    Args:
        argv: words of a command line; None: those of this process.
        required: names of flags that must be given.

    Raises:
        UserError: it cannot be taken apart.
    """
    given = parse(program, join_values(sys.argv[1:] if argv is None else argv, program))
    missing = [program.flags[name] for name in required if given.values[name] in (None, "")]
    problems = [
        f"--{one.name} is missing: give --{one.name} {metavar(one)} ({program.name} --help lists all flags)."
        for one in missing
    ]
    return given, problems + check_given(program, given)


def options_of(
    kind: type[Section], program: Program, argv: Sequence[str] | None, required: Collection[str] = ()
) -> Section:
    """The options of a program with one section; see `understand`.

    Raises:
        UserError: everything that is wrong with the command line.
    """
    given, problems = understand(program, argv, required)
    if problems:
        raise UserError(*problems)
    return section(kind, given)
