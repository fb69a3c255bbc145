"""Recognize the generation of a base directory; all generations have the model type "chatglm".

ChatGLM-6B has its own config keys. ChatGLM2 and ChatGLM3 have the same keys, the same tensors and the same
tokenizer.model; only ChatGLM3's code gives roles such as <|user|> an id. Their folders declare the clues that
distinguish them (`clues`). Keys that transformers adds when it saves a base (`classifier_dropout`, versions) are not
used.
"""

from pathlib import Path
from typing import Any

from errors import UserError
from modes import MODES
from modes.clues import BaseFiles
from modes.mode import Mode

GLM4_VOCABULARY = 151552


def choose_mode(
    path: Path,
    config: dict[str, Any],
    tokenizer_config: dict[str, Any],
    given: str | None = None,
    recorded: str | None = None,
) -> tuple[str, str]:
    """(generation of a base, a note for the user if only `given` or a weak clue decides, else "").

    Args:
        path: the base directory, whose tokenizer and code files are searched.
        config, tokenizer_config: contents of its JSON files; {} for a missing tokenizer_config.json.
        given: the value of --mode, which decides if the files do not.
        recorded: the generation in a checkpoint's record, which decides if `given` is None.

    Raises UserError: it is no known generation, another one than `given`, or ambiguous.
    """
    fitting = _fitting(path, config)
    names = [mode.name for mode in fitting]
    sure, recognized, clue = _best_clue(fitting, BaseFiles(path, config, tokenizer_config))
    if sure and given not in (None, recognized):
        raise UserError(f"{path} holds a {recognized} model, not {given}: use --mode {recognized} ({clue}).")
    if recognized and (sure or recognized == given):
        return recognized, ""
    flags, titles = " or ".join(f"--mode {name}" for name in names), " and ".join(mode.title for mode in fitting)
    if given and given not in names:
        clue = clue or f"config.json has no key of {MODES[given].title}"
        raise UserError(f"{path} holds a {' or '.join(names)} model, not {given}: use {flags} ({clue}).")
    if given:
        reason = f"{clue} suggests {recognized}" if recognized else f"its files fit {titles} alike"
        return given, f"{path} is used as {MODES[given].title}, because of --mode; {reason}."
    chosen = recorded if recorded in names else recognized
    if chosen is None:
        raise UserError(f"{path} fits {titles} alike: add {flags}.")
    return chosen, ""


def _fitting(path: Path, config: dict[str, Any]) -> list[Mode]:
    """The generations with these config keys. Raises UserError if there is none."""
    fitting = [mode for mode in MODES.values() if mode.fits(config)]
    titles = [mode.title for mode in MODES.values()]
    use = f"use a {', '.join(titles[:-1])} or {titles[-1]} base."
    if fitting and config.get("padded_vocab_size") == GLM4_VOCABULARY:
        raise UserError(
            f"{path / 'config.json'} describes GLM-4 (padded_vocab_size {GLM4_VOCABULARY}), which is not supported: "
            f"{use}"
        )
    if not fitting:
        model_type = config.get("model_type", "no model_type")
        raise UserError(f"config.json describes {model_type}, not ChatGLM: {use}")
    return fitting


def _best_clue(fitting: list[Mode], files: BaseFiles) -> tuple[bool, str | None, str]:
    """(whether the clue is reliable, generation or None, the clue in words or "")."""
    if len(fitting) == 1:
        return True, fitting[0].name, f"config.json has keys of {fitting[0].title}"
    clues = [(clue, mode.name) for mode in fitting for clue in mode.clues(files)]
    if not clues:
        return False, None, ""
    clue, name = min(clues)
    return clue.evidence.is_sure, name, clue.words
