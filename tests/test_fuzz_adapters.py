"""Random adapters: each one is applied with every tensor of its file, or refused in one sentence; loaded = merged.

The same cases in every run, as in tests/test_fuzz.py. They start from what peft writes for a model of one layer.
"""

import copy
import json
import re
from collections import Counter

import peft
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from errors import UserError
from methods.lora import Lora
from modes import MODES
from tests.adapter_files import CONFIG, NAME, NAMES
from tests.launch import GOLDEN
from tests.prepared import trained
from tests.sentences import check_sentence

CASES = 200
KINDS = [
    {},
    {"use_dora": True},
    {"use_rslora": True, "rank_pattern": {"dense": 2}},
    {"alpha_pattern": {r"layers\.0\..*": 3, "dense": 9}},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"lora_bias": True},
    {"lora_bias": True, "target_modules": ["query_key_value"]},
    {"target_modules": ["word_embeddings", "dense"]},
    {"trainable_token_indices": [3, 5]},
    {"modules_to_save": ["final_layernorm"]},
    {"modules_to_save": ["output_layer"], "trainable_token_indices": [1]},
]
CHANGES = st.sampled_from(
    [
        *({"bias": value} for value in ("none", "all", "lora_only", "some", None)),
        *({"lora_bias": value} for value in (True, False)),
        *({"use_dora": value} for value in (True, False)),
        *({"r": value} for value in (2, 3, 0)),
        *({"trainable_token_indices": value} for value in (None, [3], [3, 5], [5, 3], {"word": [3, 5]}, [10**9, 0])),
        *({"modules_to_save": value} for value in (None, ["final_layernorm"], ["("], [])),
        *({"alpha_pattern": value} for value in ({}, {".*": 2}, {"(a+)+$": 1}, {"(": 1}, {"dense": "x"})),
        *({"rank_pattern": value} for value in ({"dense": 3}, {"dense|query_key_value": 3}, {".*": 0})),
        *({"target_modules": value} for value in ("all-linear", ["dense"], r".*(dense|query_key_value)", [], "x")),
        *({"layers_to_transform": value} for value in (0, 1, [0], "0")),
        *({"exclude_modules": value} for value in ("dense", [".*"], r".*\.dense")),
        *({"layers_pattern": value, "layers_to_transform": [0]} for value in ("layers", ["h"], "[")),
        *({"init_lora_weights": value} for value in (False, "gaussian", "olora", {})),
        *({"peft_type": value} for value in ("ADALORA", "IA3")),
        *({"task_type": value} for value in (None, "SEQ_2_SEQ_LM", "SEQ_CLS", 3)),
        *({"fan_in_fan_out": True}, {"target_parameters": ["x"]}, {"unheard_of": 1}, {"lora_alpha": 0}),
    ]
)
LAYER = "transformer.encoder.layers.0."
EXTRA = st.sampled_from(
    [
        (f"base_model.model.{LAYER}input_layernorm.weight", (16,)),
        (f"{LAYER}input_layernorm.weight", (16,)),
        (f"base_model.model.{LAYER}self_attention.query_key_value.bias", (32,)),
        (f"base_model.model.{LAYER}self_attention.dense.bias", (16,)),
        (f"base_model.model.{LAYER}self_attention.dense.lora_B.bias", (16,)),
        (f"base_model.model.{LAYER}mlp.dense_4h_to_h.lora_A.weight", (3, 24)),
        (f"base_model.model.{LAYER}self_attention.dense.lora_A.other.weight", (3, 16)),
        ("base_model.model.transformer.embedding.word_embeddings.weight", (64, 16)),
        ("base_model.model.transformer.embedding.word_embeddings.weight", (66, 16)),
        ("transformer.embedding.word_embeddings.token_adapter.trainable_tokens_delta", (2, 16)),
        ("", (1,)),
        ("base_model.model.", ()),
        ("lora_A", (3, 16)),
        ("x.lora_embedding_A", (3, 16)),
    ]
)


def tiny_config():
    """One layer of ChatGLM3, small enough for hundreds of models."""
    sizes = {
        "num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 24, "kv_channels": 8, "num_attention_heads": 2,
        "multi_query_group_num": 1, "padded_vocab_size": 64, "vocab_size": 64,
    }  # fmt: skip
    return MODES["glm3"].config_class.from_pretrained(GOLDEN / "glm3" / "base", **sizes)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return MODES["glm3"].model_class(tiny_config()).float().eval()


@pytest.fixture(scope="module")
def written(base, tmp_path_factory):
    """(config, tensors) as peft writes them for each of KINDS."""
    files = []
    for kind in KINDS:
        directory = tmp_path_factory.mktemp("written")
        settings = {"r": 3, "target_modules": ["query_key_value", "dense"], "init_lora_weights": False, **kind}
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
        with torch.no_grad():
            for parameter in trained(model).values():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(directory)
        files.append((json.loads((directory / CONFIG).read_text()), load_file(directory / NAME)))
    return files


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("adapter")


def write(directory, config, tensors):
    (directory / CONFIG).write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / NAME)


def merged(base, directory):
    """The tensors of the merged model, and the names of those that the base lacks."""
    fold = Lora().fold(Lora().read(directory))
    tensors = dict(base.named_parameters())
    return {name: fold.change(name, tensor.detach()) for name, tensor in tensors.items()}, fold.names - tensors.keys()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(0, 40)[None]).logits


def check_applied(base, directory, config, tensors, number):
    """What was not refused is the same loaded and merged, and every tensor of the file counts."""
    results, absent = merged(base, directory)
    loaded = Lora().load(copy.deepcopy(base), Lora().read(directory)).eval()
    if not absent:
        other = copy.deepcopy(base)
        other.load_state_dict(results, strict=False)
        expected = logits(other)
        assert (logits(loaded) - expected).abs().max() <= 1e-3 * max(expected.abs().max(), 1)
    name = sorted(tensors)[number % len(tensors)]
    write(directory, config, {**tensors, name: tensors[name] + 0.5})
    changed, _ = merged(base, directory)
    used = any(not torch.equal(results[key], changed[key]) for key in results)
    assert used or (name.endswith("lora_B.bias") and absent) or config["lora_alpha"] == 0, name


ADAPTERS = st.fixed_dictionaries(
    {
        "kind": st.integers(0, len(KINDS) - 1),
        "style": st.sampled_from([None, *NAMES]),
        "only": st.none() | st.integers(0, 9),  # the index of the one tensor that is renamed; None: all of them
        "changes": st.lists(CHANGES, max_size=1) | st.lists(CHANGES, max_size=3),
        "extra": st.just([]) | st.lists(EXTRA, max_size=1),
        "dropped": st.none() | st.integers(0, 30),
    }
)


def make(directory, written, *, kind, style, only, changes, extra, dropped):
    """Write a random adapter; returns its config and tensors."""
    config, tensors = written[kind]
    names = sorted(tensors)
    if dropped is not None and dropped < len(names):
        names.pop(dropped)
    rename = NAMES.get(style, str)
    tensors = {rename(name) if only in (None, i) else name: tensors[name] for i, name in enumerate(names)}
    tensors |= {name: torch.randn(shape) for name, shape in extra}
    for change in changes:
        config = {**config, **change}
    write(directory, config, tensors)
    return config, tensors


def fits(directory):
    """As the programs check an adapter before any weight is loaded."""
    with torch.device("meta"):
        Lora().fits(MODES["glm3"].model_class(tiny_config()), Lora().read(directory))


@pytest.mark.filterwarnings("ignore")
def test_adapters(base, written, directory):
    outcomes = Counter()

    @given(ADAPTERS, st.integers(0, 30))
    @settings(
        max_examples=CASES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    def check(adapter, number):
        config, tensors = make(directory, written, **adapter)
        try:
            fits(directory)
        except UserError as error:
            check_sentence(error, directory)
            assert not re.search("object has no attribute|NoneType", str(error))
            outcomes[re.sub(r"[/\d]\S*", "", str(error))[:60]] += 1
        else:
            check_applied(base, directory, config, tensors, number)
            outcomes["applied"] += 1

    check()
    print(outcomes.most_common())
    assert outcomes["applied"] >= CASES // 5 and len(outcomes) >= 10


@pytest.mark.filterwarnings("ignore")
def test_untouched_adapters_are_applied(base, written, directory):
    """The fuzz test starts from adapters that are not refused."""
    for config, tensors in written:
        write(directory, config, tensors)
        fits(directory)
        check_applied(base, directory, config, tensors, 0)
