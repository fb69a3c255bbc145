"""Model behavior that training relies on: loss, gradient checkpointing, attention backends, loading and saving."""

import contextlib
import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.initialization import no_init_weights

from errors import UserError
from modes import MODES
from modes.loss import find_supervised
from modes.segments import grouped_sdpa
from tests import golden

IGNORED = -100


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


def batch(mode, case="padded"):
    tensors = golden.tensors(mode)
    return {"input_ids": tensors[f"{case}.input_ids"], "labels": tensors[f"{case}.labels"]}


def gradients(model, **inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Loss


def test_only_supervised_positions_reach_the_output_layer(mode):
    model, inputs = golden.load_model(mode), batch(mode)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    output = model.train()(**inputs)
    assert seen == [(int((inputs["labels"][:, 1:] != IGNORED).sum()), model.config.hidden_size)]
    assert output.logits is None


def test_loss_is_the_cross_entropy_of_all_logits(mode):
    model, inputs = golden.shared_model(mode), batch(mode)
    logits = model(input_ids=inputs["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    torch.testing.assert_close(model(**inputs).loss, expected)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch(mode, as_tensor):
    model, inputs = golden.shared_model(mode), batch(mode)
    count = int((inputs["labels"][:, 1:] != IGNORED).sum())
    items = torch.tensor(3 * count) if as_tensor else 3 * count
    torch.testing.assert_close(model(**inputs, num_items_in_batch=items).loss * 3, model(**inputs).loss)


def test_batch_without_supervised_tokens(mode):
    model, inputs = golden.load_model(mode), batch(mode)
    inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
    for items in (None, 17):
        gradients_of_batch = gradients(model, **inputs, num_items_in_batch=items)
        assert model(**inputs, num_items_in_batch=items).loss.item() == 0
        assert gradients_of_batch.keys() == dict(model.named_parameters()).keys()
        assert all(not gradient.any() for gradient in gradients_of_batch.values())


def test_first_label_predicts_nothing():
    assert find_supervised(torch.tensor([[1, IGNORED, 2], [3, 4, IGNORED]])).tolist() == [2, 4]


@pytest.mark.parametrize("config", [{}, {"pre_seq_len": 3}, {"pre_seq_len": 3, "prefix_layers": "embedding"}])
def test_last_block_feeds_forward_what_is_asked_for(mode, config):
    """Supervised positions and the last of a prompt, and no others; what comes out is what all of them give."""
    model, inputs = golden.load_model(mode, **config), batch(mode)
    seen = [[] for _ in model.blocks]
    for block, rows in zip(model.blocks, seen, strict=True):
        block.mlp.register_forward_hook(lambda module, args, output, rows=rows: rows.append(output.shape[:2].numel()))
    b, s = inputs["input_ids"].shape
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"]).logits
        loss = model(**inputs).loss
        last = model(input_ids=inputs["input_ids"], logits_to_keep=1).logits
        chosen = model(input_ids=inputs["input_ids"], logits_to_keep=torch.tensor([2, 5])).logits
    supervised = int((inputs["labels"][:, 1:] != IGNORED).sum())
    prefix = b * 3 if config.get("prefix_layers") == "embedding" else 0
    assert all(rows == [b * s + prefix] * 4 for rows in seen[:-1])
    assert seen[-1] == [b * s + prefix, supervised, b, 2 * b]
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(last, logits[:, -1:])
    torch.testing.assert_close(chosen, logits[:, [2, 5]])


def test_padding_rows_do_not_touch_others(mode):
    """A filler row (real ids, no labels) adds nothing to the sum."""
    model, inputs = golden.shared_model(mode), batch(mode)
    filler = {"input_ids": inputs["input_ids"][:1], "labels": torch.full_like(inputs["labels"][:1], IGNORED)}
    both = {name: torch.cat([inputs[name], filler[name]]) for name in inputs}
    torch.testing.assert_close(model(**both).loss, model(**inputs).loss)


# Attention


@pytest.mark.parametrize("config", [{}, {"pre_seq_len": 4}, {"pre_seq_len": 4, "prefix_layers": "embedding"}])
@pytest.mark.parametrize("padded", [False, True])
def test_eager_equals_sdpa(mode, config, padded):
    torch.manual_seed(0)
    model = golden.load_model(mode, **config)
    ids = golden.tensors(mode)["padded.input_ids"]
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :9] = 0
    logits = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert model.config._attn_implementation == attention
        logits[attention] = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("device", "threads"), [("cpu", 1), ("cpu", 8), pytest.param("cuda", 1, marks=pytest.mark.gpu)]
)
def test_grouped_heads_are_read_in_order(device, threads, masked, rows, monkeypatch):
    """Shared heads give what repeated heads give, on any number of threads, and on CUDA without writing out scores."""
    torch.manual_seed(0)
    shapes = [(rows, 6, 16, 8), (rows, 3, 24, 8), (rows, 3, 24, 8)]
    query, key, value = (torch.randn(shape, device=device, requires_grad=True) for shape in shapes)
    mask = torch.rand(rows, 1, 16, 24, device=device) > 0.3 if masked else None
    repeated = [part.repeat_interleave(2, dim=1) for part in (key, value)]
    expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, is_causal=not masked).transpose(1, 2)
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]) if device == "cuda" else contextlib.nullcontext():
        output = grouped_sdpa(query, key, value, mask, is_causal=not masked)
        grads = torch.autograd.grad((output * weight).sum(), (query, key, value))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


def test_flash_is_refused_for_glm_only():
    assert not MODES["glm"].model_class._supports_flash_attn
    assert MODES["glm2"].model_class._supports_flash_attn


def test_glm_prompt_sees_itself_both_ways_and_glm2_does_not():
    for mode, both_ways in (("glm", True), ("glm2", False)):
        row = batch(mode, "single")["input_ids"]
        changed = row.clone()
        changed[0, 20] += 1
        model = golden.shared_model(mode)
        before, after = (model(input_ids=ids).logits[0, 10] for ids in (row, changed))
        assert torch.equal(before, after) != both_ways


def test_packed_rows_are_told_apart_by_restarting_positions():
    model = golden.shared_model("glm2")
    row = batch("glm2", "single")["input_ids"]
    positions = torch.arange(row.shape[1])[None]
    ids, positions = torch.cat([row, row], 1), torch.cat([positions, positions], 1)
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = model(input_ids=row).logits
    torch.testing.assert_close(packed, torch.cat([alone, alone], 1), rtol=1e-4, atol=1e-5)


# Gradients


@pytest.mark.parametrize("config", [{}, {"pre_seq_len": 4}, {"pre_seq_len": 4, "prefix_layers": "embedding"}])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(mode, config, use_reentrant):
    torch.manual_seed(0)
    model = golden.load_model(mode, **config).train()
    model.config.use_cache = True
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(3)  # the prefix has dropout
    plain = gradients(model, **batch(mode))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.manual_seed(3)
    checkpointed = gradients(model, **batch(mode))
    assert plain.keys() == checkpointed.keys() == dict(model.named_parameters()).keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_prefix_gets_gradients_with_a_frozen_checkpointed_model(mode):
    for layers in ("all", "embedding"):
        model = golden.load_model(mode, pre_seq_len=4, prefix_layers=layers).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("prefix_encoder" in name)
        of_prefix = gradients(model, **batch(mode))
        assert of_prefix and all(
            "prefix_encoder" in name and gradient.abs().sum() > 0 for name, gradient in of_prefix.items()
        )


def test_prefix_dropout_is_on_only_in_training(mode):
    model = golden.load_model(mode, "ptuning_noproj")
    inputs = batch(mode)
    assert model(**inputs).loss == model(**inputs).loss
    model.train()
    torch.manual_seed(0)
    assert model(**inputs).loss != model(**inputs).loss


# Rotary positions


# rope_ratio 16, heads of 16 values of which 8 are rotated. Angles of position 24, whose cosines are beside them:
# ChatGLM2 divides the position: 24 / 16 * 10000 ** (0, -1/4, -1/2, -3/4) = 1.5, 0.15, 0.015, 0.0015;
# ChatGLM3 multiplies the base: 24 * 160000 ** (0, -1/4, -1/2, -3/4) = 24, 1.2, 0.06, 0.003.
LONG_RELEASES = {
    "glm2": ([0.0707372, 0.9887711, 0.9998875, 0.9999989], [0.9974950, 0.1494381, 0.0149994, 0.0015000]),
    "glm3": ([0.4241790, 0.3623578, 0.9982005, 0.9999955], [-0.9055784, 0.9320391, 0.0599640, 0.0030000]),
}


@pytest.mark.parametrize("mode", LONG_RELEASES)
def test_rope_ratio_of_the_long_releases(mode, tmp_path):
    """As the official code of chatglm2-6b-32k and of chatglm3-6b-32k and -128k has it, also after saving."""
    from modes.glm2.modeling import rotary_tables

    model = golden.load_model(mode, rope_ratio=16)
    model.save_pretrained(tmp_path)
    loaded = MODES[mode].model_class.from_pretrained(tmp_path)
    assert type(loaded.config) is MODES[mode].config_class and loaded.config.rope_ratio == 16
    tables = rotary_tables(loaded.config, torch.tensor([[0, 24]]), torch.float32)
    assert loaded.config.head_dim == 16
    for table, at_zero, at_24 in zip(tables, (1.0, 0.0), LONG_RELEASES[mode], strict=True):
        assert table[0, 0, 0].tolist() == [at_zero] * 4
        assert table[0, 1, 0].tolist() == pytest.approx(at_24, abs=1e-6)
    ids = batch(mode)["input_ids"]
    assert (loaded(ids).logits - golden.shared_model(mode)(ids).logits).abs().max() > 0


# Loading and saving


def test_official_directories_load_without_a_word(mode, caplog):
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.propagate = True
    try:
        model, info = MODES[mode].model_class.from_pretrained(
            golden.base_path(mode), dtype=torch.float32, output_loading_info=True
        )
    finally:
        transformers_logger.propagate = False
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(model) is MODES[mode].model_class


def test_model_round_trip(mode, tmp_path):
    model = golden.load_model(mode)
    model.save_pretrained(tmp_path)
    again = MODES[mode].model_class.from_pretrained(tmp_path, dtype=torch.float32)
    ids = batch(mode)["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "inv_freq" in name or "prefix" in name]
    assert model.config.to_dict() == again.config.to_dict() | {"_name_or_path": model.config._name_or_path}


def test_glm_head_is_tied_with_or_without_a_tensor_of_its_own(tmp_path):
    model = golden.load_model("glm")
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = MODES["glm"].model_class.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.lm_head.weight is again.transformer.word_embeddings.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_glm_head_is_tied_even_if_no_value_is_drawn():
    with no_init_weights():
        model = MODES["glm"].model_class(golden.shared_model("glm").config)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_glm2_head_is_not_tied():
    model = golden.load_model("glm2")
    assert model.transformer.output_layer.weight is not model.transformer.embedding.word_embeddings.weight


@pytest.mark.parametrize("config", [{}, {"prefix_projection": True}, {"prefix_layers": "embedding"}])
def test_new_prefix_has_torch_default_values(mode, config):
    torch.manual_seed(0)
    model = golden.load_model(mode, pre_seq_len=64, **config)
    encoder = model.transformer.prefix_encoder
    assert encoder.embedding.weight.std().item() == pytest.approx(1, abs=0.05)
    first = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    model.init_prefix()
    assert all(not torch.equal(first[name], value) for name, value in encoder.state_dict().items())
    second = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    model.init_prefix()
    assert all(torch.equal(second[name], value) for name, value in encoder.state_dict().items())


def test_saved_prefix_is_not_drawn_anew(mode, tmp_path):
    model = golden.load_model(mode, "ptuning_proj")
    model.save_pretrained(tmp_path)
    again = MODES[mode].model_class.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in model.transformer.prefix_encoder.state_dict().items():
        assert torch.equal(again.transformer.prefix_encoder.state_dict()[name], value)


def test_half_precision_load_keeps_the_dtype(mode):
    assert MODES[mode].model_class.from_pretrained(golden.base_path(mode)).dtype == torch.float16


def test_blocks(mode):
    assert len(golden.shared_model(mode).blocks) == golden.shared_model(mode).config.num_layers


@pytest.mark.parametrize(
    ("mode", "option"),
    [
        ("glm", {"position_encoding_2d": False}),
        ("glm", {"quantization_bit": 5}),
        ("glm", {"quantization_embeddings": True}),
        ("glm", {"prefix_layers": "first"}),
        ("glm2", {"rmsnorm": False}),
        ("glm2", {"apply_residual_connection_post_layernorm": True}),
        ("glm2", {"multi_query_attention": False}),
        ("glm2", {"post_layer_norm": False}),
        ("glm2", {"quantization_bit": 16}),
        ("glm2", {"pre_seq_len": -1}),
    ],
)
def test_unsupported_switches(mode, option):
    with pytest.raises(UserError, match=next(iter(option))):
        MODES[mode].config_class(**option)


def test_transformers_names_of_sizes(mode):
    config = golden.shared_model(mode).config
    assert (config.num_hidden_layers, config.head_dim, config.vocab_size) == (4, 16, 2432)
    assert config.num_key_value_heads == (4 if mode == "glm" else 2)
    assert config.max_position_embeddings == (8192 if mode == "glm3" else 2048)
