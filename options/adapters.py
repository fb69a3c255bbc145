"""--lora NAME=DIR: several LoRA adapters on one base, for the programs that answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from texts import quote_text


def named_directories(text: str) -> tuple[str, ...]:
    """NAME=DIR, or several separated by commas."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in parts:
        name, equals, directory = part.partition("=")
        if not (name.strip() and equals and directory.strip()):
            raise ValueError(f"{quote_text(part)} is not NAME=DIR: write a name, an equals sign and the adapter's path")
    if not parts:
        raise ValueError(f"{quote_text(text)} holds no NAME=DIR")
    return parts


@dataclass(frozen=True)
class AdapterOptions:
    """Adapters on the base of --model_path."""

    TITLE: ClassVar[str] = "adapters"

    lora: tuple[str, ...] = flag(
        (),
        help="LoRA adapters of the base, as NAME=DIR; may be repeated.",
        zh="基座的 LoRA 适配器，写作 NAME=DIR，可重复给出。",
        parse=named_directories,
        metavar="NAME=DIR",
        elsewhere="lora_modules",
    )

    @property
    def directories(self) -> dict[str, str]:
        """Name -> directory of each adapter."""
        return dict(pairs_of(self.lora))


def pairs_of(lora: Sequence[str]) -> list[tuple[str, str]]:
    """(name, directory) of each adapter of --lora."""
    parts = (part.partition("=") for part in lora)
    return [(name.strip(), directory.strip()) for name, _, directory in parts]


def check_base_model(lora: Sequence[str], base_model: str | None) -> list[str]:
    """One sentence if adapters are given with --base_model, which is for one checkpoint."""
    if lora and base_model:
        return ["--lora and --base_model are mutually exclusive: give the base as --model_path."]
    return []


def check_adapter_names(lora: Sequence[str]) -> list[str]:
    """One sentence for each name that two adapters have."""
    names = [name for name, _ in pairs_of(lora)]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"--lora has two adapters of the name {name}: give each another one." for name in twice]
