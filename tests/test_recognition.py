"""modes/recognition.py: the generation of published bases, and of bases that transformers saved again."""

import json
import re
import shutil

import pytest

from errors import UserError
from modes.directory import read_base
from modes.recognition import choose_mode
from tests import golden

AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}
GLM = {
    "_name_or_path": "THUDM/chatglm-6b", "architectures": ["ChatGLMModel"], "auto_map": AUTO_MAP,
    "bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001,
    "pad_token_id": 3, "hidden_size": 4096, "inner_hidden_size": 16384, "layernorm_epsilon": 1e-05,
    "max_sequence_length": 2048, "model_type": "chatglm", "num_attention_heads": 32, "num_layers": 28,
    "position_encoding_2d": True, "torch_dtype": "float16", "transformers_version": "4.23.1", "use_cache": True,
    "vocab_size": 130528,
}  # fmt: skip
FIRST_GLM = {
    **{name: value for name, value in GLM.items() if name not in ("mask_token_id", "gmask_token_id")},
    "bos_token_id": 150004, "eos_token_id": 150005, "pad_token_id": 20003, "vocab_size": 150528,
}  # fmt: skip
LATER_KEYS = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": AUTO_MAP, "add_bias_linear": False,
    "add_qkv_bias": True, "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "ffn_hidden_size": 13696,
    "fp32_residual_connection": False, "hidden_dropout": 0.0, "hidden_size": 4096, "kv_channels": 128,
    "layernorm_epsilon": 1e-05, "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32,
    "num_layers": 28, "original_rope": True, "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True,
    "use_cache": True, "torch_dtype": "float16", "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# As published: (generation, config.json, name in tokenizer_config.json).
PUBLISHED = {
    "chatglm-6b": ("glm", GLM),
    "chatglm-6b of March 2023": ("glm", FIRST_GLM),
    "chatglm-6b-int4": ("glm", {**GLM, "quantization_bit": 4, "quantization_embeddings": False}),
    "chatglm2-6b": ("glm2", {**LATER_KEYS, "seq_length": 32768, "transformers_version": "4.27.1"}),
    "chatglm2-6b-int4": ("glm2", {**LATER_KEYS, "seq_length": 32768, "quantization_bit": 4}),
    "chatglm2-6b-32k": ("glm2", {**LATER_KEYS, "seq_length": 32768, "rope_ratio": 50, "classifier_dropout": None}),
    "codegeex2-6b": ("glm2", {**LATER_KEYS, "seq_length": 8192, "rotary_percent": 0.5, "interleaved_qkv": False}),
    "chatglm3-6b": ("glm3", {**LATER_KEYS, "seq_length": 8192, "classifier_dropout": None}),
    "chatglm3-6b of October 2023": ("glm3", {**LATER_KEYS, "seq_length": 32768, "transformers_version": "4.30.2"}),
    "chatglm3-6b-base": ("glm3", {**LATER_KEYS, "seq_length": 32768, "classifier_dropout": None}),
    "chatglm3-6b-32k": ("glm3", {**LATER_KEYS, "seq_length": 32768, "rope_ratio": 50, "classifier_dropout": None}),
    "chatglm3-6b-128k": ("glm3", {**LATER_KEYS, "seq_length": 131072, "rope_ratio": 500, "classifier_dropout": None}),
}
PUBLISHED = {
    name: (mode, {**config, "_name_or_path": f"THUDM/{name.split()[0]}"}, {"name_or_path": f"THUDM/{name.split()[0]}"})
    for name, (mode, config) in PUBLISHED.items()
}
ADDED = {  # keys that transformers 4.30 to 4.40 write beside those that were read
    "transformers_version": "4.33.0", "pre_seq_len": None, "prefix_projection": False, "quantization_bit": 0,
    "classifier_dropout": None, "vocab_size": 65024, "max_length": 20, "num_beams": 1,
}  # fmt: skip
RESAVED_TOKENIZER = {
    "clean_up_tokenization_spaces": False, "do_lower_case": False, "model_max_length": 1000000000000000019884624838656,
    "padding_side": "left", "remove_space": False, "tokenizer_class": "ChatGLMTokenizer", "added_tokens_decoder": {},
}  # fmt: skip
ROLE = {"content": "<|user|>", "lstrip": False, "normalized": False, "rstrip": False, "special": True}
WITH_ROLES = {**RESAVED_TOKENIZER, "added_tokens_decoder": {"64795": ROLE}}
GLM2_CODE = "class ChatGLMTokenizer:\n    def build_prompt(self, query, history=None):\n        return query\n"
GLM3_CODE = 'role_special_tokens = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]\n'


def resaved(config, path="/data/models/mine"):
    """config.json as transformers writes it again from a local path, with the keys of its base class."""
    added = ADDED if "padded_vocab_size" in config else {"transformers_version": "4.33.0", "pre_seq_len": None}
    return {**config, **added, "_name_or_path": path, "architectures": ["ChatGLMForConditionalGeneration"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_bases(name, tmp_path):
    mode, config, tokenizer_config = PUBLISHED[name]
    assert choose_mode(tmp_path, config, tokenizer_config) == (mode, "")
    assert choose_mode(tmp_path, config, tokenizer_config, given=mode) == (mode, "")
    wrong = "glm" if mode != "glm" else "glm3"
    with pytest.raises(UserError, match=f"holds a {mode} model, not {wrong}: use --mode {mode}"):
        choose_mode(tmp_path, config, tokenizer_config, given=wrong)
    # a hub name is enough in any of the places where one stands
    if mode != "glm":
        hub = {"AutoConfig": f"{tokenizer_config['name_or_path']}--configuration_chatglm.ChatGLMConfig"}
        nameless = resaved(config)
        assert choose_mode(tmp_path, {**nameless, "auto_map": hub}, {}) == (mode, "")
        assert choose_mode(tmp_path, nameless, tokenizer_config) == (mode, "")


@pytest.mark.parametrize("name", PUBLISHED)
def test_bases_saved_again_from_a_path_without_a_name(name, tmp_path):
    """Nothing that transformers added may decide; the base's own files do, and where there are none, --mode does."""
    mode, config, _ = PUBLISHED[name]
    config = resaved(config)
    code = {"glm2": GLM2_CODE, "glm3": GLM3_CODE}.get(mode, "")
    if mode == "glm" or config["seq_length"] in (8192, 131072):
        for given in (None, mode):
            assert choose_mode(tmp_path, config, RESAVED_TOKENIZER, given=given) == (mode, "")
    else:
        with pytest.raises(UserError, match="fits ChatGLM2-6B and ChatGLM3-6B alike: add --mode glm2 or --mode glm3"):
            choose_mode(tmp_path, config, RESAVED_TOKENIZER)
        given, note = choose_mode(tmp_path, config, RESAVED_TOKENIZER, given=mode)
        assert given == mode and "because of --mode; its files fit ChatGLM2-6B and ChatGLM3-6B alike" in note
    if mode != "glm":
        assert choose_mode(tmp_path, config, {}, recorded=mode) == (mode, "")
        for file in ("tokenization_chatglm.py", "modeling_chatglm.py"):
            (tmp_path / file).write_text(code, encoding="utf-8")
            assert choose_mode(tmp_path, config, RESAVED_TOKENIZER) == (mode, "")
            other_mode = "glm2" if mode == "glm3" else "glm3"
            with pytest.raises(
                UserError, match=f"holds a {mode} model, not {other_mode}: use --mode {mode} .{file} has"
            ):
                choose_mode(tmp_path, config, RESAVED_TOKENIZER, given=other_mode)
            (tmp_path / file).unlink()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", json.dumps(WITH_ROLES)),
        ("special_tokens_map.json", json.dumps({"additional_special_tokens": ["<|observation|>"]})),
        ("added_tokens.json", json.dumps({"<|system|>": 64794})),
        ("chat_template.jinja", "{{ messages[0]['content'] }}<|assistant|>"),
    ],
)
def test_role_tokens_are_those_of_chatglm3(tmp_path, file, content):
    """They win over names: a base may lie in any folder."""
    (tmp_path / file).write_text(content, encoding="utf-8")
    config = resaved(PUBLISHED["chatglm2-6b"][1], "/models/chatglm2-6b")
    assert choose_mode(tmp_path, config, {}) == ("glm3", "")
    with pytest.raises(UserError, match=f"not glm2: use --mode glm3 .{re.escape(file)} has"):
        choose_mode(tmp_path, config, {}, given="glm2")


@pytest.mark.parametrize(
    ("path", "seq_length", "expected"),
    [
        ("/models/chatglm2-6b", 32768, "glm2"),
        ("D:\\models\\ChatGLM3-6B-base", 32768, "glm3"),
        ("../chatglm2-6b-merged", 8192, "glm2"),
        ("/cache/models--THUDM--chatglm3-6b/snapshots/1", 32768, "glm3"),
        ("/models/codegeex2-6b", 8192, "glm2"),
        ("output/epoch-1", 8192, "glm3"),
        ("output/epoch-1", 2048, None),
        (["chatglm"], [8192], None),
    ],
)
def test_local_names_are_believed_less_than_mode(tmp_path, path, seq_length, expected):
    config = resaved({**LATER_KEYS, "seq_length": seq_length}, path)
    if expected is None:
        with pytest.raises(UserError, match="add --mode"):
            choose_mode(tmp_path, config, {})
        return
    assert choose_mode(tmp_path, config, {}) == (expected, "")
    other_mode = "glm2" if expected == "glm3" else "glm3"
    if "THUDM" in str(path):
        with pytest.raises(UserError, match=f"use --mode {expected}"):
            choose_mode(tmp_path, config, {}, given=other_mode)
    else:
        mode, note = choose_mode(tmp_path, config, {}, given=other_mode)
        assert mode == other_mode and f"suggests {expected}" in note
        assert choose_mode(tmp_path, config, {}, recorded=other_mode) == (other_mode, "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no model_type, not ChatGLM"),
        ({"model_type": "llama", "vocab_size": 32000}, "llama, not ChatGLM"),
        ({**LATER_KEYS, "padded_vocab_size": 151552, "seq_length": 131072, "num_layers": 40}, "describes GLM-4"),
    ],
)
def test_other_models_are_refused(tmp_path, config, message):
    for given in (None, "glm2"):
        with pytest.raises(UserError, match=message):
            choose_mode(tmp_path, config, {}, given=given)


def test_code_of_a_base_is_searched_and_not_trusted(tmp_path):
    config = resaved(PUBLISHED["chatglm3-6b-base"][1])
    (tmp_path / "modeling_chatglm.py").write_bytes(b"\xff\xfe" + GLM3_CODE.encode() + b"raise SystemExit")
    assert choose_mode(tmp_path, config, {}) == ("glm3", "")
    (tmp_path / "modeling_chatglm.py").write_text(GLM3_CODE + "#" * 11 * 2**20, encoding="utf-8")
    with pytest.raises(UserError, match="add --mode"):
        choose_mode(tmp_path, config, {})


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_one_base_is_read_as_either(mode, tmp_path):
    base = shutil.copytree(golden.base_path("glm3"), tmp_path / "base")
    for name, change in (("config.json", {"_name_or_path": "x", "seq_length": 2048}), ("tokenizer_config.json", {})):
        value = json.loads((base / name).read_text(encoding="utf-8"))
        value.pop("name_or_path", None)
        (base / name).write_text(json.dumps(value | change), encoding="utf-8")
    read = read_base(base, mode)
    assert read.mode == mode and "because of --mode" in read.note
    assert read_base(base, recorded=mode).mode == mode and not read_base(base, recorded=mode).note
