"""ChatGLM-6B: the official config keys."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from modes.config import Config


@strict
class ChatGLMConfig(Config):
    """Defaults are those of the official configuration class."""

    attribute_map = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
        "num_key_value_heads": "num_attention_heads",
    }
    fixed: ClassVar[dict[str, object]] = {
        "position_encoding_2d": True,
        "quantization_embeddings": False,
        "tie_word_embeddings": True,
    }

    vocab_size: int = 130528
    inner_hidden_size: int | None = None
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    quantization_embeddings: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = None  # missing in releases until May 2023
    gmask_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.inner_hidden_size is None:
            self.inner_hidden_size = 4 * self.hidden_size
        if self.bos_token_id is None:
            self.bos_token_id = 130004
        if self.mask_token_id is None:
            self.mask_token_id = self.bos_token_id - 4  # [MASK] [gMASK] [sMASK] <unused_0> <sop>, in every release
        if self.gmask_token_id is None:
            self.gmask_token_id = self.bos_token_id - 3

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads
