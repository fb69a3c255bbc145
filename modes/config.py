"""The shared base of all generations' configs; each folder has the official keys."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from errors import UserError

BITS = (0, 4, 8)  # valid `quantization_bit`; 0 is not quantized
PREFIX_LAYERS = ("all", "embedding")  # valid `prefix_layers`


@strict
class Config(PreTrainedConfig):
    """Keys of every generation.

    `quantization_bit` is described in modes/quantization.py; `pre_seq_len`, `prefix_projection` and `prefix_layers` in
    modes/prefix.py. The last one is ours, all others are official.

    Raises UserError for an official switch that is not implemented, and for an invalid value of these keys.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    # official switches that no release uses: {key: the only implemented value}
    fixed: ClassVar[dict[str, object]] = {}

    num_layers: int = 28
    hidden_size: int = 4096
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    quantization_bit: int = 0
    initializer_range: float = 0.02
    use_cache: bool = True
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    prefix_layers: str = "all"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        for key, required in self.fixed.items():
            value = getattr(self, key)
            if value != required:
                raise UserError(
                    f"config.json has {key} {value}: only {required} is implemented, use a base that has it."
                )
        if self.quantization_bit not in BITS:
            raise UserError(
                f"config.json has quantization_bit {self.quantization_bit}: only 0, 4 and 8 are implemented, use a "
                "base that has one of them."
            )
        if self.prefix_layers not in PREFIX_LAYERS:
            raise UserError(f'prefix_layers is {self.prefix_layers!r}: use "all" or "embedding".')
        if self.pre_seq_len is not None and self.pre_seq_len < 0:
            raise UserError(f"pre_seq_len is {self.pre_seq_len}: use a length of 1 or more, or 0 for no prefix.")
