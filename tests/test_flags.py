"""flags.py: a field of a dataclass that declares a flag; and every flag of our programs, as it is declared."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from flags import Flag, flag, flags_of, kind_of
from methods import METHODS
from modes import MODES
from options.chat import CHAT
from options.merge import MERGE
from options.parser import build_parser
from options.predict import PREDICT
from options.serve import SERVE
from options.train import TRAIN
from options.webui import WEBUI

PROGRAMS = {program.name: program for program in (TRAIN, PREDICT, MERGE, CHAT, SERVE, WEBUI)}
EVERY = [(program, name) for program, declared in PROGRAMS.items() for name in declared.flags]


@dataclass(frozen=True)
class Example:
    TITLE: ClassVar[str] = "example"

    steps: int | None = flag(None, help="Number of steps.", zh="步数。", at_least=1)
    names: tuple[str, ...] = flag(("a",), help="Names.", zh="名字。")
    rate: float = flag(0.5, help="Rate.", zh="速率。", above=0)
    fast: bool = flag(False, help="Be fast.", zh="快。")
    other: str = "no flag"


def test_fields_become_flags_in_their_order():
    flags = flags_of(Example)
    assert [(flag.name, flag.kind, flag.default) for flag in flags.values()] == [
        ("steps", int, None),
        ("names", tuple, ("a",)),
        ("rate", float, 0.5),
        ("fast", bool, False),
    ]
    assert {flag.section for flag in flags.values()} == {"example"}
    assert [flag.is_number for flag in flags.values()] == [True, False, True, False]
    assert flags["steps"].at_least == 1 and flags["steps"].at_most == math.inf
    assert Example(rate=2).rate == 2  # it stays a dataclass


@pytest.mark.parametrize("annotation", [list[str], dict, int | list, None])
def test_other_types_are_no_flags(annotation):
    if annotation == int | list:
        assert kind_of(annotation) is int
        return
    with pytest.raises(AssertionError):
        kind_of(annotation)


@pytest.mark.parametrize(("program", "name"), EVERY)
def test_every_flag_has_sentences_and_bounds(program, name):
    flag = PROGRAMS[program].flags[name]
    assert re.fullmatch(r"[A-Za-z-].{15,}\.", flag.help), flag.help
    assert re.search("[一-鿿]", flag.zh) and flag.zh.endswith(("。", "）")), flag.zh
    bounded = any(map(math.isfinite, (flag.at_least, flag.above, flag.at_most, flag.below)))
    judged = flag.choices or flag.parse or flag.ignored or name == "temperature"  # which matters with --do_sample only
    assert not flag.is_number or bounded or judged
    assert not bounded or flag.is_number
    if flag.choices and flag.default is not None:
        assert set(flag.default if flag.kind is tuple else [flag.default]) <= set(flag.choices)
    assert not flag.by_value.keys() - set(map(str, flag.choices)) or not flag.choices


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_name_only_flags(program):
    flags = PROGRAMS[program].flags
    assert sum(len(flags_of(section)) for section in PROGRAMS[program].sections) == len(flags)  # none is there twice
    for declared in flags.values():
        assert declared.needs.partition("=")[0] in ("", *flags) and declared.excludes in ("", *flags)
        assert isinstance(declared, Flag) and declared.section


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_every_flag(program):
    text = " ".join(build_parser(PROGRAMS[program]).format_help().split())
    for known in PROGRAMS[program].flags.values():
        assert f" --{known.name} " in text or f"[--{known.name}" in text, known.name
        assert " ".join(known.help.split()) in text or "-" in known.help, known.name  # argparse breaks at hyphens


def test_choices_are_the_modes_and_methods():
    assert TRAIN.flags["mode"].choices == MERGE.flags["mode"].choices == tuple(MODES)
    assert TRAIN.flags["train_type"].choices == tuple(METHODS)
    for name, method in METHODS.items():
        assert {flag.section for flag in flags_of(method).values()} <= {name} and name == method.TITLE
