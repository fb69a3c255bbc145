"""ChatGLM2-6B and ChatGLM3-6B: one architecture, official parameter names.

Shapes: b batch, s sequence, t keys (prefix and cache included), h hidden, n query heads, g key/value heads,
d head size, f feed-forward size, v vocabulary, p prefix length.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from modes import prefix
from modes.attention import attend
from modes.glm2.configuration import ChatGLMConfig
from modes.keep import keep_only
from modes.loss import OutputLayer
from modes.model import Body, LanguageModel, Pretrained
from modes.quantization import make_linear
from modes.segments import Segments


class RMSNorm(nn.Module):
    """x / rms(x) * weight (https://arxiv.org/abs/1910.07467), in the input's dtype; no bias."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps).to(x.dtype)


def rotary_tables(
    config: ChatGLMConfig, position_ids: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary angles, computed in float32 (https://arxiv.org/abs/2104.09864).

    Half of each head is rotated; `config.rotary_scale` applies `rope_ratio` of the long releases.

    Args:
        position_ids: [b, s].

    Returns: (cos, sin), each [b, s, 1, d / 4].
    """
    size = config.head_dim // 2
    steps = torch.arange(0, size, 2, device=position_ids.device, dtype=torch.float32)
    base, divisor = config.rotary_scale
    inv_freq = 1.0 / (base ** (steps / size))  # [d / 4]
    angles = (position_ids[:, :, None, None].float() / divisor) * inv_freq  # [b, s, 1, d / 4]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first half of each head, pairs of adjacent values: x is [b, s, heads, d]."""
    rotated, passed = x.chunk(2, dim=-1)
    first, second = rotated.unflatten(-1, (-1, 2)).unbind(-1)  # [b, s, heads, d / 4] each
    rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    return torch.cat([rotated, passed], dim=-1)


class SelfAttention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245); one fused projection: all of q, then k, then v."""

    is_causal = True

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.groups = config.multi_query_group_num
        self.num_key_value_groups = self.heads // self.groups  # as transformers' attention functions name it
        width = self.heads * config.kv_channels
        qkv = width + 2 * self.groups * config.kv_channels
        bias = config.add_bias_linear
        self.query_key_value = make_linear(config, config.hidden_size, qkv, bias=bias or config.add_qkv_bias)
        self.dense = make_linear(config, width, config.hidden_size, bias=bias)

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
        qkv = self.query_key_value(x).unflatten(-1, (-1, self.config.kv_channels))  # [b, s, n + 2g, d]
        query_key, value = qkv.split([self.heads + self.groups, self.groups], dim=2)
        query, key = rotate(query_key, cos, sin).split([self.heads, self.groups], dim=2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [b, n or g, s, d]
        x = attend(self, query, key, value, mask, prefix_key, prefix_value, cache)  # [b, s, n * d]
        return self.dense(keep_only(x, keep))  # [b, s, h]


class MLP(nn.Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202): gate and value come out of one projection."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        bias = config.add_bias_linear
        self.dense_h_to_4h = make_linear(config, config.hidden_size, 2 * config.ffn_hidden_size, bias=bias)
        self.dense_4h_to_h = make_linear(config, config.ffn_hidden_size, config.hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.dense_h_to_4h(x).chunk(2, dim=-1)  # [b, s, f] each
        return self.dense_4h_to_h(F.silu(gate) * value)


class GLMBlock(GradientCheckpointingLayer):
    """One layer. Tensors are positional arguments, so that gradient checkpointing finds those that need gradients.

    keep: the tokens to compute after attention, see modes/keep.py.
    """

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
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
        normed = self.input_layernorm(x)
        attended = self.self_attention(normed, mask, cos, sin, prefix_key, prefix_value, keep, past_key_values)
        x = keep_only(x, keep) + attended
        return x + self.mlp(self.post_attention_layernorm(x))  # [b, s, h]


class ChatGLMPreTrainedModel(Pretrained):
    config_class = ChatGLMConfig
    config: ChatGLMConfig
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]  # in official files; computed here


class Embedding(nn.Module):
    """Module for the official name of `word_embeddings`."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class Encoder(nn.Module):
    """Module for the official names of the blocks and the last norm."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)


class ChatGLMModel(ChatGLMPreTrainedModel, Body):
    """Everything up to the final hidden states; includes the output layer, as in the official code."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = Encoder(config)
        self.output_layer: nn.Linear = OutputLayer(config.hidden_size, config.padded_vocab_size)
        if config.pre_seq_len:
            size = 2 * config.num_layers * config.multi_query_group_num * config.kv_channels
            if prefix.is_embedding(config):
                size = config.hidden_size
            self.prefix_encoder = prefix.PrefixEncoder(
                config.pre_seq_len, size, config.prefix_projection, size, config.hidden_size
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding.word_embeddings = value

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, lowest first."""
        return self.encoder.layers

    @property
    def last_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.encoder.final_layernorm

    def make_positions(
        self, input_ids: torch.Tensor | None, x: torch.Tensor, attention_mask: torch.Tensor | None, seen: int
    ) -> torch.Tensor:
        """Positions [b or 1, s] that count real tokens only."""
        if attention_mask is not None and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -x.shape[1] :]
        before = seen - (self.config.pre_seq_len or 0) if seen else 0
        return torch.arange(before, before + x.shape[1], device=x.device)[None]

    def mask_options(
        self, position_ids: torch.Tensor, given: torch.Tensor | None, seen: int
    ) -> dict[str, torch.Tensor | None]:
        """Attention is causal; restarting positions separate packed sequences."""
        return {"position_ids": given}

    def rotary_tables(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """See the function of this name."""
        return rotary_tables(self.config, position_ids, dtype)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, LanguageModel):
    """The language model: `ChatGLMModel` and its output layer, a loss, and transformers' generation."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.transformer.output_layer = new_embeddings
