"""Conversion between texts of a command line or run.yaml and values of flags; checks of values."""

import math
import re
from collections.abc import Mapping, Sequence

from flags import LARGEST, Flag
from texts import UNPRINTABLE, quote_text, shown

SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST = 1000  # maximum characters of a value
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
INVALID = {int: "a whole number", float: "a number"}


def convert(flag: Flag, text: str) -> object:
    """Convert a text to a flag's value.

    Raises:
        ValueError: the text is invalid; its message is a clause.
    """
    if flag.parse is not None:
        return flag.parse(text)
    if flag.kind is bool:
        return boolean(text)
    if flag.kind is tuple:
        return names(text)
    if flag.kind is str:
        return text
    try:
        return flag.kind(text)
    except ValueError:  # also a whole number of thousands of digits
        raise ValueError(f"{quote_text(text)} is not {INVALID[flag.kind]}") from None


def boolean(text: str) -> bool:
    """true/yes/1 or false/no/0 in any case. (bool("False") is True: the 2023 flag could not be disabled.)"""
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        raise ValueError(f"{quote_text(text)} is neither True nor False")
    return word in TRUE


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names. An empty name is refused: it would be a substring of every parameter's name."""
    parts = tuple(name.strip() for name in text.split(",") if name.strip())
    if not parts:
        raise ValueError(f"{quote_text(text)} holds no name; give one or more, separated by commas")
    if any(len(name.split()) > 1 for name in parts):
        apart = ",".join(part for name in parts for part in name.split())
        raise ValueError(f"{quote_text(text)} has spaces within a name; separate names by commas: {apart}")
    return parts


def layer_count(text: str) -> int | str:
    """auto, or a number of layers; numbers above the model's mean all layers."""
    if text == "auto":
        return text
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise ValueError(f"{quote_text(text)} is neither auto nor a number of layers")


def as_text(value: object) -> str:
    """A value as text on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def check_texts(flags: Mapping[str, Flag], values: Mapping[str, object]) -> list[str]:
    """One sentence for each value with control characters or invalid UTF-8, which no checkpoint could record."""
    problems = []
    for name, value in values.items():
        value = as_text(value) if isinstance(value, tuple) else value
        if not isinstance(value, str):
            continue
        if flags[name].free_text:
            if SURROGATE.search(value):  # Python's form of bytes that are not UTF-8
                problems.append(f"--{name} is not UTF-8: use a terminal in UTF-8, or write it to a file.")
        elif UNPRINTABLE.search(value) or len(value) > LONGEST:
            problems.append(
                f"--{name} {shown(value)} holds a control character, is not UTF-8 or is over {LONGEST} characters "
                "long: give another value."
            )
    return problems


def check_values(flags: Mapping[str, Flag], values: Mapping[str, object], given: frozenset[str]) -> list[str]:
    """One sentence for each value that is missing or wrong in itself, or needs or excludes another flag.

    Args:
        flags: those in force. values: their values. given: names of the given flags.
    """
    problems = [*wrong_values(flags, values).values()]
    for name in (name for name in flags if name in given):
        problems += check_needs(flags[name], values)
        excluded = flags[name].excludes
        if excluded in given:
            problems.append(
                f"--{name} {as_text(values[name])} and --{excluded} {as_text(values[excluded])} are mutually exclusive"
                ": give only one."
            )
    return problems


def wrong_values(flags: Mapping[str, Flag], values: Mapping[str, object]) -> dict[str, str]:
    """Name -> a sentence, for each flag that lacks its value, or whose value is not a choice or out of bounds."""
    problems = {}
    for name, flag in flags.items():
        value = values[name]
        problems[name] = missing_problem(flag, value) or choice_problem(flag, value) or bounds_problem(flag, value)
    return {name: problem for name, problem in problems.items() if problem}


def missing_problem(flag: Flag, value: object) -> str:
    """A sentence if a required flag has no value, or ""."""
    if not flag.required or value not in (None, "", ()):
        return ""
    choices = f" ({alternatives(flag.choices)})" if flag.choices else ""
    return f"--{flag.name} is missing: give {flag.required}{choices}."


def choice_problem(flag: Flag, value: object) -> str:
    """A sentence if a flag's value is not one of its choices, or ""."""
    wrong = [item for item in (value if isinstance(value, tuple) else (value,)) if item not in flag.choices]
    if not flag.choices or value is None or not wrong:
        return ""
    return f"--{flag.name} {shown(as_text(wrong))} is unknown: choose {alternatives(flag.choices)}."


def alternatives(choices: Sequence[object]) -> str:
    """Two or more choices in words: "a, b or c"."""
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}"


def bounds_problem(flag: Flag, value: object) -> str:
    """A sentence if a number is out of its bounds, or ""; NaN and infinity are out of all."""
    if not flag.is_number or flag.choices or not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    at_most = LARGEST if isinstance(value, int) and flag.at_most == flag.below == math.inf else flag.at_most
    # NaN compares false with everything
    inside = flag.at_least <= value <= at_most and flag.above < value < flag.below
    if inside or not bounds(flag):
        return ""
    wanted = bounds(flag) + (f" and at most {at_most}" if at_most != flag.at_most else "")
    if value == math.inf and "and" not in wanted:
        wanted += " and finite"
    return f"--{flag.name} {value} is out of bounds: it must be {wanted}."


def bounds(flag: Flag) -> str:
    """The bounds of a number, in words; "" if it has none."""
    limits = {
        "at least": flag.at_least,
        "greater than": flag.above,
        "at most": flag.at_most,
        "less than": flag.below,
    }
    return " and ".join(f"{words} {limit}" for words, limit in limits.items() if math.isfinite(limit))


def check_needs(flag: Flag, values: Mapping[str, object]) -> list[str]:
    """One sentence if the flag has no effect because another one is not given or has another value."""
    if not flag.needs:
        return []
    needed, equals, wanted = flag.needs.partition("=")
    actual = values[needed]
    if (as_text(actual) == wanted) if equals else actual:
        return []
    requirement = (
        f"--{needed} {wanted}, which is {'not given' if actual is None else as_text(actual)}" if equals else ""
    )
    name = f"--{flag.name}" if values[flag.name] is True else f"--{flag.name} {as_text(values[flag.name])}"
    return [f"{name} needs {requirement or f'--{needed}'}: give both or neither."]
