"""Attention through transformers' interface, for full and grouped key/value heads.

Shapes: b batch, s query length, t key length, n query heads, g key/value heads, d head size.
"""

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attend(module, query, key, value, mask):
    """Scaled dot-product attention with the backend in `module.config` (sdpa, eager, flash or flex).

    Args:
        module: the attention module; has `config`, `layer_idx`, `num_key_value_groups` (n // g) and `is_causal`.
        query: [b, n, s, d]. key, value: [b, g, t, d]; query head i reads key/value head i // (n // g).
        mask: what transformers' `create_causal_mask` made for this backend; None means plain causal.

    Returns: [b, s, n * d].
    """
    b, n, s, d = query.shape
    implementation = module.config._attn_implementation
    if implementation == "sdpa" and mask is not None and module.num_key_value_groups > 1 and s > 1:
        # transformers' own function repeats keys and values when there is a mask; an expanded view needs no copy.
        output = _masked_grouped_sdpa(query, key, value, mask)
    else:
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        output, _ = function(module, query, key, value, mask, dropout=0.0, scaling=d**-0.5)
    return output.reshape(b, s, n * d)


def _masked_grouped_sdpa(query, key, value, mask):
    """Grouped attention under a mask [b, 1, s, t]; query heads share views of key and value. Returns [b, s, n, d]."""
    b, n, s, d = query.shape
    g, t = key.shape[1], key.shape[2]
    if query.device.type == "cpu":
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return output.transpose(1, 2)
    # On CUDA, enable_gqa with a mask falls back to a kernel that writes out all scores; the memory-efficient one
    # reads views whose head stride is 0.
    query = query.reshape(b * g, n // g, s, d)
    key = key.reshape(b * g, 1, t, d).expand(-1, n // g, -1, -1)
    value = value.reshape(b * g, 1, t, d).expand(-1, n // g, -1, -1)
    mask = mask.expand(b, g, s, t).reshape(b * g, 1, s, t)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [b * g, n / g, s, d]
    return output.reshape(b, n, s, d).transpose(1, 2)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, with an additive mask and a float32 softmax; signature as transformers' interface asks.

    Returns: (output [b, s, n, d], weights [b, n, s, t]).
    """
    b, n, s, d = query.shape
    g, t = key.shape[1], key.shape[2]
    query = query.reshape(b, g, n // g, s, d)
    scores = query @ key.unsqueeze(2).transpose(-1, -2) * scaling  # [b, g, n / g, s, t]
    if attention_mask is not None:
        scores = scores + attention_mask.unsqueeze(2)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = weights @ value.unsqueeze(2)  # [b, g, n / g, s, d]
    return output.reshape(b, n, s, d).transpose(1, 2), weights.reshape(b, n, s, t)
