"""ChatGLM2-6B: [gMASK] sop [Round 1]\\n\\n问：…\\n\\n答： answer </s>, with answer and </s> supervised."""

from modes import rows

TEMPLATE = "[Round 1]\n\n问：{instruction}{input}\n\n答："
MARKER = "\n\n答："  # what tells the model that its turn has come
OVERHEAD = 2  # [gMASK] sop


def prompt_text(record):
    return f"[Round 1]\n\n问：{rows.question(record)}{MARKER}"


def assemble(tokenizer, source, limit):
    """Source ids cut to `limit` (None: as they are), with all that stands around them. Returns (prompt, was cut)."""
    source, was_cut = rows.cut(source, limit, rows.ids_without_space(tokenizer, MARKER))
    return tokenizer.get_prefix_tokens() + source, was_cut


def encode_batch(tokenizer, records, max_len, max_src_len):
    """Training rows of records, see `rows.row`."""
    limit = rows.room_for_prompt(max_len, max_src_len, OVERHEAD)
    sources, answers = rows.encode_pairs(tokenizer, [prompt_text(r) for r in records], [r["output"] for r in records])
    result = []
    for source, answer in zip(sources, answers, strict=True):
        prompt, was_cut = assemble(tokenizer, source, limit)
        result.append(rows.row(prompt, len(prompt), answer, tokenizer.eos_token_id, max_len, was_cut))
    return result


def encode(tokenizer, record, max_len, max_src_len):
    """Training row of one record, see `rows.row`."""
    return encode_batch(tokenizer, [record], max_len, max_src_len)[0]


def prompt_ids(tokenizer, record, max_src_len=None, max_len=None):
    """Every id in front of the first answer token; with the limits of training, the ids of training."""
    source = tokenizer.encode_texts([prompt_text(record)], num_threads=1)[0]
    return assemble(tokenizer, source, rows.prompt_limit(max_len, max_src_len, OVERHEAD))[0]


def stop_ids(tokenizer):
    """Ids that end an answer."""
    return [tokenizer.eos_token_id]


def answer_text(tokenizer, ids):
    """The text of generated ids, up to the end token."""
    return tokenizer.decode(rows.until_stop(ids, stop_ids(tokenizer)))
