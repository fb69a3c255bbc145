"""ChatGLM3-6B: [gMASK] sop <|user|> \\n … <|assistant|> \\n answer </s>, supervised after <|assistant|>.

A conversation is a sequence of messages: role, a line with the name of the called tool (empty except in tool calls),
content. The role after an assistant's message ends it, and is supervised with it.
"""

from collections.abc import Sequence

import numpy as np

from conversation import Message, Record, is_pair, is_ready, messages_of, split_answer
from modes import rows
from modes.glm2.prompt import begin_row
from modes.glm3.calls import CALLS, tidy_call
from modes.glm3.streamed_text import without_empty_line
from modes.tokenizer import Tokenizer

TEMPLATE = "<|user|>\n{instruction}{input}<|assistant|>\n"


Heads = dict[str, list[int]]  # first line of a message -> its ids


def read_heads(tokenizer: Tokenizer, records: Sequence[Record]) -> Heads:
    """First lines of messages -> ids: the empty line, and the names of tools that the records call."""
    long = (record for record in records if not is_pair(record))  # a pair calls no tool
    names = sorted({message.get("metadata", "") for record in long for message in messages_of(record)} | {""})
    ids = tokenizer.encode_texts([f"{name}\n" for name in names], num_threads=1)
    return dict(zip(names, ids, strict=True))


def frame(tokenizer: Tokenizer, role: str, heads: Heads, called: str = "") -> list[int]:
    """Ids before a message's content. called: the name of the called tool."""
    return [tokenizer.get_command(f"<|{role}|>")] + heads[called]


def overhead(tokenizer: Tokenizer, heads: Heads) -> int:
    """Number of ids in every prompt: those at the start of every row, and the last <|assistant|> with its line."""
    return len(begin_row(tokenizer)) + 1 + len(heads[""])


def join(
    tokenizer: Tokenizer, messages: Sequence[Message], contents: Sequence[list[int]], heads: Heads, limit: int | None
) -> tuple[list[int], list[tuple[int, int]], bool]:
    """The messages before an answer as ids, without the oldest turns if they exceed `limit`.

    Args:
        contents: ids of each message's content.

    Returns (ids, (first, end) of each of the assistant's messages in them, whether anything was dropped or truncated).
    """
    parts = [
        (message["role"], frame(tokenizer, message["role"], heads, message.get("metadata", "")) + ids)
        for message, ids in zip(messages, contents, strict=True)
    ]
    first = 1 if parts[0][0] == "system" else 0
    left_out = False
    while limit is not None and sum(len(ids) for _, ids in parts) > limit:
        following = [i for i in range(first + 1, len(parts)) if parts[i][0] == "user"]
        if not following:
            break
        parts[first : following[0]] = []
        left_out = True
    if limit is not None and first:  # the question has priority over the system text
        rest = sum(len(ids) for _, ids in parts[1:])
        system, was_cut = rows.cut(parts[0][1], max(limit - rest, 0))
        parts[0] = ("system", system)
        left_out = left_out or was_cut
    spans: list[tuple[int, int]] = []
    ids: list[int] = []
    is_asked = False
    for role, part in parts:
        is_asked = is_asked or role == "user"
        if role == "assistant" and is_asked:  # greetings are not supervised
            spans.append((len(ids), len(ids) + len(part)))
        ids = ids + part
    ids, was_cut = rows.cut(ids, limit)
    return ids, spans, was_cut or left_out


def encode_arrays(
    tokenizer: Tokenizer, records: Sequence[Record], max_len: int, max_src_len: int, loss_on: str = "last"
) -> rows.FlatRows:
    """Training rows, see `modes.rows.join_rows`. `max_src_len` includes <|user|> and its line end.

    Args:
        loss_on: "last" supervises the last of the assistant's messages, "all" every one.
    """
    records = [CALLS.written(record) for record in records]
    heads = read_heads(tokenizer, records)
    user, assistant = (frame(tokenizer, role, heads) for role in ("user", "assistant"))
    limit = rows.room_for_prompt(max_len, max_src_len, overhead(tokenizer, heads))
    texts, firsts = contents_of(records)
    encoded = rows.encode_all(tokenizer, texts)

    def odd_row(i: int) -> rows.Row:
        return conversation_row(
            tokenizer, records[i], encoded[firsts[i] : firsts[i + 1]], heads, limit, max_len, loss_on
        )

    return rows.join_rows(
        [encoded[first] if is_pair(record) else None for record, first in zip(records, firsts, strict=False)],
        [encoded[first - 1] for first in firsts[1:]],
        before=begin_row(tokenizer) + user,
        behind=assistant,
        unsupervised=0,
        end=tokenizer.eos_token_id,
        limit=limit - len(user),
        max_len=max_len,
        odd_row=odd_row,
    )


def contents_of(records: Sequence[Record]) -> tuple[list[str], list[int]]:
    """(contents of all messages, the index of each record's first message, and at the end their number)."""
    texts: list[str] = []
    firsts = [0]
    for record in records:
        if is_pair(record):
            texts += (record["instruction"] + record.get("input", ""), record["output"])
        else:
            texts += [message["content"] for message in messages_of(record)]
        firsts.append(len(texts))
    return texts, firsts


def conversation_row(
    tokenizer: Tokenizer,
    record: Record,
    encoded: Sequence[np.ndarray],
    heads: Heads,
    limit: int,
    max_len: int,
    loss_on: str,
) -> rows.Row:
    """Training row of a record of any form.

    Args:
        encoded: ids of each message's content.
        limit: maximum ids between the start of a row and the last <|assistant|>.
    """
    before, answer = split_answer(record)
    assert answer is not None, "a record to train on ends with an answer"
    *contents, answer_ids = [ids.tolist() for ids in encoded]
    front = begin_row(tokenizer)
    spans: list[tuple[int, int]] = []
    last: list[int] = []
    if is_ready(record):
        source, was_cut = rows.cut(contents[-1], limit, ready_marker(tokenizer, record))
    else:
        source, spans, was_cut = join(tokenizer, before, contents, heads, limit)
        last = frame(tokenizer, answer["role"], heads, answer.get("metadata", ""))
    at = len(front)
    earlier = [(at + start, min(at + end + 1, at + len(source))) for start, end in spans if loss_on == "all"]
    prompt = front + source + last
    return rows.row(prompt, at + len(source), answer_ids, tokenizer.eos_token_id, max_len, was_cut, earlier)


def ready_marker(tokenizer: Tokenizer, record: Record) -> list[int]:
    """Ids at the end of every prompt without a template."""
    text = rows.last_line(split_answer(record)[0][-1]["content"])
    return rows.ids_without_space(tokenizer, text) if text else []


def prompt_ids(
    tokenizer: Tokenizer, record: Record, max_src_len: int | None = None, max_len: int | None = None
) -> list[int]:
    """All ids before the first answer token; with the limits of training, the same ids as in training.

    With tools the prompt ends with <|assistant|>, because the next line is the tool's name.
    """
    record = CALLS.written(record)
    heads = read_heads(tokenizer, [record])
    limit = rows.prompt_limit(max_len, max_src_len, overhead(tokenizer, heads))
    before, _ = split_answer(record)
    contents = tokenizer.encode_texts([message["content"] for message in before], num_threads=1)
    front = begin_row(tokenizer)
    if is_ready(record):
        return front + rows.cut(contents[-1], limit, ready_marker(tokenizer, record))[0]
    source = join(tokenizer, before, contents, heads, limit)[0]
    calls = any(m.get("tools") or m.get("metadata") or m["role"] == "observation" for m in before)
    last = frame(tokenizer, "assistant", heads)
    return front + source + (last[:1] if calls else last)


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: the end token, and the roles of a next message."""
    return [tokenizer.eos_token_id, tokenizer.get_command("<|user|>"), tokenizer.get_command("<|observation|>")]


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids before the end token or the next role; a tool call is NAME, a line end, the call."""
    text = tokenizer.decode(rows.until_stop(ids, stop_ids(tokenizer)))
    call = tidy_call(text)
    if call is not None:
        return call
    return without_empty_line(text)
