"""ChatGLM2-6B and ChatGLM3-6B: one architecture, official parameter names.

Shapes: b batch, s sequence, t keys (prefix and cache included), h hidden, n query heads, g key/value heads,
d head size, f feed-forward size, v vocabulary, p prefix length.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from modes import prefix
from modes.attention import attend
from modes.glm2.configuration import ChatGLMConfig
from modes.keep import keep_behind_prefix, keep_of_logits, keep_only
from modes.loss import OutputLayer, find_supervised, supervised_loss
from modes.quantization import QuantizedLinear, make_linear
from modes.segments import IMPLEMENTATIONS, make_segments


class RMSNorm(nn.Module):
    """x / rms(x) * weight (https://arxiv.org/abs/1910.07467), in the input's dtype; no bias."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps).to(x.dtype)


def rotary_tables(config, position_ids, dtype):
    """Cosine and sine of the rotary angles, computed in float32 (https://arxiv.org/abs/2104.09864).

    Half of each head is rotated; `config.rotary_scale` says what `rope_ratio` of the long releases does.

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


def rotate(x, cos, sin):
    """Rotates the first half of each head, pairs of neighbouring values: x is [b, s, heads, d]."""
    rotated, passed = x.chunk(2, dim=-1)
    first, second = rotated.unflatten(-1, (-1, 2)).unbind(-1)  # [b, s, heads, d / 4] each
    rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    return torch.cat([rotated, passed], dim=-1)


class SelfAttention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245); one fused projection: all of q, then k, then v."""

    is_causal = True

    def __init__(self, config, layer_idx):
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

    def forward(self, x, mask, cos, sin, prefix_key, prefix_value, keep, cache):
        qkv = self.query_key_value(x).unflatten(-1, (-1, self.config.kv_channels))  # [b, s, n + 2g, d]
        query_key, value = qkv.split([self.heads + self.groups, self.groups], dim=2)
        query, key = rotate(query_key, cos, sin).split([self.heads, self.groups], dim=2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [b, n or g, s, d]
        x = attend(self, query, key, value, mask, prefix_key, prefix_value, cache)  # [b, s, n * d]
        return self.dense(keep_only(x, keep))  # [b, s, h]


class MLP(nn.Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202): gate and value come out of one projection."""

    def __init__(self, config):
        super().__init__()
        bias = config.add_bias_linear
        self.dense_h_to_4h = make_linear(config, config.hidden_size, 2 * config.ffn_hidden_size, bias=bias)
        self.dense_4h_to_h = make_linear(config, config.ffn_hidden_size, config.hidden_size, bias=bias)

    def forward(self, x):
        gate, value = self.dense_h_to_4h(x).chunk(2, dim=-1)  # [b, s, f] each
        return self.dense_4h_to_h(F.silu(gate) * value)


class GLMBlock(GradientCheckpointingLayer):
    """One layer. Tensors are positional arguments, so that gradient checkpointing sees those that need gradients.

    keep: the tokens that go on behind attention, see modes/keep.py.
    """

    def __init__(self, config, layer_idx):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, mask, cos, sin, prefix_key=None, prefix_value=None, keep=None, past_key_values=None):
        normed = self.input_layernorm(x)
        attended = self.self_attention(normed, mask, cos, sin, prefix_key, prefix_value, keep, past_key_values)
        x = keep_only(x, keep) + attended
        return x + self.mlp(self.post_attention_layernorm(x))  # [b, s, h]


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    config: ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"prefix_encoder\."]  # a base has none; drawn by _init_weights
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]  # official files carry it; it is computed here

    @classmethod
    def _can_set_attn_implementation(cls):
        return True  # transformers would look for the call in this file's source; it is in modes/attention.py

    def _init_weights(self, module):
        if isinstance(module, (prefix.Table, prefix.Projection)):
            prefix.init_part(module, initialization)
        elif not isinstance(module, QuantizedLinear):
            super()._init_weights(module)


class Embedding(nn.Module):
    """Holds `word_embeddings` under its official name."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, input_ids):
        return self.word_embeddings(input_ids)  # [b, s, h]


class Encoder(nn.Module):
    """Holds the blocks and the last norm under their official names."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(self, x, mask, cos, sin, prefixes, cache, blocks, keep):
        for i in blocks:
            key, value = prefixes[i] if prefixes else (None, None)
            last = keep if i == len(self.layers) - 1 else None
            x = self.layers[i](x, mask, cos, sin, key, value, last, past_key_values=cache)
        return x if blocks.stop < len(self.layers) else self.final_layernorm(x)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Everything up to the final hidden states; holds the output layer too, as official."""

    segment_attention = IMPLEMENTATIONS["sdpa"]  # of rows in which samples lie end to end

    def __init__(self, config):
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = Encoder(config)
        self.output_layer = OutputLayer(config.hidden_size, config.padded_vocab_size)
        if prefix.is_on(config):
            size = 2 * config.num_layers * config.multi_query_group_num * config.kv_channels
            if prefix.is_embedding(config):
                size = config.hidden_size
            self.prefix_encoder = prefix.PrefixEncoder(
                config.pre_seq_len, size, config.prefix_projection, size, config.hidden_size
            )
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value):
        self.embedding.word_embeddings = value

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        use_cache=False, segments=None, blocks=None, keep=None, **kwargs,
    ):  # fmt: skip
        """Hidden states [b, s, h] of the real tokens; arguments as in ChatGLMForConditionalGeneration.forward.

        blocks: the range of those to compute, by default all. `inputs_embeds` goes into the first of them; the last
        norm follows the last block only.
        keep: the tokens [c, m] whose hidden states are wanted, which are then [c, m, h]; see modes/keep.py.
        """
        config = self.config
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        s, p = inputs_embeds.shape[1], config.pre_seq_len or 0
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        given_positions = position_ids
        if position_ids is None:
            position_ids = _positions(inputs_embeds, attention_mask, seen - p if seen else 0)

        x, columns, prefixes, index = inputs_embeds, p, None, slice(-s, None)
        if prefix.is_embedding(config) and segments:
            x, position_ids, segments, index = prefix.prepend_to_segments(
                self.prefix_encoder, x, position_ids, segments, self.training
            )
            columns = 0
        elif prefix.is_embedding(config):
            position_ids = position_ids + p
            attention_mask, columns, given_positions = prefix.prepend_ones(attention_mask, p), 0, None
            if not seen:
                x = prefix.prepend_embeddings(self.prefix_encoder, x, self.training)  # [b, p + s, h]
                front = torch.arange(p, device=x.device).expand(position_ids.shape[0], p)
                position_ids = torch.cat([front, position_ids], dim=1)
        elif p and not seen:
            b = len(segments) if segments else x.shape[0]
            prefixes = prefix.key_values(self.prefix_encoder, config, x, b, self.training)

        if segments:
            mask = make_segments(segments, columns, x.device, self.segment_attention)
        else:
            mask = prefix.causal_mask(config, x, attention_mask, past_key_values, columns, given_positions)
        cos, sin = rotary_tables(config, position_ids, x.dtype)
        blocks = range(config.num_layers) if blocks is None else blocks
        keep = keep_behind_prefix(keep, x, index) if x.shape[1] > s else keep
        x = self.encoder(x, mask, cos, sin, prefixes, past_key_values, blocks, keep)
        x = x[:, index] if keep is None else x
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


def _positions(inputs_embeds, attention_mask, seen):
    """Positions [b or 1, s] that count real tokens only, for a sequence that `seen` tokens stand in front of."""
    s = inputs_embeds.shape[1]
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -s:]
    return torch.arange(seen, seen + s, device=inputs_embeds.device)[None]


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """The language model: `ChatGLMModel` and its output layer, a loss, and transformers' generation."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    @property
    def blocks(self):
        """The ModuleList of transformer blocks, lowest first."""
        return self.transformer.encoder.layers

    def init_prefix(self):
        """Draws the prefix anew from torch's default distributions (seed first; gather under ZeRO-3)."""
        prefix.init_prefix(self.transformer.prefix_encoder)

    def get_input_embeddings(self):
        return self.transformer.embedding.word_embeddings

    def set_input_embeddings(self, value):
        self.transformer.embedding.word_embeddings = value

    def get_output_embeddings(self):
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings):
        self.transformer.output_layer = new_embeddings

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, logits_to_keep=0, num_items_in_batch=None, segments=None,
        first_block=0, supervised=None, **kwargs,
    ):  # fmt: skip
        """Loss of labelled sequences, or logits.

        Args:
            input_ids: [b, s]. attention_mask: [b, tokens so far], 1 real and 0 padding (None: all real).
            position_ids: [b, s]; by default they count real tokens. Restarting ones tell packed sequences apart.
            labels: [b, s], -100 where not supervised; not shifted. num_items_in_batch: see modes/loss.py.
            logits_to_keep: how many last positions get logits (0: all), or their indices.
            segments: of samples that lie end to end in one row (b = 1), see modes/segments.py; needs position_ids.
            supervised: int64 [m], where `labels`, flattened, are supervised (never a row's first); by default it is
                looked for.
            first_block: `inputs_embeds` is what goes into this block; those below are left out.

        Returns: CausalLMOutputWithPast; with labels `loss` (float32 scalar) and `logits` None, else `logits` [b, s, v].
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if labels is None:
            keep = keep_of_logits(input_ids if inputs_embeds is None else inputs_embeds, logits_to_keep)
        else:
            supervised = find_supervised(labels) if supervised is None else supervised
            keep = supervised[None] - 1  # where a label is predicted
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache and labels is None,
            segments=segments,
            blocks=range(first_block, self.config.num_layers),
            keep=keep,
        )
        hidden = outputs.last_hidden_state  # [1, m, h] with labels, else [b, s or logits_to_keep, h]
        if labels is not None:
            targets = labels.flatten()[supervised]
            loss = supervised_loss(hidden[0], targets, self.transformer.output_layer, num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss)
        logits = self.transformer.output_layer(hidden)
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
