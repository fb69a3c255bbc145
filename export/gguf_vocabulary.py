"""The vocabulary of a GGUF file: sentencepiece's pieces, the commands after them, and ids without a meaning."""

from collections import Counter
from dataclasses import dataclass

from errors import UserError
from export.vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, read_model
from modes.directory import Base

# llama.cpp recognizes the names of special tokens in a prompt, users' text included. <s> and </s> are HTML, and the
# bare words are parts of others, such as "people".
NAMES = {"<unk>": "<|unk|>", "<s>": "<|startoftext|>", "</s>": "<|endoftext|>", "sop": "<sop>", "eop": "<eop>"}
LAST = -1e9  # score of what is no piece of text: llama.cpp merges characters to any token, by score


@dataclass(frozen=True)
class Vocabulary:
    """Text, score and type of every id."""

    texts: list[str]
    scores: list[float]
    types: list[int]


def read_vocabulary(base: Base) -> Vocabulary:
    """The vocabulary of a base, as long as its embedding."""
    pieces = read_model(base).pieces
    texts = [
        NAMES.get(piece.piece, piece.piece) if piece.type in (UNKNOWN, CONTROL) else piece.piece for piece in pieces
    ]
    types = [piece.type for piece in pieces]
    scores = [piece.score if piece.type == NORMAL else LAST for piece in pieces]
    commands = {index: name for name, index in base.make_tokenizer().markers.items()}
    for index in range(len(pieces), base.make_config().vocab_size):
        name = commands.get(index)
        texts.append(NAMES.get(name, name) if name else f"[PAD{index}]")
        types.append(CONTROL if name else UNUSED)
        scores.append(LAST)
    return Vocabulary(texts, scores, types)


def check_vocabulary(base: Base) -> None:
    """Raise UserError unless llama.cpp tokenizes as the sentencepiece model of a base does."""
    name, count = Counter(read_vocabulary(base).texts).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{base.vocabulary} has a piece {name!r}, the name of a special token in GGUF: use --format hf."
        )
