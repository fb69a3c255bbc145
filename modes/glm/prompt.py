"""ChatGLM-6B: [Round 1]\\n问：…\\n答： [gMASK] <sop> answer <eop>, supervised from <sop>."""

from conversation import Record, is_pair, is_ready, split_answer
from modes import rows
from modes.rounds import RoundPrompt
from modes.tokenizer import Tokenizer

TEMPLATE = "[Round 1]\n问：{instruction}{input}\n答："


def prompt_text(record: Record, left_out: int = 0) -> str:
    """The source of a record without its oldest rounds.

    The official code numbers the rounds of a record with a history from 0, even if the history is an empty list; a
    single question without history is [Round 1]. If all earlier rounds are dropped, the system text is dropped next;
    the last round never is.
    """
    if is_pair(record):
        return f"[Round 1]\n问：{record['instruction']}{record.get('input', '')}\n答："
    messages, _ = split_answer(record)
    if is_ready(record):
        return messages[-1]["content"]
    system, rounds = rows.rounds_of(messages)
    if left_out == len(rounds):
        system, left_out = "", left_out - 1
    rounds = rounds[left_out:]
    first = 0 if len(rounds) > 1 or record.get("has_history") else 1
    *history, (question, _) = rounds
    text = f"{system}\n" if system else ""
    text += "".join(f"[Round {n}]\n问：{q}\n答：{a}\n" for n, (q, a) in enumerate(history, first))
    return f"{text}[Round {first + len(history)}]\n问：{question}\n答："


def no_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids before the text."""
    return []


def begin_answer(tokenizer: Tokenizer) -> list[int]:
    """The ids after the text; <sop> is supervised."""
    return [tokenizer.get_command("[gMASK]"), tokenizer.get_command("<sop>")]


PROMPT = RoundPrompt(prompt_text, "\n答：", before=no_ids, behind=begin_answer, unsupervised=1)
