"""ChatGLM2-6B tokenizer: sentencepiece pieces, followed by five commands that are not recognized in text."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import sentencepiece
from transformers import PreTrainedTokenizer

from modes.text import encodable, piece_bytes
from modes.tokenizer import copy_vocabulary

COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")


def all_encodable(texts: Sequence[str]) -> list[str]:
    """`encodable` of each text, applied only if one of them has no UTF-8."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return [encodable(text) for text in texts]
    return list(texts)


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Every encoded sequence starts with [gMASK] sop, and is padded on the left.

    Args:
        vocab_file: path of the sentencepiece model.
        commands: names of the ids that follow the sentencepiece vocabulary.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]
    commands: tuple[str, ...] = COMMANDS

    # Not special tokens of transformers: it would recognize them in users' text, unlike the official code.
    eos_token, unk_token, pad_token = "</s>", "<unk>", "<unk>"

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ):
        self.vocab_file = str(vocab_file)
        self.sp_model = sentencepiece.SentencePieceProcessor(model_file=self.vocab_file)
        pieces = self.sp_model.vocab_size()
        self.command_ids = {name: pieces + i for i, name in enumerate(self.commands)}
        self.command_names = {index: name for name, index in self.command_ids.items()}
        for name in ("eos_token", "unk_token", "pad_token", "bos_token"):
            kwargs.pop(name, None)
        super().__init__(padding_side=padding_side, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **kwargs)

    @property
    def vocab_size(self) -> int:
        return self.sp_model.vocab_size() + len(self.commands)

    @property
    def eos_token_id(self) -> int:
        return self.sp_model.eos_id()

    @property
    def unk_token_id(self) -> int:
        return self.sp_model.unk_id()

    @property
    def pad_token_id(self) -> int:
        return self.sp_model.unk_id()

    @property
    def markers(self) -> dict[str, int]:
        """Name -> id of the markers in prompts and answers; an unknown one has the id of <unk>, or -1."""
        return {"</s>": self.eos_token_id, **self.command_ids}

    @property
    def ids_in_config(self) -> dict[str, int]:
        """No key of config.json must have an id of this tokenizer."""
        return {}

    @property
    def rewritten(self) -> tuple[str, ...]:
        """Texts that `decode` replaces."""
        return ()

    def token_bytes(self) -> list[bytes]:
        """UTF-8 that each id adds to a decoded text; b"" for commands and other ids without text."""
        return piece_bytes(self.sp_model) + [b""] * len(self.commands)

    def get_command(self, name: str) -> int:
        """Id of a command such as "[gMASK]" or "sop". Raises KeyError for any other name."""
        return self.command_ids[name]

    def get_vocab(self) -> dict[str, int]:
        vocab = {self.sp_model.id_to_piece(i): i for i in range(self.sp_model.vocab_size())}
        return {**vocab, **self.command_ids, **self._added_tokens_encoder}

    def encode_texts(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Ids of many texts without commands, in one sentencepiece call."""
        return self.sp_model.encode(all_encodable(texts), num_threads=num_threads, out_type=int)

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """As `encode_texts`, as int32 arrays."""
        return self.sp_model.encode(all_encodable(texts), num_threads=num_threads, out_type="numpy")

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp_model.encode(encodable(text), out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.command_ids[token] if token in self.command_ids else self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        """The piece; "" for ids without text: commands, <s>, </s>, <unk>."""
        silent = (self.sp_model.bos_id(), self.sp_model.eos_id(), self.sp_model.unk_id())
        if index in silent or not 0 <= index < self.sp_model.vocab_size():
            return ""
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return self.sp_model.decode_pieces(list(tokens))

    def get_prefix_tokens(self) -> list[int]:
        """The ids at the start of every sequence."""
        return [self.get_command("[gMASK]"), self.get_command("sop")]

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """[gMASK] sop A, or for a pair [gMASK] sop A B </s>."""
        ids = self.get_prefix_tokens() + list(token_ids_0)
        return ids if token_ids_1 is None else ids + list(token_ids_1) + [self.eos_token_id]

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """The official multi-turn prompt.

        Args:
            history: (question, answer) pairs, oldest first.
        """
        rounds = "".join(
            f"[Round {i}]\n\n问：{question}\n\n答：{answer}\n\n"
            for i, (question, answer) in enumerate(history or [], 1)
        )
        return f"{rounds}[Round {len(history or []) + 1}]\n\n问：{query}\n\n答："

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the sentencepiece model. Returns a tuple with its path."""
        return copy_vocabulary(self.vocab_file, save_directory, filename_prefix, self.vocab_files_names["vocab_file"])
