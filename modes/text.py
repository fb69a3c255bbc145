"""Preparation of texts for sentencepiece, and the bytes of its pieces."""

import re

import sentencepiece

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Replace halves of surrogate pairs (from JSON such as "\\ud83d") by U+FFFD, because they have no UTF-8."""
    return LONE_SURROGATE.sub("\ufffd", text)


def piece_bytes(model: sentencepiece.SentencePieceProcessor) -> list[bytes]:
    """UTF-8 of every piece as part of a decoded text, by id; b"" for pieces without text, such as <s>."""
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    return [
        b""
        if model.is_control(i) or model.is_unknown(i) or model.is_unused(i)
        else bytes([int(piece[1:-1], 16)])  # <0x41>
        if model.is_byte(i)
        else piece.replace("▁", " ").encode()
        for i, piece in enumerate(pieces)
    ]
