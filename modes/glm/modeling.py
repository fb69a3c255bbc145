"""ChatGLM-6B: official parameter names, two-dimensional rotary positions, a prompt that sees itself both ways.

Shapes: b batch, s sequence, t keys (prefix and cache included), h hidden, n heads, d head size, f feed-forward size,
v vocabulary, p prefix length.
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
from modes.glm import positions
from modes.glm.configuration import ChatGLMConfig
from modes.keep import keep_behind_prefix, keep_of_logits, keep_only
from modes.loss import OutputLayer, find_supervised, supervised_loss
from modes.quantization import QuantizedLinear, make_linear
from modes.segments import IMPLEMENTATIONS, make_segments

# sqrt(2 * layers) of the released model. Official code has its 28 layers as a default that the config never reaches,
# so that a model of any other depth has this scale too.
RESIDUAL_SCALE = (2 * 28) ** 0.5


def rotary_tables(config, position_ids, dtype):
    """Cosine and sine of the rotary angles, computed in float32 (https://arxiv.org/abs/2104.09864).

    The first half of each head is rotated by the position, the second by the block position. The frequencies are
    rounded to half precision first, because the model was trained with such ones.

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


def rotate(x, cos, sin):
    """Rotates both halves of each head, a value with the one d / 4 further on: x is [b, s, heads, d]."""
    first, second = x.unflatten(-1, (2, 2, -1)).split(1, dim=-2)  # [b, s, heads, 2, 1, d / 4] each
    swapped = torch.cat([second, first], dim=-2).flatten(-3)
    return torch.addcmul(x * cos, swapped, sin)


class SelfAttention(nn.Module):
    """Multi-head attention with one fused projection: q, k and v of head 0, then those of head 1, and so on."""

    is_causal = True
    num_key_value_groups = 1  # query heads per key/value head, as transformers' attention functions name it

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.query_key_value = make_linear(config, config.hidden_size, 3 * config.hidden_size)
        self.dense = make_linear(config, config.hidden_size, config.hidden_size)

    def forward(self, x, mask, cos, sin, prefix_key, prefix_value, keep, cache):
        qkv = self.query_key_value(x).unflatten(-1, (self.config.num_attention_heads, 3, -1))  # [b, s, n, 3, d]
        query, key, value = qkv.unbind(dim=3)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [b, n, s, d]
        x = attend(self, query, key, value, mask, prefix_key, prefix_value, cache)  # [b, s, n * d]
        return self.dense(keep_only(x, keep))  # [b, s, h]


class MLP(nn.Module):
    """Two projections with a tanh-approximated GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = make_linear(config, config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = make_linear(config, config.inner_hidden_size, config.hidden_size)

    def forward(self, x):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class GLMBlock(GradientCheckpointingLayer):
    """One layer. Tensors are positional arguments, so that gradient checkpointing sees those that need gradients.

    keep: the tokens that go on behind attention, see modes/keep.py.
    """

    def __init__(self, config, layer_idx):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, mask, cos, sin, prefix_key=None, prefix_value=None, keep=None, past_key_values=None):
        # The residual is the normalised input, scaled; not the input itself.
        normed = self.input_layernorm(x)
        x = self.attention(normed, mask, cos, sin, prefix_key, prefix_value, keep, past_key_values)
        x = torch.add(x, keep_only(normed, keep), alpha=RESIDUAL_SCALE)
        normed = self.post_attention_layernorm(x)
        return torch.add(self.mlp(normed), normed, alpha=RESIDUAL_SCALE)  # [b, s, h]


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    config: ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True  # but not flash: it cannot show a prompt to itself both ways
    _keys_to_ignore_on_load_missing = [r"prefix_encoder\."]  # a base has none; drawn by _init_weights
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # official files carry it; it is computed here

    @classmethod
    def _can_set_attn_implementation(cls):
        return True  # transformers would look for the call in this file's source; it is in modes/attention.py

    def _init_weights(self, module):
        if isinstance(module, (prefix.Table, prefix.Projection)):
            prefix.init_part(module, initialization)
        elif not isinstance(module, QuantizedLinear):
            super()._init_weights(module)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Everything up to the final hidden states."""

    segment_attention = IMPLEMENTATIONS["sdpa"]  # of rows in which samples lie end to end

    def __init__(self, config):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        if prefix.is_on(config):
            width = config.hidden_size if prefix.is_embedding(config) else 2 * config.num_layers * config.hidden_size
            self.prefix_encoder = prefix.PrefixEncoder(
                config.pre_seq_len, width, config.prefix_projection, config.hidden_size, config.hidden_size
            )
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def set_input_embeddings(self, value):
        self.word_embeddings = value

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
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            if input_ids is None or seen:
                raise ValueError("Positions come from whole input_ids: pass position_ids [b, 2, s] with anything else.")
            position_ids = positions.from_ids(input_ids, attention_mask, config)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        s, p = inputs_embeds.shape[1], config.pre_seq_len or 0

        x, columns, prefixes, index = inputs_embeds, p, None, slice(-s, None)
        if prefix.is_embedding(config) and segments:
            x, position_ids, segments, index = prefix.prepend_to_segments(
                self.prefix_encoder, x, position_ids, segments, self.training
            )
            columns = 0
        elif prefix.is_embedding(config):
            position_ids = torch.stack([position_ids[:, 0] + p, position_ids[:, 1]], dim=1)
            attention_mask, columns = prefix.prepend_ones(attention_mask, p), 0
            if not seen:
                x = prefix.prepend_embeddings(self.prefix_encoder, x, self.training)  # [b, p + s, h]
                front = torch.stack([torch.arange(p, device=x.device), torch.zeros(p, device=x.device).long()])
                position_ids = torch.cat([front.expand(position_ids.shape[0], 2, p), position_ids], dim=2)
        elif p and not seen:
            b = len(segments) if segments else x.shape[0]
            prefixes = prefix.key_values(self.prefix_encoder, config, x, b, self.training)

        if segments:
            mask = make_segments(segments, columns, x.device, self.segment_attention)
        else:
            # Prompt tokens see one another both ways; what continues a cache is answer, and causal.
            prompts = None if seen else (position_ids[:, 1] == 0).long() - 1  # [b, s], 0 prompt, -1 answer
            mask = prefix.causal_mask(config, x, attention_mask, past_key_values, columns, block_sequence_ids=prompts)
        cos, sin = rotary_tables(config, position_ids, x.dtype)
        blocks = range(config.num_layers) if blocks is None else blocks
        keep = keep_behind_prefix(keep, x, index) if x.shape[1] > s else keep
        for i in blocks:
            key, value = prefixes[i] if prefixes else (None, None)
            last = keep if i == config.num_layers - 1 else None
            x = self.layers[i](x, mask, cos, sin, key, value, last, past_key_values=past_key_values)
        x = x if blocks.stop < config.num_layers else self.final_layernorm(x)
        x = x[:, index] if keep is None else x
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """The language model: `ChatGLMModel` and its output layer, a loss, and transformers' generation."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = OutputLayer(config.hidden_size, config.vocab_size)
        self.post_init()
        # transformers ties in post_init only where it draws values too, which ZeRO-3 loading leaves out.
        self.lm_head.weight = self.transformer.word_embeddings.weight

    @property
    def blocks(self):
        """The ModuleList of transformer blocks, lowest first."""
        return self.transformer.layers

    def init_prefix(self):
        """Draws the prefix anew from torch's default distributions (seed first; gather under ZeRO-3)."""
        prefix.init_prefix(self.transformer.prefix_encoder)

    def get_input_embeddings(self):
        return self.transformer.word_embeddings

    def set_input_embeddings(self, value):
        self.transformer.word_embeddings = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, logits_to_keep=0, num_items_in_batch=None, segments=None,
        first_block=0, supervised=None, **kwargs,
    ):  # fmt: skip
        """Loss of labelled sequences, or logits.

        Args:
            input_ids: [b, s]. attention_mask: [b, tokens so far], 1 real and 0 padding (None: all real).
            position_ids: [b, 2, s], see modes/glm/positions.py; by default made from input_ids.
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
            loss = supervised_loss(hidden[0], labels.flatten()[supervised], self.lm_head, num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss)
        logits = self.lm_head(hidden)
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    # transformers' generation counts positions in one dimension; these three give it ours, [b, 2, tokens so far].

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        return positions.from_ids(inputs_tensor, model_kwargs.get("attention_mask"), self.config)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        position_ids = model_kwargs.pop("position_ids", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if position_ids is not None:
            model_kwargs["position_ids"] = position_ids.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        position_ids = model_kwargs.pop("position_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        following = positions.following(position_ids, num_new_tokens)
        model_kwargs["position_ids"] = torch.cat([position_ids, following], dim=-1)
        return model_kwargs
