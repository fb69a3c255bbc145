"""Shared by the prompts of all generations: truncation and labels of rows of ids."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypedDict

import numpy as np

from conversation import Message, Record, is_pair, is_ready, split_answer
from errors import UserError
from modes.loss import IGNORED
from modes.tokenizer import Tokenizer

LONGEST_MARKER = 16  # characters at the end of a ready prompt that truncation keeps
FlatRows = dict[str, np.ndarray]  # the result of `join_rows`


class Row(TypedDict):
    """A training row. labels: the ids, or -100 if unsupervised. truncated: whether prompt or answer is truncated."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool


class PromptText(Protocol):
    """(record, number of oldest rounds to drop) -> the text of its prompt."""

    def __call__(self, record: Record, left_out: int = 0) -> str: ...


def rounds_of(messages: list[Message]) -> tuple[str, list[tuple[str, str]]]:
    """(system text, [(question, answer), …]) of messages that end with a question; its answer is ""."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    texts = [message["content"] for message in messages if message["role"] != "system"] + [""]
    if len(texts) % 2:  # a greeting of the assistant: an answer to an empty question, as in the official code's history
        texts = ["", *texts]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def last_line(text: str) -> str:
    """The short last line of a prompt without template, such as "\nAnswer: "; "" if it is not short."""
    start = text.rfind("\n")
    return text[start:] if start >= 0 and len(text) - start <= LONGEST_MARKER else ""


def fit(
    tokenizer: Tokenizer, record: Record, text_of: PromptText, source: list[int], limit: int | None, marker: str
) -> tuple[list[int], bool]:
    """Fit source ids to a limit: drop the oldest rounds, then the system text, then truncate before the marker.

    Args:
        source: ids of text_of(record). limit: ids, or None.
        marker: the text at the end of a source; for a ready prompt its last line.

    Returns (ids, whether anything was dropped or truncated).
    """
    if limit is None or len(source) <= limit:
        return source, False
    num_rounds = len(rounds_of(split_answer(record)[0])[1])
    for left_out in range(1, num_rounds + 1):
        source = tokenizer.encode_texts([text_of(record, left_out)], num_threads=1)[0]
        if len(source) <= limit:
            return source, True
    marker = last_line(text_of(record)) if is_ready(record) else marker
    return cut(source, limit, ids_without_space(tokenizer, marker) if marker else ())[0], True


def ids_without_space(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that continues another one: without the space that sentencepiece adds at the start."""
    ids = tokenizer.encode_texts([text], num_threads=1)[0]
    return ids[1:] if tokenizer.convert_ids_to_tokens(ids[0]) == "▁" else ids


def room_for_prompt(max_len: int, max_src_len: int, overhead: int) -> int:
    """Maximum number of prompt ids in a row with at least one answer token.

    Args:
        max_len: ids in a whole row. max_src_len: prompt ids in it. overhead: fixed ids around the prompt.

    Raises UserError if even an empty prompt leaves no space for an answer token.
    """
    room = max_len - overhead - 1
    if room < 0:
        raise UserError(f"--max_len {max_len} has no room for an answer: use at least {overhead + 1}.")
    return min(max(max_src_len, 0), room)


def prompt_limit(max_len: int | None, max_src_len: int | None, overhead: int) -> int | None:
    """The limit of a prompt in prediction: as in training, or None without limits."""
    if max_src_len is None or max_len is None:
        return max_src_len
    return room_for_prompt(max_len, max_src_len, overhead)


def cut(ids: list[int], limit: int | None, marker: Sequence[int] = ()) -> tuple[list[int], bool]:
    """Truncate to `limit` ids; a truncated prompt still ends with its marker. Returns (ids, whether truncated)."""
    if limit is None or len(ids) <= limit:
        return ids, False
    head = max(limit - len(marker), 0)
    return (ids[:head] + list(marker))[:limit], True


def row(
    prompt: list[int],
    supervised_from: int,
    answer: list[int],
    end: int,
    max_len: int,
    prompt_cut: bool,
    earlier: Sequence[tuple[int, int]] = (),
) -> Row:
    """One training row. A truncated answer gets no end token, which would train the model to stop in mid-sentence.

    Args:
        prompt: all ids before the answer. supervised_from: index of the first supervised id.
        answer: ids. end: id of the end token. max_len: ids in a whole row.
        earlier: (first, end) of supervised parts of the prompt.
    """
    ids = prompt + answer + [end]
    labels = [IGNORED] * supervised_from + ids[supervised_from:]
    for start, stop in earlier:
        labels[start:stop] = ids[start:stop]
    return {
        "input_ids": ids[:max_len],
        "labels": labels[:max_len],
        "truncated": prompt_cut or len(ids) > max_len,
    }


def last_answer(record: Record) -> str:
    """The text of the last answer of a record that has one."""
    if is_pair(record):
        return record["output"]
    _, answer = split_answer(record)
    assert answer is not None, "a record to train on ends with an answer"
    return answer["content"]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of many texts in one sentencepiece call, as int32 arrays."""
    return tokenizer.encode_arrays(texts, num_threads=1 if len(texts) < 16 else -1)


def join_rows(
    sources: Sequence[np.ndarray | None],
    answers: Sequence[np.ndarray],
    *,
    before: list[int],
    behind: list[int],
    unsupervised: int,
    end: int,
    limit: int,
    max_len: int,
    odd_row: Callable[[int], Row],
) -> FlatRows:
    """Rows `before source behind answer end` of many records as flat arrays, vectorized.

    Args:
        sources, answers: ids of each record, int32 arrays; with None as source the row comes from `odd_row`.
        before, behind: ids before and after every source. unsupervised: number of ids in `behind` that are not
            supervised; answer and end are. end: id of the end token.
        limit: ids in a source. max_len: ids in a whole row.
        odd_row: index -> row (see `row`) of a record whose source or row is too long, or of any other form.

    Returns: {"input_ids": int32 [t], "supervised": bool [t], "lengths": int64 [n], "truncated": bool [n]}.
    """
    front, back, last = (np.array(ids, np.int32) for ids in (before, behind, [end]))
    num_rows = len(sources)
    source_lengths = np.fromiter((limit + 1 if ids is None else len(ids) for ids in sources), np.int64, num_rows)
    lengths = len(front) + source_lengths + len(back) + np.fromiter(map(len, answers), np.int64, num_rows) + 1
    is_odd = (source_lengths > limit) | (lengths > max_len)
    truncated = np.zeros(num_rows, bool)
    supervised_from = len(front) + source_lengths + unsupervised
    nothing = front[:0]
    parts: list[np.ndarray] = []
    for source, answer in zip(sources, answers, strict=True):
        parts += (front, nothing if source is None else source, back, answer, last)
    masks: dict[int, np.ndarray] = {}
    for i in is_odd.nonzero()[0].tolist():
        odd = odd_row(i)
        ids, labels = np.array(odd["input_ids"], np.int32), np.array(odd["labels"], np.int32)
        parts[5 * i : 5 * i + 5] = [ids] + 4 * [nothing]
        lengths[i], supervised_from[i], truncated[i] = len(ids), 0, odd["truncated"]
        masks[i] = labels != IGNORED
    runs = np.stack([supervised_from, lengths - supervised_from], axis=1).reshape(-1)
    supervised = np.repeat(np.tile([False, True], num_rows), runs)
    starts = np.cumsum(lengths) - lengths
    for i, mask in masks.items():
        supervised[starts[i] : starts[i] + lengths[i]] = mask
    ids = np.concatenate(parts) if parts else nothing
    return {"input_ids": ids, "supervised": supervised, "lengths": lengths, "truncated": truncated}


def as_lists(flat: FlatRows) -> list[Row]:
    """The result of `join_rows` as a list of rows, see `row`."""
    labels = np.where(flat["supervised"], flat["input_ids"], IGNORED).tolist()
    ids, ends = flat["input_ids"].tolist(), np.cumsum(flat["lengths"]).tolist()
    return [
        {"input_ids": ids[start:stop], "labels": labels[start:stop], "truncated": cut}
        for start, stop, cut in zip([0, *ends], ends, flat["truncated"].tolist(), strict=False)
    ]


def until_stop(ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    """The ids before the first stop id."""
    ids = [int(i) for i in ids]
    return ids[: next((n for n, i in enumerate(ids) if i in stop_ids), len(ids))]
