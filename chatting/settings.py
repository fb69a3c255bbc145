"""/set: how answers are generated, changed during a chat, with the bounds of the flags of the same names."""

import dataclasses

from errors import UserError
from flags import flags_of
from options.predict import AnswerOptions
from options.values import as_text, convert, wrong_values

NAMES = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")


def change(options: AnswerOptions, name: str, text: str) -> AnswerOptions:
    """The options with another value; a temperature also turns sampling on, and 0 turns it off.

    Raises:
        UserError: there is no such setting, or the value is invalid.
    """
    if name not in NAMES:
        raise UserError(f"/set {name} is unknown: choose one of {', '.join(NAMES)}.")
    flag = flags_of(AnswerOptions)[name]
    try:
        value = convert(flag, text)
    except ValueError as error:
        raise UserError(f"/set {name}: {error}.") from None
    if name == "temperature" and value == 0:
        return dataclasses.replace(options, do_sample=False)
    problems = wrong_values({name: flag}, {name: value})
    if name == "temperature" and not problems and not value > 0:  # type: ignore[operator]  # a float
        problems = {name: f"--{name} {text} is out of bounds: it must be 0 or more."}
    if problems:
        raise UserError(*(problem.replace(f"--{name}", f"/set {name}") for problem in problems.values()))
    changed = {name: value, **({"do_sample": True} if name == "temperature" else {})}
    return dataclasses.replace(options, **changed)  # type: ignore[arg-type]  # converted by the flag's kind


def describe(options: AnswerOptions) -> dict[str, str]:
    """Name -> value of every setting, as text."""
    shown = {name: as_text(vars(options)[name]) for name in NAMES}
    if not options.do_sample:
        shown["temperature"] = "0 (greedy)"
    return shown
