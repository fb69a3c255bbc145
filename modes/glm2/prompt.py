"""ChatGLM2-6B: [gMASK] sop [Round 1]\\n\\n问：…\\n\\n答： answer </s>, with answer and </s> supervised."""

from conversation import is_pair, is_ready, split_answer
from modes import rows

TEMPLATE = "[Round 1]\n\n问：{instruction}{input}\n\n答："
MARKER = "\n\n答："  # what tells the model that its turn has come
OVERHEAD = 2  # [gMASK] sop


def prompt_text(record, left_out=0):
    """The source of a record without its oldest rounds, as the official `build_prompt` writes a chat.

    Without the system text too where all rounds would be left out: the last one never is.
    """
    if is_pair(record):
        return f"[Round 1]\n\n问：{record['instruction']}{record.get('input', '')}{MARKER}"
    messages, _ = split_answer(record)
    if is_ready(record):
        return messages[-1]["content"]
    system, rounds = rows.rounds_of(messages)
    if left_out == len(rounds):
        system, left_out = "", left_out - 1
    *history, (question, _) = rounds[left_out:]
    text = f"{system}\n\n" if system else ""
    text += "".join(f"[Round {n}]\n\n问：{q}\n\n答：{a}\n\n" for n, (q, a) in enumerate(history, 1))
    return f"{text}[Round {len(history) + 1}]\n\n问：{question}{MARKER}"


def assemble(tokenizer, record, source, limit):
    """A record's source ids within `limit` (None: no limit), behind [gMASK] sop; and whether they were cut."""
    source, was_cut = rows.fit(tokenizer, record, prompt_text, source, limit, MARKER)
    return tokenizer.get_prefix_tokens() + source, was_cut


def encode_batch(tokenizer, records, max_len, max_src_len, loss_on="last", flat=False):
    """Training rows of records, see `rows.row`. Supervised is the last answer: `loss_on` all needs a row for each.

    Args:
        flat: as the arrays of `rows.join_rows`, which costs less than lists.
    """
    limit = rows.room_for_prompt(max_len, max_src_len, OVERHEAD)
    texts = [prompt_text(record) for record in records] + [rows.last_answer(record) for record in records]
    ids = rows.encode_all(tokenizer, texts)
    sources, answers, end = ids[: len(records)], ids[len(records) :], tokenizer.eos_token_id

    def cut_row(i):
        prompt, was_cut = assemble(tokenizer, records[i], sources[i].tolist(), limit)
        return rows.row(prompt, len(prompt), answers[i].tolist(), end, max_len, was_cut)

    joined = rows.join_rows(
        sources,
        answers,
        before=tokenizer.get_prefix_tokens(),
        behind=(),
        unlearnt=0,
        end=end,
        limit=limit,
        max_len=max_len,
        odd_row=cut_row,
    )
    return joined if flat else rows.as_lists(joined)


def encode(tokenizer, record, max_len, max_src_len):
    """Training row of one record, see `rows.row`."""
    return encode_batch(tokenizer, [record], max_len, max_src_len)[0]


def prompt_ids(tokenizer, record, max_src_len=None, max_len=None):
    """Every id in front of the first answer token; with the limits of training, the ids of training."""
    source = tokenizer.encode_texts([prompt_text(record)], num_threads=1)[0]
    return assemble(tokenizer, record, source, rows.prompt_limit(max_len, max_src_len, OVERHEAD))[0]


def stop_ids(tokenizer):
    """Ids that end an answer."""
    return [tokenizer.eos_token_id]


def answer_text(tokenizer, ids):
    """The text of generated ids, up to the end token."""
    return tokenizer.decode(rows.until_stop(ids, stop_ids(tokenizer)))
