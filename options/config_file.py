"""run.yaml: a run's flags in a file, one key for each flag.

max_len: 1560
learning_rate: 1e-4
lora_module_name: [query_key_value, dense]      # or query_key_value,dense
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from files import write_text
from flags import Flag, flags_of
from options.hints import hint
from options.values import convert
from texts import shown

NULL = "tag:yaml.org,2002:null"


def read_config(
    path: str, program: str, flags: Mapping[str, Flag], advice: Mapping[str, str]
) -> tuple[dict[str, object], list[str]]:
    """(name -> value of every flag in a file, one sentence with file:line for each problem).

    Values are read as on the command line: 1e-4 is a number, although YAML 1.1 reads it as text.
    """
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except OSError as error:
        return {}, [f"--config {path} cannot be read ({error.strerror}): give the path of a run.yaml."]
    except UnicodeDecodeError:
        return {}, [f"--config {path} is not UTF-8 text: save it as UTF-8."]
    except (yaml.YAMLError, RecursionError) as error:  # the latter: thousands of brackets
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f"{path}:{mark.line + 1}" if mark else path
        return {}, [f"{where}: not YAML ({' '.join(str(error).split())[:200]}): correct the file of --config."]
    if node is None:
        return {}, []
    if not isinstance(node, yaml.MappingNode):
        return {}, [f"{path}:1: the file of --config must have one key per flag, such as max_len: 512."]
    values: dict[str, object] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for key, value in node.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            problems.append(
                f"{where}: a key must be the name of a flag, not a list or a mapping: {program} --help lists all flags."
            )
            continue
        name = str(key.value)
        flag = flags.get(name)
        if flag is None:
            meant = hint(program, f"--{name}", flags, advice).replace("--", "")
            problems.append(f"{where}: {shown(name)} is an unknown key: {meant}{'' if meant[-1] == '?' else '.'}")
        elif name in seen:
            problems.append(f"{where}: {name} is given twice: remove one of them.")
        else:
            try:
                if value.tag != NULL or value.style is not None:
                    values[name] = convert(flag, text_of(value))
            except ValueError as error:
                problems.append(f"{where}: {name}: {error} ({program} --help lists all flags).")
        seen.add(name)
    return values, problems


def text_of(node: yaml.Node) -> str:
    """The text of a scalar, or the comma-separated texts of a list.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return ",".join(str(item.value) for item in node.value)
    raise ValueError("it must be a value or a list of values")


def write_config(path: Path, sections: Iterable[object], program: str) -> None:
    """Write a complete run.yaml: every flag of these dataclasses with its value."""
    texts = [f"# {program} --config {path.name}\n", *filter(None, map(section_text, sections))]
    write_text(path, "\n".join(texts))


def section_text(section: object) -> str:
    """The part of a run.yaml for one dataclass of flags."""
    flags = flags_of(type(section))
    values = {name: plain(vars(section)[name]) for name, flag in flags.items() if not flag.ignored}
    if not values:
        return ""
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=1000)
    return f"# {next(iter(flags.values())).section}\n{text}"


def plain(value: object) -> object:
    """A value for YAML and JSON."""
    return list(value) if isinstance(value, tuple) else value


def flat(sections: Iterable[object]) -> dict[str, object]:
    """Name -> value for JSON of every flag of these dataclasses."""
    return {name: plain(vars(section)[name]) for section in sections for name in flags_of(type(section))}


def names_of(flags: Mapping[str, Flag], values: Mapping[str, object]) -> frozenset[str]:
    """The flags whose values differ from their defaults."""
    return frozenset(name for name, flag in flags.items() if values[name] != flag.default)
