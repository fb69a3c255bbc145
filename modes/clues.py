"""Clues from which a base's generation is recognized: keys, names, and files that are searched and never executed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_TEXT = 10 * 2**20  # bytes; a larger file is not searched
# Files with the role tokens, in a base whose tokenizer has them.
TOKENIZER_TEXTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
CODE = ("tokenization_chatglm.py", "modeling_chatglm.py")
OWNERS = r"(?:THUDM|zai-org|ZhipuAI|AI-ModelScope)(?:/|--)"  # on the hubs


class Evidence(IntEnum):
    """Kinds of clues, the most reliable first."""

    TOKENIZER = 0
    ROLES_IN_CODE = 1
    PROMPT_IN_CODE = 2
    HUB_NAME = 3
    LOCAL_NAME = 4
    CONFIG_KEY = 5
    CONTEXT_LENGTH = 6

    @property
    def is_sure(self) -> bool:
        """Whether it decides even against --mode."""
        return self <= Evidence.HUB_NAME


class Clue(NamedTuple):
    """A clue to a generation. The smallest one decides."""

    evidence: Evidence
    place: tuple[int, int]  # order among clues of the same kind: number of the file or name, and position in it
    words: str


@dataclass(frozen=True)
class BaseFiles:
    """A base directory, and the contents of its JSON files; {} for a missing tokenizer_config.json."""

    path: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]

    def text(self, name: str) -> str:
        """The text of a file; "" if it is missing, unreadable or too large."""
        file = self.path / name
        try:
            return "" if file.stat().st_size > LARGEST_TEXT else file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def names(self) -> list[str]:
        """Texts that may contain the name of a model."""
        path, code = self.config.get("_name_or_path"), json.dumps(self.config.get("auto_map"))
        return [str(path), code, str(self.tokenizer_config.get("name_or_path"))]


def words_in(files: BaseFiles, names: tuple[str, ...], words: tuple[str, ...], evidence: Evidence) -> Iterator[Clue]:
    """Clues from the files of these names that contain one of the words."""
    for place, name in enumerate(names):
        text = files.text(name)
        word = next((word for word in words if word in text), None)
        if word:
            yield Clue(evidence, (place, 0), f"{name} has {word}")


def model_names(files: BaseFiles, names: tuple[str, ...]) -> Iterator[Clue]:
    """Clues from names of published models: on a hub, and as a folder."""
    for evidence, owners in ((Evidence.HUB_NAME, OWNERS), (Evidence.LOCAL_NAME, "")):
        pattern = re.compile(f"{owners}(?:{'|'.join(names)})", re.IGNORECASE)
        for place, text in enumerate(files.names()):
            match = pattern.search(text)
            if match:
                yield Clue(evidence, (place, match.start()), f"the name {match[0]}")
