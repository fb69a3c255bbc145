"""The interface of all generations' tokenizers for prompts and programs."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np


class Tokenizer(Protocol):
    """A tokenizer of transformers, with these methods of ours: `encode_texts`, `encode_arrays`, `markers`."""

    vocab_files_names: dict[str, str]  # {"vocab_file": the sentencepiece model's name in a base directory}

    def __init__(self, vocab_file: str | os.PathLike) -> None: ...

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> Self: ...

    def save_pretrained(self, save_directory: str | os.PathLike) -> tuple[str, ...]: ...

    @property
    def pad_token_id(self) -> int: ...

    @property
    def unk_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...

    @property
    def markers(self) -> dict[str, int]:
        """Name -> id of the markers in prompts and answers; an unknown one has the id of <unk>, or -1."""
        ...

    @property
    def ids_in_config(self) -> dict[str, int]:
        """Key of config.json -> the id that it must have, where it has one."""
        ...

    @property
    def rewritten(self) -> tuple[str, ...]:
        """Texts that `decode` replaces by others, so that no answer can have them."""
        ...

    def token_bytes(self) -> list[bytes]:
        """UTF-8 that each id adds to a decoded text; b"" for commands and other ids without text.

        `decode` removes a space at the start, and replaces `rewritten`.
        """
        ...

    def get_command(self, name: str) -> int:
        """Id of a command such as "[gMASK]". Raises KeyError for an unknown name."""
        ...

    def encode_texts(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Ids of many texts without commands, in one sentencepiece call."""
        ...

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """As `encode_texts`, as int32 arrays."""
        ...

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def decode(self, token_ids: list[int]) -> str: ...


def copy_vocabulary(file: str, directory: str | os.PathLike, prefix: str | None, name: str) -> tuple[str]:
    """Copy a sentencepiece model into a directory, as NAME or PREFIX-NAME. Returns a tuple with its path."""
    target = Path(directory) / (f"{prefix}-{name}" if prefix else name)
    if not (target.exists() and target.samefile(file)):
        shutil.copyfile(file, target)
    return (str(target),)
