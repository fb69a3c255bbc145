"""What a model generation declares: a Mode, in the `mode.py` of its folder.

No code outside of that folder asks for the name of a generation to decide anything: it reads a field of the Mode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from conversation import Record
from modes.calls import CallGrammar
from modes.clues import BaseFiles, Clue
from modes.config import Config
from modes.model import LanguageModel
from modes.rows import FlatRows, Row, as_lists
from modes.tokenizer import Tokenizer


class EncodeArrays(Protocol):
    """Training rows of records as flat arrays; see `modes.rows.join_rows`."""

    def __call__(
        self, tokenizer: Tokenizer, records: Sequence[Record], max_len: int, max_src_len: int, loss_on: str = "last"
    ) -> FlatRows:
        """Encode records.

        Args:
            max_len: ids in a whole row. max_src_len: prompt ids in it.
            loss_on: "last" supervises the last of the assistant's messages, "all" every one where a row has several
                (`one_answer`).
        """
        ...


class PromptIds(Protocol):
    """Every id in front of the first answer token; with the limits of training, the ids of training."""

    def __call__(
        self, tokenizer: Tokenizer, record: Record, max_src_len: int | None = None, max_len: int | None = None
    ) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class Mode:
    """One model generation. conversation.py says what a record is."""

    name: str  # of --mode
    title: str  # of the published model
    config_class: type[Config]
    model_class: type[LanguageModel]
    tokenizer_class: type[Tokenizer]

    # the prompt
    encode_arrays: EncodeArrays
    prompt_ids: PromptIds
    answer_text: Callable[[Tokenizer, Sequence[int]], str]  # generated ids -> text
    stop_ids: Callable[[Tokenizer], list[int]]  # ids that end an answer
    template: str  # readable form of the prompt
    roles: tuple[str, ...]  # who can speak in a conversation
    one_answer: bool  # whether a row has one answer, its last; the others then need rows of their own
    calls: CallGrammar | None  # the text of tool calls; None where `roles` has no observation

    # the model
    # (config, ids [s]) -> (position ids [s] or [2, s], how many of the first tokens see one another both ways)
    layout: Callable[[Config, Sequence[int] | np.ndarray], tuple[np.ndarray, int]]
    causal_prompt: bool  # whether a prompt's tokens see only what stands in front of them
    gated: bool  # RMSNorm and SwiGLU, not LayerNorm and GELU

    # base directories
    fits: Callable[[Mapping[str, Any]], bool]  # whether a config.json has this generation's keys
    clues: Callable[[BaseFiles], Iterator[Clue]]  # what tells it from others whose keys are the same
    largest: Mapping[str, int]  # counts that config.json must have, each with the largest that is not a mistake
    markers_in_config: tuple[str, ...] = ()  # keys of config.json that are ids of the tokenizer
    vocabulary_advice: str = ""  # what else may be wrong where ids differ, as the end of a sentence

    @property
    def vocabulary_file(self) -> str:
        """Name of the sentencepiece model in a base directory."""
        return self.tokenizer_class.vocab_files_names["vocab_file"]

    def written(self, record: Record) -> Record:
        """The record as the text of this generation: its tool calls are written."""
        return self.calls.written(record) if self.calls else record

    def encode_batch(
        self, tokenizer: Tokenizer, records: Sequence[Record], max_len: int, max_src_len: int, loss_on: str = "last"
    ) -> list[Row]:
        """As `encode_arrays`, a dict for each row; costs more."""
        return as_lists(self.encode_arrays(tokenizer, records, max_len, max_src_len, loss_on))

    def encode(self, tokenizer: Tokenizer, record: Record, max_len: int, max_src_len: int) -> Row:
        """Training row of one record."""
        return self.encode_batch(tokenizer, [record], max_len, max_src_len)[0]
