"""ChatGLM-6B: official parameter names, two-dimensional rotary positions, bidirectional attention in prompts.

Shapes: b batch, s sequence, t keys (prefix and cache included), h hidden, n heads, d head size, f feed-forward size,
v vocabulary, p prefix length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from modes import prefix
from modes.attention import attend
from modes.glm import positions
from modes.glm.configuration import ChatGLMConfig
from modes.keep import keep_only
from modes.loss import OutputLayer
from modes.model import Body, LanguageModel, Pretrained
from modes.quantization import make_linear
from modes.segments import Segments

# sqrt(2 * layers) of the released model. In the official code 28 layers are a default that the config never sets, so
# a model of any other depth has this scale, too.
RESIDUAL_SCALE = (2 * 28) ** 0.5


def rotary_tables(
    config: ChatGLMConfig, position_ids: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary angles, computed in float32 (https://arxiv.org/abs/2104.09864).

    The first half of each head is rotated by the position, the second by the block position. The frequencies are
    rounded to half precision first, as in the model's training.

    Args:
        position_ids: [b, 2, s].

    Returns: (cos, sin), each [b, s, 1, d], for `rotate`.
    """
    size = config.head_dim // 2
    steps = torch.arange(0, size, 2, device=position_ids.device, dtype=torch.float32)
    inv_freq = (1.0 / (10000 ** (steps / size))).half().float()  # [d / 4]
    angles = position_ids.transpose(1, 2).float()[:, :, :, None] * inv_freq  # [b, s, 2, d / 4]
    cos, sin = angles.cos(), angles.sin()
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # [b, s, 2, d / 2]
    return cos.flatten(2)[:, :, None].to(dtype), sin.flatten(2)[:, :, None].to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate both halves of each head, in pairs of values at distance d / 4: x is [b, s, heads, d]."""
    first, second = x.unflatten(-1, (2, 2, -1)).split(1, dim=-2)  # [b, s, heads, 2, 1, d / 4] each
    swapped = torch.cat([second, first], dim=-2).flatten(-3)
    return torch.addcmul(x * cos, swapped, sin)


class SelfAttention(nn.Module):
    """Multi-head attention with one fused projection: q, k and v of head 0, then those of head 1, and so on."""

    is_causal = True
    num_key_value_groups = 1  # query heads per key/value head, as transformers' attention functions name it

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.query_key_value = make_linear(config, config.hidden_size, 3 * config.hidden_size)
        self.dense = make_linear(config, config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | Segments | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        prefix_key: torch.Tensor | None,
        prefix_value: torch.Tensor | None,
        keep: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (self.config.num_attention_heads, 3, -1))  # [b, s, n, 3, d]
        query, key, value = qkv.unbind(dim=3)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [b, n, s, d]
        x = attend(self, query, key, value, mask, prefix_key, prefix_value, cache)  # [b, s, n * d]
        return self.dense(keep_only(x, keep))  # [b, s, h]


class MLP(nn.Module):
    """Two projections with a tanh-approximated GELU between them."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = make_linear(config, config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = make_linear(config, config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class GLMBlock(GradientCheckpointingLayer):
    """One layer. Tensors are positional arguments, so that gradient checkpointing finds those that need gradients.

    keep: the tokens to compute after attention, see modes/keep.py.
    """

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | Segments | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        prefix_key: torch.Tensor | None = None,
        prefix_value: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        # The residual is the scaled normalized input, not the input itself.
        normed = self.input_layernorm(x)
        x = self.attention(normed, mask, cos, sin, prefix_key, prefix_value, keep, past_key_values)
        x = torch.add(x, keep_only(normed, keep), alpha=RESIDUAL_SCALE)
        normed = self.post_attention_layernorm(x)
        return torch.add(self.mlp(normed), normed, alpha=RESIDUAL_SCALE)  # [b, s, h]


class ChatGLMPreTrainedModel(Pretrained):
    config_class = ChatGLMConfig
    config: ChatGLMConfig
    # no _supports_flash_attn: it has no bidirectional attention within prompts
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # in official files; computed here


class ChatGLMModel(ChatGLMPreTrainedModel, Body):
    """Everything up to the final hidden states."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        if config.pre_seq_len:
            width = config.hidden_size if prefix.is_embedding(config) else 2 * config.num_layers * config.hidden_size
            self.prefix_encoder = prefix.PrefixEncoder(
                config.pre_seq_len, width, config.prefix_projection, config.hidden_size, config.hidden_size
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.word_embeddings = value

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, lowest first."""
        return self.layers

    @property
    def last_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.final_layernorm

    def make_positions(
        self, input_ids: torch.Tensor | None, x: torch.Tensor, attention_mask: torch.Tensor | None, seen: int
    ) -> torch.Tensor:
        """Positions [b, 2, s] of whole rows. Raises ValueError for anything else."""
        if input_ids is None or seen:
            raise ValueError("Positions come from whole input_ids: pass position_ids [b, 2, s] with anything else.")
        return positions.from_ids(input_ids, attention_mask, self.config)

    def mask_options(
        self, position_ids: torch.Tensor, given: torch.Tensor | None, seen: int
    ) -> dict[str, torch.Tensor | None]:
        """Prompt tokens have bidirectional attention; tokens after a cache belong to the answer and are causal."""
        # [b, s], 0 prompt, -1 answer
        return {"block_sequence_ids": None if seen else (position_ids[:, 1] == 0).long() - 1}

    def rotary_tables(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """See the function of this name."""
        return rotary_tables(self.config, position_ids, dtype)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, LanguageModel):
    """The language model: `ChatGLMModel` and its output layer, a loss, and transformers' generation."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head: nn.Linear = OutputLayer(config.hidden_size, config.vocab_size)
        self.post_init()
        # transformers ties in post_init only if it also initializes, which ZeRO-3 loading skips.
        self.lm_head.weight = self.transformer.word_embeddings.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    # transformers' generation has one-dimensional positions; these three methods replace them by [b, 2, tokens so far].

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        return positions.from_ids(inputs_tensor, model_kwargs.get("attention_mask"), self.config)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        position_ids = model_kwargs.pop("position_ids", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if position_ids is not None:
            model_kwargs["position_ids"] = position_ids.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        position_ids = model_kwargs.pop("position_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        following = positions.following(position_ids, num_new_tokens)
        model_kwargs["position_ids"] = torch.cat([position_ids, following], dim=-1)
        return model_kwargs
