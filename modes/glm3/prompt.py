"""ChatGLM3-6B: [gMASK] sop <|user|> \\n … <|assistant|> \\n answer </s>, supervised from <|assistant|> on."""

from modes import rows

TEMPLATE = "<|user|>\n{instruction}{input}<|assistant|>\n"


def frame(tokenizer):
    """What stands around the text: (<|user|> and line end, <|assistant|> and line end), as ids."""
    line_end = tokenizer.encode_texts(["\n"], num_threads=1)[0]
    return (
        [tokenizer.get_command("<|user|>")] + line_end,
        [tokenizer.get_command("<|assistant|>")] + line_end,
    )


def encode_batch(tokenizer, records, max_len, max_src_len):
    """Training rows of records, see `rows.row`. `max_src_len` counts <|user|> and its line end too."""
    user, assistant = frame(tokenizer)
    front = tokenizer.get_prefix_tokens()
    limit = rows.room_for_prompt(max_len, max_src_len, len(front) + len(assistant))
    sources, answers = rows.encode_pairs(tokenizer, [rows.question(r) for r in records], [r["output"] for r in records])
    result = []
    for source, answer in zip(sources, answers, strict=True):
        source, was_cut = rows.cut(user + source, limit)
        prompt = front + source
        supervised_from = len(prompt)
        prompt = prompt + assistant
        result.append(rows.row(prompt, supervised_from, answer, tokenizer.eos_token_id, max_len, was_cut))
    return result


def encode(tokenizer, record, max_len, max_src_len):
    """Training row of one record, see `rows.row`."""
    return encode_batch(tokenizer, [record], max_len, max_src_len)[0]


def prompt_ids(tokenizer, record, max_src_len=None, max_len=None):
    """Every id in front of the first answer token; with the limits of training, the ids of training."""
    user, assistant = frame(tokenizer)
    front = tokenizer.get_prefix_tokens()
    limit = rows.prompt_limit(max_len, max_src_len, len(front) + len(assistant))
    source = user + tokenizer.encode_texts([rows.question(record)], num_threads=1)[0]
    return front + rows.cut(source, limit)[0] + assistant


def stop_ids(tokenizer):
    """Ids that end an answer: the end token, and the roles that speak next."""
    return [tokenizer.eos_token_id, tokenizer.get_command("<|user|>"), tokenizer.get_command("<|observation|>")]


def answer_text(tokenizer, ids):
    """The text of generated ids, up to the end token or the next role."""
    return tokenizer.decode(rows.until_stop(ids, stop_ids(tokenizer)))
