"""ChatGLM2-6B and ChatGLM3-6B as transformers' GlmForCausalLM, which computes the same to the last bit in float32.

Its attention has three projections with the rows of the official fused one: all of q, then k, then v.
"""

from collections.abc import Mapping
from typing import Any

from errors import UserError
from modes.config import Config
from modes.glm2.configuration import ROTARY_BASE, ChatGLMConfig
from modes.hf_layout import HfLayout
from texts import quote

PARTIAL_ROTARY = 0.5  # of a head is rotated
LARGEST = 1e12  # number in the rotary keys
TOP = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
}
IN_LAYER = {
    "input_layernorm": ("input_layernorm",),
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.dense": ("self_attn.o_proj",),
    "post_attention_layernorm": ("post_attention_layernorm",),
    "mlp.dense_h_to_4h": ("mlp.gate_up_proj",),
    "mlp.dense_4h_to_h": ("mlp.down_proj",),
}
BIASED = "self_attention.query_key_value"
# GlmForCausalLM's key -> the official one
KEYS = {
    "num_hidden_layers": "num_layers",
    "vocab_size": "padded_vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "head_dim": "kv_channels",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "multi_query_group_num",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon",
    "attention_bias": "add_qkv_bias",
    "initializer_range": "initializer_range",
}
KEPT = ("pad_token_id", "bos_token_id", "eos_token_id", "torch_dtype", "dtype", "use_cache", "_name_or_path")


def names(config: Config) -> Mapping[str, tuple[str, ...]]:
    """See `HfLayout.names`."""
    table: dict[str, tuple[str, ...]] = {f"{name}.weight": (f"{hf}.weight",) for name, hf in TOP.items()}
    for i in range(config.num_layers):
        for name, parts in IN_LAYER.items():
            for leaf in ("weight", "bias") if name == BIASED else ("weight",):
                official = f"transformer.encoder.layers.{i}.{name}.{leaf}"
                table[official] = tuple(f"model.layers.{i}.{part}.{leaf}" for part in parts)
    return table


def part_rows(config: Config) -> tuple[int, ...]:
    """Rows of q, k and v."""
    assert isinstance(config, ChatGLMConfig)
    width = config.multi_query_group_num * config.kv_channels
    return config.num_attention_heads * config.kv_channels, width, width


def to_hf(config: Config) -> dict[str, Any]:
    """See `HfLayout.to_hf`. Rotary keys are at the top level for older readers, too."""
    assert isinstance(config, ChatGLMConfig)
    if config.add_bias_linear:
        raise UserError(
            "config.json has add_bias_linear true, which GlmForCausalLM cannot compute: use --format official."
        )
    base, divisor = config.rotary_scale
    rope: dict[str, Any] = {"rope_type": "default"}
    if divisor != 1:
        rope = {"rope_type": "linear", "factor": float(divisor)}
    return {
        **{key: vars(config)[official] for key, official in KEYS.items()},
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "partial_rotary_factor": PARTIAL_ROTARY,
        "rope_theta": float(base),
        **({"rope_scaling": rope} if divisor != 1 else {}),
        "rope_parameters": {**rope, "rope_theta": float(base), "partial_rotary_factor": PARTIAL_ROTARY},
    }


def to_official(keys: Mapping[str, Any]) -> dict[str, Any]:
    """See `HfLayout.to_official`."""
    missing = [key for key in KEYS if key not in keys]
    if missing:
        raise UserError(f"config.json has no {missing[0]}, which {LAYOUT.architecture} needs: download it again.")
    _, ratio = read_rotary(keys)
    official = {official: keys[key] for key, official in KEYS.items()}
    kept = {key: keys[key] for key in KEPT if key in keys}
    return {**kept, **official, "rope_ratio": int(ratio) if ratio.is_integer() else ratio, "model_type": "chatglm"}


def check(config: Config, keys: Mapping[str, Any]) -> None:
    """See `HfLayout.check`: only the rotary angles differ between the generations of this layout."""
    ours, theirs = read_rotary(to_hf(config)), read_rotary(keys)
    if ours != theirs:
        raise UserError(f"config.json has rotary angles {theirs}, the generation computes {ours}: use another base.")


def read_rotary(keys: Mapping[str, Any]) -> tuple[str, float]:
    """("default", factor of the base 10000) or ("linear", divisor of the positions), of today's keys or older ones.

    Raises UserError for any other.
    """
    parts = [keys.get("rope_scaling") or {}, keys.get("rope_parameters") or {}]
    rope = {**keys, **{key: value for part in parts if isinstance(part, dict) for key, value in part.items()}}
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta", ROTARY_BASE)
    factor, fraction = rope.get("factor", 1), rope.get("partial_rotary_factor", PARTIAL_ROTARY)
    numbers = all(type(value) in (int, float) and 0 < value < LARGEST for value in (theta, factor))
    if kind == "default" and numbers and fraction == PARTIAL_ROTARY:
        return kind, theta / ROTARY_BASE
    if kind == "linear" and numbers and (theta, fraction) == (ROTARY_BASE, PARTIAL_ROTARY):
        return kind, float(factor)
    raise UserError(
        f"config.json has rope_type {quote(kind)}, rope_theta {quote(theta)}, factor {quote(factor)} and "
        f"partial_rotary_factor {quote(fraction)}, which is not implemented: use another base."
    )


LAYOUT = HfLayout(
    architecture="GlmForCausalLM",
    model_type="glm",
    names=names,
    part_rows=part_rows,
    to_hf=to_hf,
    to_official=to_official,
    check=check,
)
