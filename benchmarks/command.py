"""The command line of a benchmark: its dataclasses of flags (flags.py), read by the parser of all programs.

    PROGRAM = benchmark(__file__, __doc__, PlotOptions)
    options = section(PlotOptions, read_command_line(PROGRAM, argv))

Commas separate the values of a list; spaces do, too (--modes glm glm3).
"""

from pathlib import Path
from typing import Any

from flags import flag
from modes import GENERATIONS
from options.parser import Program


def benchmark(file: str, doc: str, *sections: type) -> Program:
    """The command line of a benchmark.

    Args:
        file, doc: __file__ and __doc__ of its module.
    """
    return Program(f"benchmarks/{Path(file).name}", doc.split("\n")[0], sections, spaced_lists=True)


def work_dir_flag(help: str, zh: str) -> Any:
    """The field of --work_dir."""
    return flag("", help=help, zh=zh, metavar="DIR", required="a directory for outputs and logs")


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
