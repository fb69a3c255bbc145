"""Chat templates in Jinja, for tokenizers of transformers and for engines: the same ids as `Mode.prompt_ids`.

A template is three parts: names of tokens, which depend on the tokenizer; macros; and the generation's
`chat_template.jinja`. It takes messages in OpenAI's format, as transformers' `apply_chat_template` does.
"""

import json
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
FILE = "chat_template.jinja"  # in a generation's folder
MACROS = "chat_macros.jinja"
# Put into the name of a special token in a message, which so stays text. A noncharacter: no text contains it.
MARK = "\ufdd0"


def marked(name: str) -> str:
    """The name of a special token in a rendered message, which the tokenizer encodes as text without the mark."""
    return name[0] + MARK + name[1:]


def chat_template(mode: str, sop: str, end: str, special: Sequence[str], spaced_answers: bool) -> str:
    """The template of a generation.

    Args:
        mode: its name.
        sop: name that the tokenizer recognizes as sop in rendered text; "" if it adds [gMASK] and sop itself.
        end: name that it recognizes as the end of an answer.
        special: names that the tokenizer recognizes in rendered text; in messages they are `marked`.
        spaced_answers: whether the engine returns answers with the space that sentencepiece adds in front, so that
            answers in messages may have it.
    """
    names = {"sop": sop, "end": end, "mark": MARK, "special": list(special), "spaced_answers": int(spaced_answers)}
    head = "".join(f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in names.items())
    files = (FOLDER / MACROS, FOLDER / mode / FILE)
    return head + "".join(file.read_text(encoding="utf-8") for file in files)
