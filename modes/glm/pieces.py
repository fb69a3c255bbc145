"""The sentencepiece model of ChatGLM-6B; that of the first release is completed in memory."""

from pathlib import Path

import sentencepiece

LONGEST_BLANK = 80
LINE_END, TAB = "<n>", "<|tab|>"
COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # ModelProto.SentencePiece.Type in sentencepiece_model.proto


def blank(length: int) -> str:
    """The piece for a run of `length` spaces, 2 to LONGEST_BLANK."""
    return f"<|blank_{length}|>"


# Pieces that the official code of March 2023 appends, in order: ids 150000 to 150343 after 20,000 image tokens.
APPENDED = (
    *((piece, CONTROL) for piece in COMMANDS),
    *((piece, USER_DEFINED) for piece in (TAB, *map(blank, range(2, LONGEST_BLANK + 1)))),
    *((f"<0x{value:02X}>", BYTE) for value in range(256)),
)


def load_pieces(file: str) -> sentencepiece.SentencePieceProcessor:
    """The SentencePieceProcessor of ice_text.model.

    The file of the first release has 130,000 pieces, and none of those in APPENDED: its code appends them in memory.
    A file that has some of them is not changed.

    Raises RuntimeError or OSError, as sentencepiece does, if the file is not a model.
    """
    model = sentencepiece.SentencePieceProcessor(model_file=file)
    if any(model.piece_to_id(piece) != model.unk_id() for piece, _ in APPENDED):
        return model
    # slow to import, and only needed for this release; sentencepiece's own needs the newest protobuf
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(file).read_bytes())
    for piece, kind in APPENDED:
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    proto.trainer_spec.byte_fallback = True
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
