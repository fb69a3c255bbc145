"""ChatGLM-6B: [Round 1]\\n问：…\\n答： [gMASK] <sop> answer <eop>, supervised from <sop> on."""

from conversation import is_pair, is_ready, split_answer
from modes import rows

TEMPLATE = "[Round 1]\n问：{instruction}{input}\n答："
MARKER = "\n答："  # what tells the model that its turn has come
OVERHEAD = 2  # [gMASK] <sop>


def prompt_text(record, left_out=0):
    """The source of a record without its oldest rounds.

    The official code counts the rounds of a record with a history from 0, even if the history is an empty list. What
    has no history and a single question is [Round 1]. Without the system text too where all rounds would be left out:
    the last one never is.
    """
    if is_pair(record):
        return f"[Round 1]\n问：{record['instruction']}{record.get('input', '')}{MARKER}"
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
    return f"{text}[Round {first + len(history)}]\n问：{question}{MARKER}"


def assemble(tokenizer, record, source, limit):
    """A record's source ids within `limit` (None: no limit), [gMASK] <sop> behind them; and whether they were cut."""
    source, was_cut = rows.fit(tokenizer, record, prompt_text, source, limit, MARKER)
    return source + [tokenizer.gmask_token_id, tokenizer.bos_token_id], was_cut


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
        return rows.row(prompt, len(prompt) - 1, answers[i].tolist(), end, max_len, was_cut)

    joined = rows.join_rows(
        sources,
        answers,
        before=(),
        behind=[tokenizer.gmask_token_id, tokenizer.bos_token_id],
        unlearnt=1,
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
