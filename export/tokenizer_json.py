"""A sentencepiece model as tokenizer.json of Hugging Face tokenizers: the same ids for the same text.

    write_tokenizer(base, directory)
    AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, add_generation_prompt=True)

Sentencepiece's BPE merges the two neighbors whose union has the highest score, the leftmost first; tokenizers merges
by the rank of a pair. So the merges are all pairs whose union is a piece, by the score of the union.

In rendered chats the names of special tokens are ids. In a message they stay text, because the chat template marks them
(`modes.chat_template.marked`) and the normalizer, which sees only text between special tokens, removes the mark.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from errors import UserError
from export.vocabulary import NORMAL, read_model, read_pieces
from files import write_json, write_text
from modes.chat_template import marked
from modes.directory import Base
from modes.tokenizer import Tokenizer

SPACE = "▁"  # in pieces
# A special token is recognized anywhere in a text, and these two are parts of words such as "philosophy".
RENAMED = {"sop": "<sop>", "eop": "<eop>"}
UNK, END = "<unk>", "</s>"
START = ("[gMASK]", RENAMED["sop"])


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> id of the special tokens, by id."""
    named = {RENAMED.get(name, name): index for name, index in tokenizer.markers.items()}
    return {UNK: tokenizer.unk_token_id, **dict(sorted(named.items(), key=lambda item: item[1]))}


def chat_template_of(base: Base) -> str:
    """The chat template for the tokenizer of `write_tokenizer`."""
    return base.generation.chat_template(RENAMED["sop"], END, list(special_tokens(base.make_tokenizer())))


def check_tokenizer(base: Base) -> None:
    """Raise UserError if tokenizers splits a piece of the vocabulary differently, alone or after another."""
    fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(base)))
    texts = [piece.replace(SPACE, " ") for piece in read_pieces(base)]
    texts += [left + right for left, right in zip(texts, texts[::-1], strict=True)]
    fast.encode_special_tokens = True
    ours = base.make_tokenizer().encode_texts(texts)
    theirs = fast.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, encoding in zip(texts, ours, theirs, strict=True):
        if ids != encoding.ids:
            raise UserError(f"{base.vocabulary} splits {text!r} as no tokenizer.json can: use --format official.")


def write_tokenizer(base: Base, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and tokenizer.model.

    Args:
        base: one that passed `check_tokenizer`.
    """
    write_json(directory / "tokenizer.json", tokenizer_json(base))
    write_json(directory / "tokenizer_config.json", _tokenizer_config(base))
    write_text(directory / "chat_template.jinja", chat_template_of(base))
    shutil.copyfile(base.vocabulary, directory / base.vocabulary.name)


def _merges(scores: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, in the order in which sentencepiece merges them.

    Args:
        scores: of the pieces of text, by piece.
    """
    for piece in sorted(scores, key=lambda piece: -scores[piece]):  # stable: equal scores by id
        # Pairs of the same union overlap only with the longer part on the left, as in "ab" "a" "ba": leftmost first.
        for length in range(len(piece) - 1, 0, -1):
            left, right = piece[:length], piece[length:]
            if left in scores and right in scores:
                yield left, right


def tokenizer_json(base: Base) -> dict[str, Any]:
    """The content of tokenizer.json.

    Raises:
        UserError: the sentencepiece model is of another kind than the official one.
    """
    model, special = read_model(base), special_tokens(base.make_tokenizer())
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": name, **flags} for name, index in special.items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *(_replace(marked(name), name) for name in special),
                {"type": "Prepend", "prepend": SPACE},
                _replace(" ", SPACE),
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _post_processor(special),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace(SPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.trainer_spec.byte_fallback,
            "ignore_merges": False,
            "vocab": {piece.piece: index for index, piece in enumerate(model.pieces)},
            "merges": [list(pair) for pair in _merges(scores)],
        },
    }


def _replace(text: str, content: str) -> dict[str, Any]:
    """A step that replaces a text."""
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _post_processor(special: dict[str, int]) -> dict[str, Any]:
    """[gMASK] <sop> A, or for a pair [gMASK] <sop> A B </s>, as the official tokenizer encodes."""
    front = [{"SpecialToken": {"id": name, "type_id": 0}} for name in START]
    first, second = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*front, first],
        "pair": [*front, first, second, {"SpecialToken": {"id": END, "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [special[name]], "tokens": [name]} for name in (*START, END)},
    }


def _tokenizer_config(base: Base) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "eos_token": END,
        "unk_token": UNK,
        "pad_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": base.make_config().max_position_embeddings,
    }
