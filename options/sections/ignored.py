"""Flags of other tools that have no effect here."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from texts import shown


def no_value(text: str) -> bool:
    """Refuse a value of --deepspeed, which other tools have."""
    if text == "True":
        return True
    raise ValueError(f"it takes no value: use --ds_file {shown(text)}")


@dataclass(frozen=True)
class IgnoredOptions:
    """Flags of other tools that have no effect here."""

    TITLE: ClassVar[str] = "accepted and ignored"

    deepspeed: bool = flag(
        False,
        help="Ignored; DeepSpeed is always used.",
        zh="不起作用；训练总是使用 DeepSpeed。",
        parse=no_value,
        ignored=True,
    )
    deepspeed_config: str | None = flag(
        None,
        help="Ignored; the DeepSpeed configuration is --ds_file.",
        zh="不起作用；DeepSpeed 配置由 --ds_file 给出。",
        metavar="FILE",
        ignored=True,
    )
