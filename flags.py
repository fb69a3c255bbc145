"""How a flag is declared: as a field of a frozen dataclass, with default, bounds, help and names in other tools.

    @dataclass(frozen=True)
    class StepOptions:
        max_steps: int | None = flag(None, help="Number of optimizer steps.", zh="优化步数。", at_least=1)

From such fields come the parser, --help, the checks of values, run.yaml, the flag pages in docs/ and the records in
checkpoints.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache

LARGEST = 2**31 - 1  # default upper bound of a whole number: products of larger ones overflow


@dataclass(frozen=True)
class Flag:
    """One flag.

    name: without dashes. kind: int, float, str, bool or tuple (names separated by commas).
    default: its value where it is not given.
    help, zh: one sentence in English and in Chinese.
    section: the group that it belongs to in --help, in run.yaml and in the flag pages.
    choices: the values that it may have. at_least, above, at_most, below: bounds of a number.
    parse: text -> value in place of the conversion by `kind`; raises ValueError.
    metavar: placeholder of the value in --help.
    required: what to give where it is missing, such as "the base"; "": the flag is optional.
    needs: "dev_path" or "lora_variant=dora": the flag has no effect without this one.
    excludes: a flag that cannot be given together with this one.
    synonyms: other accepted names.
    elsewhere: names of the flag in other tools, for advice; by_value: value -> names that mean this value there.
    several: whether a text contains several values, separated by commas.
    free_text: whether the value is text for the model, which may contain line ends.
    ignored: whether it is accepted without effect.
    """

    name: str
    kind: type
    default: object
    help: str
    zh: str
    section: str
    choices: tuple = ()
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    parse: Callable[[str], object] | None = None
    metavar: str = ""
    required: str = ""
    needs: str = ""
    excludes: str = ""
    synonyms: tuple[str, ...] = ()
    elsewhere: str = ""
    by_value: dict[str, str] = dataclasses.field(default_factory=dict)
    several: bool = False
    free_text: bool = False
    ignored: bool = False

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.kind in (int, float)


def flag(default: typing.Any, *, help: str, zh: str, **details: typing.Any) -> typing.Any:
    """A dataclass field that declares a flag; `details` are fields of `Flag`."""
    return dataclasses.field(default=default, metadata={"help": help, "zh": zh, **details})


def flags_of(section: type) -> dict[str, Flag]:
    """Name -> flag of a dataclass, in order of declaration."""
    return _read_flags(section)


@cache
def _read_flags(section: Hashable) -> dict[str, Flag]:
    assert isinstance(section, type) and dataclasses.is_dataclass(section)
    hints = typing.get_type_hints(section)
    title = section.__dict__.get("TITLE", "")
    return {
        field.name: Flag(
            name=field.name, kind=kind_of(hints[field.name]), default=field.default, section=title, **field.metadata
        )
        for field in dataclasses.fields(section)
        if "help" in field.metadata
    }


def kind_of(annotation: object) -> type:
    """int of `int | None`, tuple of `tuple[str, ...]`, and so on."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    kind = typing.get_origin(annotation) or annotation
    assert kind in (int, float, str, bool, tuple), f"{annotation} cannot be a flag's type"
    return kind
