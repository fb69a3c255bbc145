"""The flags of train.py and merge_lora.py as fields of a form, as JSON values.

    sections_of(TRAIN)[0]["fields"][0]["name"] == "model_name_or_path"

A form's values are name -> text of the fields that are filled.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flags import Flag, flags_of
from methods import METHODS
from options.parser import Program, parse
from options.values import as_text

DS_CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
APART = ("dry_run", "gpu_memory")  # what a form does without a flag
WANTS = {"model_name_or_path": "base", "ori_model_dir": "base", "init_adapter": "model", "model_dir": "model"}
REQUIRED = {
    "model_name_or_path": "the directory of a base model",
    "train_path": "files of training records, or names as --dataset",
    "output_dir": "the directory for checkpoints and metrics",
}
NAMED = re.compile(r"--([a-z][a-z_]*)")

Problem = dict[str, str]  # "field": a name, or "" for the whole form; "text": a sentence


def sections_of(program: Program) -> list[dict[str, Any]]:
    """The fields of all flags that have an effect, by section."""
    sections = []
    for section in program.sections:
        method = next((name for name, kind in METHODS.items() if kind is section), "")
        fields = [field_of(flag, method) for flag in flags_of(section).values() if is_field(flag)]
        if fields:
            sections.append({"name": section.__dict__["TITLE"], "fields": fields})
    return sections


def is_field(flag: Flag) -> bool:
    """Whether the form has it."""
    return not flag.ignored and flag.name not in APART


def field_of(flag: Flag, method: str = "") -> dict[str, Any]:
    """A flag for the page. method: the --train_type that it belongs to, or ""."""
    choices = (True, False) if flag.kind is bool and flag.default is None else flag.choices or suggestions(flag)
    return {
        "name": flag.name,
        "kind": kind_of(flag),
        "default": "" if flag.default is None else as_text(flag.default),
        "help": flag.help,
        "zh": flag.zh,
        "choices": [str(choice) for choice in choices],
        "bounds": bounds(flag),
        "required": bool(flag.required) or (flag.name in REQUIRED and flag.default == ""),
        "needs": flag.needs,
        "want": WANTS.get(flag.name, "data" if flag.metavar == "FILE" else "directory") if is_path(flag) else "",
        "several": flag.several or flag.kind is tuple,
        "method": method,
    }


def bounds(flag: Flag) -> str:
    """The bounds of a number in signs."""
    limits = {"≥": flag.at_least, ">": flag.above, "≤": flag.at_most, "<": flag.below}
    return ", ".join(f"{sign} {limit}" for sign, limit in limits.items() if math.isfinite(limit))


def kind_of(flag: Flag) -> str:
    """The kind of a flag's control: flag, choice, path, list, number or text."""
    if flag.kind is bool:
        return "choice" if flag.default is None else "flag"
    if flag.choices:
        return "choice"
    if is_path(flag):
        return "path"
    if flag.kind is tuple:
        return "list"
    return "number" if flag.is_number and flag.parse is None else "text"


def is_path(flag: Flag) -> bool:
    """Whether its value is a path, or several."""
    return flag.metavar.split("|")[-1] in ("DIR", "FILE")


def suggestions(flag: Flag) -> list[str]:
    """The values of a path flag that are no paths: words such as auto, names of shipped DeepSpeed files."""
    if flag.name == "ds_file":
        return sorted(path.name for path in DS_CONFIGS.glob("*.json"))
    return [word for word in flag.metavar.split("|") if word.islower()] if is_path(flag) else []


def missing(given: frozenset[str]) -> list[str]:
    """One sentence for each flag without which no run starts."""
    names = [name for name in REQUIRED if name not in given and not (name == "train_path" and "dataset" in given)]
    return [f"--{name} is missing: give {REQUIRED[name]}." for name in names]


def located(program: Program, sentences: Iterable[str]) -> list[Problem]:
    """Each sentence with the field of the first flag that it names."""
    problems = []
    for sentence in sentences:
        named = [name for name in NAMED.findall(sentence) if name in program.flags]
        problems.append({"field": named[0] if named else "", "text": sentence})
    return problems


def values_of(program: Program, argv: Sequence[str]) -> dict[str, str]:
    """Name -> text of the flags that a command line gives."""
    given = parse(program, argv)
    return {name: as_text(given.values[name]) for name in program.flags if name in given.names}
