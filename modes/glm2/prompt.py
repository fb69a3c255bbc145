"""ChatGLM2-6B: [gMASK] sop [Round 1]\\n\\n问：…\\n\\n答： answer </s>, with answer and </s> supervised."""

from conversation import Record, is_pair, is_ready, split_answer
from modes import rows
from modes.rounds import RoundPrompt
from modes.tokenizer import Tokenizer

TEMPLATE = "[Round 1]\n\n问：{instruction}{input}\n\n答："


def prompt_text(record: Record, left_out: int = 0) -> str:
    """The source of a record without its oldest rounds, as in the official `build_prompt`.

    If all earlier rounds are dropped, the system text is dropped next; the last round never is.
    """
    if is_pair(record):
        return f"[Round 1]\n\n问：{record['instruction']}{record.get('input', '')}\n\n答："
    messages, _ = split_answer(record)
    if is_ready(record):
        return messages[-1]["content"]
    system, rounds = rows.rounds_of(messages)
    if left_out == len(rounds):
        system, left_out = "", left_out - 1
    *history, (question, _) = rounds[left_out:]
    text = f"{system}\n\n" if system else ""
    text += "".join(f"[Round {n}]\n\n问：{q}\n\n答：{a}\n\n" for n, (q, a) in enumerate(history, 1))
    return f"{text}[Round {len(history) + 1}]\n\n问：{question}\n\n答："


def begin_row(tokenizer: Tokenizer) -> list[int]:
    """The ids before the text, at the start of every sequence."""
    return [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop")]


def no_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids after the text."""
    return []


PROMPT = RoundPrompt(prompt_text, "\n\n答：", before=begin_row, behind=no_ids, unsupervised=0)
