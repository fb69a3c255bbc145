"""A form's values as the command that the page runs, with all paths below the root; recipes as values.

    composed = compose({"model_name_or_path": "ChatGLM3-6B", "lora_dim": "16"}, {"devices": [0, 1]}, root)
    composed.problems or run(composed.launcher + composed.argv, composed.environment)

Values are name -> text of the fields that are filled (options/fields.py); paths are relative to the root, or absolute.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from errors import UserError
from flags import Flag
from options.config_file import plain
from options.fields import Problem, is_field, is_path, located, missing, suggestions, values_of
from options.parser import Program
from options.train import TRAIN, notes_on, parse_train
from runs.errors import Refused
from runs.places import REPOSITORY, Root, for_command
from texts import shown

VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")  # ${TRAIN_PATH:-data/spo_0.json} of a recipe
PORT, MOST_RANKS = 29520, 1024


@dataclass(frozen=True)
class Composed:
    """A command, and what is wrong with it.

    launcher: deepspeed with its flags, and train.py. argv: the flags of train.py.
    environment: variables to add. shown: all of it as a line for a shell. yaml: the flags as a run.yaml.
    """

    launcher: list[str]
    argv: list[str]
    environment: dict[str, str]
    shown: str
    yaml: str
    problems: list[Problem]
    notes: list[str]


def arguments(program: Program, values: object, root: Root) -> tuple[list[str], list[Problem]]:
    """(flags of a command line, a problem for each path that is outside of the root).

    Raises:
        Refused: a name is no field's, or a value is no text.
    """
    argv: list[str] = []
    problems: list[Problem] = []
    for name, text in values_in(program, values).items():
        flag = program.flags[name]
        if is_path(flag):
            try:
                text = path_text(flag, text, root)
            except Refused as error:
                problems.append({"field": name, "text": f"--{name}: {error}"})
                continue
        if flag.kind is bool and text == "True":
            argv.append(f"--{name}")
        elif flag.kind is bool or text.startswith("-"):
            argv.append(f"--{name}={text}")
        else:
            argv += [f"--{name}", text]
    return argv, problems


def values_in(program: Program, values: object) -> dict[str, str]:
    """The values of a request that are not empty."""
    if not isinstance(values, dict):
        raise Refused("The values are no object of names and texts: send one.", field="values")
    for name, text in values.items():
        flag = program.flags.get(name)
        if flag is None or not is_field(flag) or not isinstance(text, str):
            raise Refused(f"{shown(str(name), 100)} is no field of {program.name} with a text.", field="values")
    texts = {name: text if program.flags[name].kind is str else text.strip() for name, text in values.items()}
    return {name: text for name, text in texts.items() if text}


def path_text(flag: Flag, text: str, root: Root) -> str:
    """The value of a path flag in a command that runs in the repository."""
    if text.strip() in suggestions(flag):
        return text.strip()
    parts = [part for part in text.split(",") if part.strip()] if flag.several else [text]
    return ",".join(for_command(root.below(part)) for part in parts)


def compose(values: object, launch: object, root: Root) -> Composed:
    """The command that trains with a form's values, and all problems of its flags.

    Args:
        launch: {"devices": numbers of GPUs, none for a CPU, "ranks": on a CPU, "port": of rank 0}, all optional.

    Raises:
        Refused: the request is not of this form.
    """
    launcher, environment = launcher_of(launch)
    argv, problems = arguments(TRAIN, values, root)
    notes: list[str] = []
    text = ""
    try:
        options, sentences = parse_train(argv)
        sentences = sentences + check_registry(options.data.dataset, options.data.dataset_dir, root)
        sentences += missing(options.given)
        notes = notes_on(options)
        flags = {name: plain(value) for name, value in options.flat().items() if name in options.given}
        text = f"# train.py --config run.yaml\n{yaml.safe_dump(flags, allow_unicode=True, sort_keys=False, width=1000)}"
    except UserError as error:
        sentences = list(error.sentences)
    known = {problem["field"] for problem in problems}
    problems += [problem for problem in located(TRAIN, sentences) if problem["field"] not in known]
    line = " ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join([*launcher, *argv])])
    return Composed(launcher, argv, environment, line, text, problems, notes)


def launcher_of(launch: object) -> tuple[list[str], dict[str, str]]:
    """(deepspeed with its flags and train.py, variables to add)."""
    devices, ranks, port = numbers_of(launch)
    launcher = ["deepspeed", "--master_port", str(port), *([] if devices else ["--num_gpus", str(ranks)]), "train.py"]
    return launcher, {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))} if devices else {}


def numbers_of(launch: object) -> tuple[list[int], int, int]:
    """(GPUs, number of ranks, port) of a request.

    Raises:
        Refused: one of them is none.
    """
    given = launch if isinstance(launch, dict) else {}
    devices, port = given.get("devices") or [], given.get("port", PORT)
    ranks = given.get("ranks", 1)
    if not isinstance(devices, list) or not all(type(number) is int for number in (*devices, ranks, port)):
        raise Refused("devices, ranks or port are no whole numbers: correct them.", field="launch")
    inside = 1 <= ranks <= MOST_RANKS and 0 < port < 65536 and all(0 <= device < MOST_RANKS for device in devices)
    if not inside or len(set(devices)) < len(devices):
        raise Refused("devices, ranks or port are out of their range: correct them.", field="launch")
    return devices, len(devices) or ranks, port


def check_registry(names: str | None, directory: str, root: Root) -> list[str]:
    """One sentence for each file of --dataset that is neither below the root nor shipped."""
    if not names:
        return []
    from data.formats import Columns  # numpy, which the server needs for nothing else
    from data.sources import find_sources

    try:
        paths = [source.path for source in find_sources(None, names, REPOSITORY / directory, Columns())]
    except UserError as error:
        return list(error.sentences)
    allowed = (root.path, REPOSITORY / "data")
    outside = [path for path in paths if not any(Path(path).resolve().is_relative_to(place) for place in allowed)]
    return [f"--dataset {names}: {path} is outside of the root: choose another file." for path in outside]


def presets(root: Root) -> list[dict[str, Any]]:
    """Name and values of each recipe in scripts/recipes/; of its paths those that exist below the root."""
    return [{"name": name, "values": placed(values, root)} for name, values in recipes()]


@cache
def recipes() -> list[tuple[str, dict[str, str]]]:
    """(name, values of train.py) of each recipe."""
    found = []
    for script in sorted((REPOSITORY / "scripts" / "recipes").glob("glm*.sh")):
        text = VARIABLE.sub(r"\1", script.read_text(encoding="utf-8").replace("\\\n", " "))
        words = shlex.split(text.partition(" train.py ")[2])
        found.append((script.stem, values_of(TRAIN, [word for word in words if word != "$@"])))
    return found


def placed(values: Mapping[str, str], root: Root) -> dict[str, str]:
    """A recipe's values with its paths as names below the root."""
    kept = {}
    for name, text in values.items():
        flag = TRAIN.flags[name]
        if not is_path(flag) or text in suggestions(flag):
            kept[name] = text
        elif name == "output_dir":
            kept[name] = text.removeprefix("./")
        else:
            path = (REPOSITORY / text).resolve()
            if path.exists() and path.is_relative_to(root.path):
                kept[name] = root.name(path)
    return kept
