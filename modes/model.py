"""The shared base of all generations' models: loading, loss and generation.

Shapes: b batch, s sequence, h hidden, v vocabulary, m supervised positions.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from modes import prefix
from modes.config import Config
from modes.keep import keep_behind_prefix, keep_of_logits
from modes.loss import find_supervised, supervised_loss
from modes.paged import PagedCache
from modes.quantization import QuantizedLinear
from modes.segments import SDPA, Implementation, Layout, Segments, make_segments


class Pretrained(PreTrainedModel):
    """A model that transformers can load, with any of its attention functions."""

    config: Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"prefix_encoder\."]  # a base has none; initialized by _init_weights

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would search the model's own source for the call, which is in modes/attention.py

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (prefix.Table, prefix.Projection)):
            prefix.init_part(module, initialization)
        elif not isinstance(module, QuantizedLinear):
            super()._init_weights(module)


class Prefixed(NamedTuple):
    """The input of the blocks: a row after its prefix, if there is one.

    places: positions of the row's own tokens in the second dimension of x. columns: preceding keys that are not in x.
    prefixes: keys and values of every layer, or None.
    """

    x: torch.Tensor  # [b, s', h]
    position_ids: torch.Tensor  # [b, s'] or [b, 2, s']
    attention_mask: torch.Tensor | None
    segments: Layout | None
    places: torch.Tensor | slice
    columns: int
    prefixes: list[tuple[torch.Tensor, torch.Tensor]] | None


class Body(Pretrained):
    """Everything up to the final hidden states.

    A generation's class creates the modules and overrides the five methods that raise NotImplementedError.
    """

    prefix_encoder: prefix.PrefixEncoder  # if config.pre_seq_len is set
    segment_attention: Implementation[Any] = SDPA  # of rows with concatenated samples

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, lowest first."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.Module:
        """The norm after the last block."""
        raise NotImplementedError

    def make_positions(
        self, input_ids: torch.Tensor | None, x: torch.Tensor, attention_mask: torch.Tensor | None, seen: int
    ) -> torch.Tensor:
        """Default position ids of x [b, s, h] after `seen` tokens."""
        raise NotImplementedError

    def mask_options(
        self, position_ids: torch.Tensor, given: torch.Tensor | None, seen: int
    ) -> dict[str, torch.Tensor | None]:
        """Arguments of `prefix.causal_mask`. given: the caller's position ids."""
        raise NotImplementedError

    def rotary_tables(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the rotary angles, in the form of the blocks' arguments."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool = False,
        segments: Layout | None = None,
        blocks: range | None = None,
        keep: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [b, s, h] of the real tokens; arguments as in LanguageModel.forward.

        blocks: the range of blocks to compute, by default all. `inputs_embeds` is the input of the first; the final
        norm follows only the last block of the model.
        keep: the tokens [c, m] whose hidden states are needed, which are then [c, m, h]; see modes/keep.py.
        """
        config = self.config
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        s, given = x.shape[1], position_ids
        if position_ids is None:
            position_ids = self.make_positions(input_ids, x, attention_mask, seen)
        x, position_ids, attention_mask, segments, places, columns, prefixes = self._behind_prefix(
            x, position_ids, attention_mask, segments, seen
        )
        mask: torch.Tensor | Segments | None
        if segments:
            mask = make_segments(segments, columns, x.device, self.segment_attention)
        elif isinstance(past_key_values, PagedCache):
            mask = attention_mask
        else:
            options = self.mask_options(position_ids, None if prefix.is_embedding(config) else given, seen)
            mask = prefix.causal_mask(config, x, attention_mask, past_key_values, columns, **options)
        cos, sin = self.rotary_tables(position_ids, x.dtype)
        keep = keep_behind_prefix(keep, x, places) if x.shape[1] > s else keep
        for i in range(config.num_layers) if blocks is None else blocks:
            key, value = prefixes[i] if prefixes else (None, None)
            last = keep if i == config.num_layers - 1 else None
            x = self.blocks[i](x, mask, cos, sin, key, value, last, past_key_values=past_key_values)
        x = self.last_norm(x) if blocks is None or blocks.stop == config.num_layers else x
        x = x[:, places] if keep is None else x
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)

    def _behind_prefix(
        self,
        x: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segments: Layout | None,
        seen: int,
    ) -> Prefixed:
        """Rows [b, s, h] after the prefix of the config; a cache of `seen` tokens already contains it."""
        config, p = self.config, self.config.pre_seq_len or 0
        last = slice(-x.shape[1], None)
        if not prefix.is_embedding(config):
            prefixes = None
            if p and not seen:
                b = len(segments) if segments else x.shape[0]
                prefixes = prefix.key_values(self.prefix_encoder, config, x, b, self.training)
            return Prefixed(x, position_ids, attention_mask, segments, last, p, prefixes)
        if segments:
            parts = prefix.prepend_to_segments(self.prefix_encoder, x, position_ids, segments, self.training)
            x, position_ids, segments, places = parts
            return Prefixed(x, position_ids, attention_mask, segments, places, 0, None)
        position_ids = prefix.shift_positions(position_ids, p)
        if not seen:
            x = prefix.prepend_embeddings(self.prefix_encoder, x, self.training)  # [b, p + s, h]
            front = prefix.front_positions(position_ids, p)
            position_ids = torch.cat([front.expand(*position_ids.shape[:-1], p), position_ids], dim=-1)
        return Prefixed(x, position_ids, prefix.prepend_ones(attention_mask, p), None, last, 0, None)


class LanguageModel(Pretrained, GenerationMixin):
    """A model up to the final hidden states (`transformer`) and its output layer: loss and generation.

    A generation's class creates `transformer`, and defines which module is the output layer.
    """

    transformer: "Body"

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, lowest first."""
        return self.transformer.blocks

    def init_prefix(self) -> None:
        """Reinitialize the prefix from torch's default distributions (seed first; gather under ZeRO-3)."""
        prefix.init_prefix(self.transformer.prefix_encoder)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.set_input_embeddings(value)

    # 13 parameters, because transformers calls this by name: `generate` passes the inputs as keywords, and reads the
    # signature to find those that a model accepts. They cannot be one object.
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        segments: Layout | None = None,
        first_block: int = 0,
        supervised: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss of labelled sequences, or logits.

        Args:
            input_ids: [b, s]. attention_mask: [b, tokens so far], 1 real and 0 padding (None: all real).
            position_ids: [b, s], or [b, 2, s] for ChatGLM-6B (see modes/glm/positions.py); by default made from
                input_ids and attention_mask.
            labels: [b, s], -100 where not supervised; not shifted. num_items_in_batch: see modes/loss.py.
            logits_to_keep: number of last positions that get logits (0: all), or their indices.
            segments: of concatenated samples in one row (b = 1), see modes/segments.py; needs position_ids.
            supervised: int64 [m], supervised positions of flattened `labels` (never a row's first); by default they are
                computed.
            first_block: `inputs_embeds` is the input of this block; those below are skipped.
            kwargs: of transformers' continuous batching, see modes/paged.py.

        Returns: CausalLMOutputWithPast; with labels `loss` (float32 scalar) and `logits` None, else `logits` [b, s, v].
        """
        if "cache" in kwargs:  # transformers' continuous batching
            past_key_values = PagedCache(kwargs)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if labels is None:
            tokens = input_ids if inputs_embeds is None else inputs_embeds
            if tokens is None:
                raise ValueError("There is nothing to compute: pass input_ids [b, s] or inputs_embeds [b, s, h].")
            keep = keep_of_logits(tokens, logits_to_keep)
        else:
            supervised = find_supervised(labels) if supervised is None else supervised
            keep = supervised[None] - 1  # positions that predict a label
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
            loss = supervised_loss(hidden[0], targets, self.get_output_embeddings(), num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss)
        logits = self.get_output_embeddings()(hidden)
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
