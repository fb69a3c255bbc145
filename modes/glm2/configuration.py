"""ChatGLM2-6B: the official config keys."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from errors import UserError
from modes import prefix, quantization

# Official switches that no release uses: {key: the one value this implementation has}.
FIXED = {
    "rmsnorm": True,
    "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True,
    "post_layer_norm": True,
    "fp32_residual_connection": False,
}
ROTARY_BASE = 10000


@strict
class ChatGLMConfig(PreTrainedConfig):
    """Defaults are those of the official configuration class.

    `pre_seq_len`, `prefix_projection` and `prefix_layers` are described in modes/prefix.py; the last one is ours.
    Raises UserError for an official switch that this implementation does not have.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "head_dim": "kv_channels",
        "num_key_value_heads": "multi_query_group_num",
        "intermediate_size": "ffn_hidden_size",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_group_num: int = 1
    seq_length: int = 2048
    layernorm_epsilon: float = 1e-5
    rope_ratio: int | float = 1
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    multi_query_attention: bool = True
    post_layer_norm: bool = True
    fp32_residual_connection: bool = False
    quantization_bit: int = 0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    prefix_layers: str = "all"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for key, value in FIXED.items():
            found = getattr(self, key)
            if found != value:
                raise UserError(f"config.json has {key} {found}: only {value} is implemented, use a base that has it.")
        quantization.check_options(self)
        prefix.check_options(self)

    @property
    def rotary_scale(self):
        """(base of the rotary angles, what positions are divided by).

        `rope_ratio` of the release for 32k tokens divides the positions.
        """
        return ROTARY_BASE, self.rope_ratio
