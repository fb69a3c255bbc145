"""ChatGLM-6B: the official config keys."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from errors import UserError
from modes import prefix, quantization

# Official switches that no maintained release uses: {key: the one value this implementation has}.
FIXED = {"position_encoding_2d": True, "quantization_embeddings": False, "tie_word_embeddings": True}


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
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
        "num_key_value_heads": "num_attention_heads",
    }

    num_layers: int = 28
    vocab_size: int = 130528
    hidden_size: int = 4096
    inner_hidden_size: int | None = None
    num_attention_heads: int = 32
    max_sequence_length: int = 2048
    layernorm_epsilon: float = 1e-5
    position_encoding_2d: bool = True
    quantization_bit: int = 0
    quantization_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = None  # releases until May 2023 do not say these two
    gmask_token_id: int | None = None
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    prefix_layers: str = "all"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.inner_hidden_size is None:
            self.inner_hidden_size = 4 * self.hidden_size
        if self.bos_token_id is None:
            self.bos_token_id = 130004
        if self.mask_token_id is None:
            self.mask_token_id = self.bos_token_id - 4  # [MASK] [gMASK] [sMASK] <unused_0> <sop>, in every release
        if self.gmask_token_id is None:
            self.gmask_token_id = self.bos_token_id - 3
        for key, value in FIXED.items():
            found = getattr(self, key)
            if found != value:
                raise UserError(f"config.json has {key} {found}: only {value} is implemented, use a base that has it.")
        quantization.check_options(self)
        prefix.check_options(self)

    @property
    def head_dim(self):
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads
