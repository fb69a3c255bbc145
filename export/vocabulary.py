"""The sentencepiece model of a base, and whether other tokenizers can split text as it does."""

from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

from errors import UserError
from modes.directory import Base

# Types of pieces in sentencepiece_model.proto, and of tokens in GGUF.
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
BPE = 2  # TrainerSpec.ModelType


def read_model(base: Base) -> sentencepiece_model_pb2.ModelProto:
    """The sentencepiece model.

    Raises:
        UserError: it is not a BPE model that changes no character of a text but spaces, as the official one is.
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(base.vocabulary.read_bytes())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    is_official = (
        trainer.model_type == BPE
        and trainer.byte_fallback
        and normalizer.add_dummy_prefix
        and normalizer.escape_whitespaces
        and not normalizer.remove_extra_whitespaces
        and not normalizer.precompiled_charsmap
        and {piece.type for piece in model.pieces} <= {NORMAL, UNKNOWN, CONTROL, BYTE}
    )
    if not is_official:
        raise UserError(f"{base.vocabulary} is not a BPE model like the official one: use --format official.")
    return model


def read_pieces(base: Base) -> list[str]:
    """All pieces of the sentencepiece model, by id."""
    return [piece.piece for piece in read_model(base).pieces]
