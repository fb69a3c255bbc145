"""ChatGLM2-6B: the official config keys."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from modes.config import Config

ROTARY_BASE = 10000


@strict
class ChatGLMConfig(Config):
    """Defaults are those of the official configuration class."""

    attribute_map = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "head_dim": "kv_channels",
        "num_key_value_heads": "multi_query_group_num",
        "intermediate_size": "ffn_hidden_size",
    }
    fixed: ClassVar[dict[str, object]] = {
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "multi_query_attention": True,
        "post_layer_norm": True,
        "fp32_residual_connection": False,
    }

    padded_vocab_size: int = 65024
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    multi_query_group_num: int = 1
    seq_length: int = 2048
    rope_ratio: int | float = 1
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    multi_query_attention: bool = True
    post_layer_norm: bool = True
    fp32_residual_connection: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def rotary_scale(self) -> tuple[float, float]:
        """(base of the rotary angles, divisor of the positions).

        `rope_ratio` of the release for 32k tokens divides the positions.
        """
        return ROTARY_BASE, self.rope_ratio
