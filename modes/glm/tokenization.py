"""ChatGLM-6B tokenizer: sentencepiece with special pieces for line ends, tabs and runs of spaces.

In early releases the text vocabulary follows `num_image_tokens` ids reserved for images, and the model file of the
first release is completed in memory (modes/glm/pieces.py).
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizer

from modes.glm.pieces import COMMANDS, LINE_END, LONGEST_BLANK, TAB, blank, load_pieces
from modes.text import encodable, piece_bytes
from modes.tokenizer import copy_vocabulary

BLANKS = {blank(length): " " * length for length in range(2, LONGEST_BLANK + 1)}
# Defaults of tokenizer_config.json.
DEFAULTS: dict[str, Any] = {
    "do_lower_case": False,
    "remove_space": False,
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "padding_side": "left",
    "clean_up_tokenization_spaces": True,
}
# What `clean_up_tokenization` of transformers replaces.
CLEANED_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
SEPARATOR = "\0"  # between texts that are preprocessed together


def mark_whitespace(text: str) -> str:
    """Line ends, tabs and runs of spaces as pieces of the vocabulary; longer runs are split from the left."""
    text = text.replace("\n", LINE_END).replace("\t", TAB)
    return re.sub(f" {{2,{LONGEST_BLANK}}}", lambda run: blank(len(run[0])), text)


def unmark_whitespace(text: str) -> str:
    """The inverse of `mark_whitespace`. Similar texts that are no such piece, such as <|blank_81|>, stay."""
    text = text.replace(LINE_END, "\n").replace(TAB, "\t")
    return re.sub(r"<\|blank_[0-9]{1,2}\|>", lambda run: BLANKS.get(run[0], run[0]), text)


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Every encoded sequence ends with [gMASK] <sop>, and is padded on the left.

    The special tokens of transformers (<sop>, <eop>, [MASK], <pad>, <unk>) are recognized in text, and the whitespace
    around them is removed.

    Args:
        vocab_file: path of the sentencepiece model.
        num_image_tokens: ids before the text vocabulary; 20000 in early releases, now 0.
        end_token, gmask_token: pieces of the model file, which are not recognized in text.
        kwargs: keys of tokenizer_config.json; DEFAULTS has those with another default than transformers'.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        num_image_tokens: int = 20000,
        end_token: str = "</s>",
        gmask_token: str = "[gMASK]",
        **kwargs: Any,
    ):
        kwargs = DEFAULTS | kwargs
        self.vocab_file = str(vocab_file)
        self.sp_model = load_pieces(self.vocab_file)
        self.do_lower_case = bool(kwargs["do_lower_case"])
        self.remove_space = bool(kwargs["remove_space"])
        self.num_image_tokens = num_image_tokens
        # Official code does not recognize these two in text, so transformers must not treat them as special tokens.
        # `from_pretrained` passes them in a separate dict.
        special_tokens = kwargs.pop("model_specific_special_tokens", {})
        self.end_piece = str(special_tokens.get("end_token") or end_token)
        self.gmask_piece = str(special_tokens.get("gmask_token") or gmask_token)
        # Until April 2023 an answer ended with `eop_token`, and `eos_token` was </s>, which the model never generates.
        kwargs["eos_token"] = special_tokens.get("eop_token") or kwargs.pop("eop_token", None) or kwargs["eos_token"]
        super().__init__(num_image_tokens=num_image_tokens, **kwargs)
        self.init_kwargs.update(end_token=self.end_piece, gmask_token=self.gmask_piece)  # for save_pretrained

    @property
    def vocab_size(self) -> int:
        return self.num_image_tokens + self.sp_model.vocab_size()

    @property
    def gmask_token_id(self) -> int:
        return self._convert_token_to_id(self.gmask_piece)

    @property
    def end_token_id(self) -> int:
        return self._convert_token_to_id(self.end_piece)

    @property
    def markers(self) -> dict[str, int]:
        """Name -> id of the markers in prompts and answers; an unknown one has the id of <unk>."""
        pieces = (self.gmask_piece, self.bos_token, self.eos_token, self.pad_token, LINE_END)
        return {str(piece): self._convert_token_to_id(str(piece)) for piece in pieces}

    @property
    def ids_in_config(self) -> dict[str, int]:
        """Key of config.json -> the id that it must have."""
        ids = {"bos_token_id": self.bos_token_id, "gmask_token_id": self.gmask_token_id}
        return {**ids, "eos_token_id": self.eos_token_id}

    @property
    def rewritten(self) -> tuple[str, ...]:
        """Texts that `decode` replaces: names of whitespace pieces, spelled out, and spaces before punctuation."""
        return (LINE_END, TAB, *BLANKS, *(CLEANED_UP if self.clean_up_tokenization_spaces else ()))

    def token_bytes(self) -> list[bytes]:
        """UTF-8 that each id adds to a decoded text; b"" for image tokens, commands and other ids without text."""
        texts = piece_bytes(self.sp_model)
        for piece in (LINE_END, TAB, *BLANKS):
            texts[self.sp_model.piece_to_id(piece)] = unmark_whitespace(piece).encode()
        for piece in (*COMMANDS, self.gmask_piece, self.end_piece, *self._added_tokens_encoder):
            texts[self.sp_model.piece_to_id(piece)] = b""  # <unk> for an unknown piece
        return [b""] * self.num_image_tokens + texts

    def get_command(self, name: str) -> int:
        """Id of "[gMASK]" or "<sop>", whatever a release calls them. Raises KeyError for any other name."""
        return {"[gMASK]": self.gmask_token_id, "<sop>": self.bos_token_id}[name]

    def get_vocab(self) -> dict[str, int]:
        vocab = {self._convert_id_to_token(i): i for i in range(self.vocab_size)}
        return {**vocab, **self._added_tokens_encoder}

    def _special_pattern(self) -> re.Pattern[str]:
        """Matches like transformers' trie, ten times faster. Built for each call, because add_tokens changes it."""
        longest_first = sorted(self._added_tokens_encoder, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @staticmethod
    def _parts(text: str, special_pattern: re.Pattern[str]) -> list[tuple[str, bool]]:
        """(part, whether it is a special token) pairs of a text, without the whitespace around special tokens."""
        parts = special_pattern.split(text)  # plain and special in alternation
        last = len(parts) - 1
        for i in range(0, last, 2):
            parts[i] = parts[i].rstrip()
        for i in range(2, last + 1, 2):
            parts[i] = parts[i].lstrip()
        return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]

    def _preprocess(self, text: str) -> str:
        if self.remove_space:
            text = " ".join(text.split())
        if self.do_lower_case:
            text = text.lower()
        return mark_whitespace(encodable(text))

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Pieces of a text."""
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        pieces: list[str] = []
        for part, is_special in self._parts(text, self._special_pattern()):
            pieces += [part] if is_special else self._tokenize(part)
        return pieces

    def _plain(self, texts: Sequence[str]) -> list[str] | None:
        """The texts preprocessed for sentencepiece, all at once; None if one needs to be split first."""
        joined = SEPARATOR.join(texts)
        if self.remove_space or self.do_lower_case or any(token in joined for token in self._added_tokens_encoder):
            return None
        plain = self._preprocess(joined).split(SEPARATOR)
        return plain if len(plain) == len(texts) else None  # a text contains the separator

    def encode_texts(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Ids of many texts without [gMASK] <sop>, in one sentencepiece call."""
        return [ids.tolist() for ids in self.encode_arrays(texts, num_threads)]

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """As `encode_texts`, as int32 arrays."""
        split, plain = None, self._plain(texts)
        if plain is None:
            pattern = self._special_pattern()
            split = [self._parts(text, pattern) for text in texts]
            plain = [self._preprocess(part) for parts in split for part, is_special in parts if not is_special]
        encoded = self.sp_model.encode(plain, num_threads=num_threads, out_type="numpy")
        if self.num_image_tokens:
            encoded = [ids + self.num_image_tokens for ids in encoded]
        if split is not None:
            encoded = self._with_special(split, iter(encoded))
        return encoded

    def _with_special(self, split: list[list[tuple[str, bool]]], encoded: Iterator[np.ndarray]) -> list[np.ndarray]:
        """Ids of texts that are made of (part, whether it is a special token); `encoded` has those of the others."""
        added = {token: np.array([index], np.int32) for token, index in self._added_tokens_encoder.items()}
        nothing = np.zeros(0, np.int32)
        return [
            np.concatenate([nothing, *(added[part] if is_special else next(encoded) for part, is_special in parts)])
            for parts in split
        ]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp_model.encode(self._preprocess(text), out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        image = re.fullmatch(r"<image_(\d+)>", token)
        return int(image[1]) if image else self.num_image_tokens + self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        """The piece; <image_N> before the text vocabulary, "" after it."""
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        index -= self.num_image_tokens
        return self.sp_model.id_to_piece(index) if index < self.sp_model.vocab_size() else ""

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return unmark_whitespace(self.sp_model.decode_pieces(list(tokens)))

    def _decode(self, token_ids: int | Sequence[int], **kwargs: Any) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return super()._decode([i for i in token_ids if i != self.pad_token_id], **kwargs)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """A [gMASK] <sop>, or for a pair A [gMASK] <sop> B <eop>."""
        ids = list(token_ids_0) + [self.gmask_token_id, self.bos_token_id]
        return ids if token_ids_1 is None else ids + list(token_ids_1) + [self.eos_token_id]

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the sentencepiece model. Returns a tuple with its path."""
        return copy_vocabulary(self.vocab_file, save_directory, filename_prefix, self.vocab_files_names["vocab_file"])
