"""Suggestions for unknown options: from other tools' names, then by spelling.

The names (`elsewhere` and `by_value` of a flag) are those of transformers' TrainingArguments, peft's LoraConfig,
LLaMA-Factory, swift, alpaca-lora, FastChat, the official ChatGLM scripts and their forks of 2023.
"""

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping

from flags import Flag


def hint(program: str, word: str, flags: Mapping[str, Flag], advice: Mapping[str, str]) -> str:
    """A suggestion for an unknown option.

    Args:
        word: the option with its dashes. advice: suggestion -> names in other tools.
    """
    name = word.lstrip("-").replace("-", "_").lower()
    if name in flags:
        return f"use --{name}"
    for flag in flags.values():
        if name in flag.elsewhere.split():
            return f"use --{flag.name}"
        for value, names in flag.by_value.items():
            if name in names.split():
                return f"use --{flag.name} {value}"
    for suggestion, names in advice.items():
        if name in names.split():
            return suggestion
    longer = [known for known in flags if known.startswith(name)]
    near = longer if len(longer) == 1 else difflib.get_close_matches(name, flags, n=1)
    return f"did you mean --{near[0]}?" if near else f"{program} --help lists all options"


def unknown_flags(words: list[str], known: dict[str, argparse.Action]) -> Iterator[str]:
    """The unknown options on a command line, without their values."""
    for word in words:
        if word == "--":
            return
        flag = word.split("=")[0]
        if re.fullmatch(r"--?[A-Za-z][^\s]*", flag) and flag not in known:
            yield flag


def stray_value(words: list[str], known: dict[str, argparse.Action]) -> tuple[str, str, list[str]] | None:
    """(value, the option before it or "", the values after that) of the first value that belongs to no option."""
    flag, values = "", []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in known:
            flag, values = name, [value] if equals else []
        else:
            values.append(word)
        allowed = 1 if flag else 0
        if len(values) > allowed:
            rest = [*words[i + 1 :], "--"]
            return values[-1], flag, values + rest[: next(j for j, later in enumerate(rest) if later[:2] == "--")]
    return None


def describe_stray(program: str, flags: Mapping[str, Flag], value: str, word: str, values: list[str]) -> str:
    """A suggestion for a value that belongs to no option; see `stray_value`."""
    flag = flags.get(word.removeprefix("--"))
    if flag is not None and (flag.several or flag.kind is tuple):
        return f"{word} takes one value: separate names by commas ({word} {','.join(values)})"
    quoting = f"{word} takes one value: put it in quotation marks if it contains spaces" if word else "leave it out"
    return f"{value} belongs to no option: {quoting} ({program} --help lists all options)"
