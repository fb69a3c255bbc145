"""The declaration of a model generation: a Mode, in the `mode.py` of its folder.

Code outside of that folder never compares a generation's name, but reads a field of the Mode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from conversation import Record
from modes.calls import CallGrammar
from modes.chat_template import chat_template
from modes.clues import BaseFiles, Clue
from modes.config import Config
from modes.hf_layout import HfLayout
from modes.model import LanguageModel
from modes.rows import FlatRows, Row, as_lists
from modes.streamed_text import StreamedText
from modes.tokenizer import Tokenizer


class EncodeArrays(Protocol):
    """Training rows of records as flat arrays; see `modes.rows.join_rows`."""

    def __call__(
        self, tokenizer: Tokenizer, records: Sequence[Record], max_len: int, max_src_len: int, loss_on: str = "last"
    ) -> FlatRows:
        """Encode records.

        Args:
            max_len: ids in a whole row. max_src_len: prompt ids in it.
            loss_on: "last" supervises the last of the assistant's messages, "all" every one if a row has several
                (`one_answer`).
        """
        ...


class PromptIds(Protocol):
    """All ids before the first answer token; with the limits of training, the same ids as in training."""

    def __call__(
        self, tokenizer: Tokenizer, record: Record, max_src_len: int | None = None, max_len: int | None = None
    ) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class Mode:
    """One model generation. conversation.py describes a record."""

    name: str  # of --mode
    title: str  # of the published model
    config_class: type[Config]
    model_class: type[LanguageModel]
    tokenizer_class: type[Tokenizer]

    # the prompt
    encode_arrays: EncodeArrays
    prompt_ids: PromptIds
    answer_text: Callable[[Tokenizer, Sequence[int]], str]  # generated ids -> text
    streamed_text: type[StreamedText]  # the same text while ids are generated
    stop_ids: Callable[[Tokenizer], list[int]]  # ids that end an answer
    template: str  # readable form of the prompt
    roles: tuple[str, ...]  # valid roles in a conversation
    one_answer: bool  # whether a row has one answer, its last; other answers then get rows of their own
    calls: CallGrammar | None  # the text of tool calls; None where `roles` has no observation

    # the model
    # (config, ids [s]) -> (position ids [s] or [2, s], number of first tokens with bidirectional attention)
    layout: Callable[[Config, Sequence[int] | np.ndarray], tuple[np.ndarray, int]]
    causal_prompt: bool  # whether attention in a prompt is causal
    gated: bool  # RMSNorm and SwiGLU, not LayerNorm and GELU

    # base directories
    fits: Callable[[Mapping[str, Any]], bool]  # whether a config.json has this generation's keys
    clues: Callable[[BaseFiles], Iterator[Clue]]  # distinguish it from others with the same keys
    largest: Mapping[str, int]  # sizes that config.json must have, each with its largest plausible value
    hf: HfLayout | None  # the class in transformers that computes the same; None if there is none
    vocabulary_advice: str = ""  # another cause of different ids, as the end of a sentence

    @property
    def vocabulary_file(self) -> str:
        """Name of the sentencepiece model in a base directory."""
        return self.tokenizer_class.vocab_files_names["vocab_file"]

    def chat_template(
        self, sop: str = "", end: str = "</s>", special: Sequence[str] = (), spaced_answers: bool = False
    ) -> str:
        """The chat template in Jinja; see `modes.chat_template`. By default the official tokenizer encodes its text."""
        return chat_template(self.name, sop, end, special, spaced_answers)

    def written(self, record: Record) -> Record:
        """The record as the text of this generation: its tool calls are written."""
        return self.calls.written(record) if self.calls else record

    def encode_batch(
        self, tokenizer: Tokenizer, records: Sequence[Record], max_len: int, max_src_len: int, loss_on: str = "last"
    ) -> list[Row]:
        """As `encode_arrays`, but one dict per row, which is slower."""
        return as_lists(self.encode_arrays(tokenizer, records, max_len, max_src_len, loss_on))

    def encode(self, tokenizer: Tokenizer, record: Record, max_len: int, max_src_len: int) -> Row:
        """Training row of one record."""
        return self.encode_batch(tokenizer, [record], max_len, max_src_len)[0]
