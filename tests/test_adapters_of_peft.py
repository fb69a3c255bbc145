"""Adapters that plain peft wrote: peft's own logits are those of predict.py's model, of a merged directory, and of a
training start; where one of the programs cannot, it says so in a sentence.
"""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import merge_lora
import predict
from checkpoints.merging import prepare_merge
from errors import UserError
from generation.models import load_answerer
from methods.adapter import official_name, read_adapter
from methods.adapter_config import other_base
from methods.lora import Lora
from modes import MODES
from parameters import parameters_of
from tests import launch
from tests.adapter_files import CONFIG, NAME, NAMES
from tests.launch import GOLDEN
from tests.prepared import build, trained, write_merged

INPUT_IDS = torch.arange(100, 140)[None]
MATRICES = {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense"], "init_lora_weights": False}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=INPUT_IDS).logits


def write_adapter(directory, mode, **changes):
    """An adapter as peft trains and writes it, every trained value drawn at random."""
    kind = peft.AdaLoraConfig if "init_r" in changes else peft.LoraConfig
    model = peft.get_peft_model(build(mode), kind(**{**MATRICES, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.save_pretrained(directory, save_embedding_layers=changes.get("modules_to_save") == "saved")
    return directory


def peft_logits(mode, directory):
    return logits(peft.PeftModel.from_pretrained(build(mode), directory))


def predicted_logits(directory, mode):
    return logits(load_answerer(directory, GOLDEN / mode / "base").model)


def merged_logits(directory, mode):
    merged = directory.with_name(f"{directory.name}-merged")
    write_merged(prepare_merge(GOLDEN / mode / "base", directory, merged, precision="fp32"))
    return logits(load_answerer(merged).model)


def started_logits(directory, mode, **flags):
    """As train.py with these flags and --init_adapter has them before the first step."""
    options = {
        "lora_dim": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_module_name": ("query_key_value", "dense"), **flags,
    }  # fmt: skip
    model = build(mode, "lora", **options)
    config = MODES[mode].config_class.from_pretrained(GOLDEN / mode / "base")
    start = Lora(**options).read_start(directory, parameters_of(model), MODES[mode].model_class, config)
    Lora(**options).load_start(model, start)
    return logits(model)


PROGRAMS = {"predict.py": predicted_logits, "merge_lora.py": merged_logits, "train.py": started_logits}
OVERLAP = {"layers.1.self_attention.query_key_value": 3, "query_key_value": 16, r".*\.dense": 5, "dense": 7}
EXPRESSION = {r"layers\.[01]\..*(query_key_value|dense)": 3, "query_key_value": 16}
ADALORA = {"init_r": 4, "total_step": 9, "lora_alpha": 8000, "init_lora_weights": True}
NO_START = {"train.py": "--init_adapter .* (holds|has) "}
BOTH_TIED = "which are one tensor in this model"
# name: (generation, changes of the adapter, {program: what its sentence says, "all": of all}, train.py's flags)
KINDS = {
    "plain": ("glm3", {}, {}, {}),
    "plain of glm": ("glm", {}, {}, {}),
    "dora": ("glm3", {"use_dora": True}, {}, {"lora_variant": "dora"}),
    "rslora": ("glm3", {"use_rslora": True}, {}, {"lora_variant": "rslora"}),
    "adalora": ("glm3", ADALORA, NO_START, {}),
    "adalora with a pattern": ("glm3", {**ADALORA, "alpha_pattern": {"dense": 3}}, NO_START, {}),
    "alpha patterns that overlap": ("glm3", {"alpha_pattern": OVERLAP}, NO_START, {}),
    "alpha patterns in the other order": (
        "glm3", {"alpha_pattern": dict(reversed(OVERLAP.items()))}, NO_START, {},
    ),
    "alpha patterns that are expressions": ("glm3", {"alpha_pattern": EXPRESSION}, NO_START, {}),
    "an alpha pattern that is the flag": ("glm3", {"lora_alpha": 9, "alpha_pattern": {".*": 8}}, {}, {}),
    "rank patterns that overlap": ("glm3", {"rank_pattern": OVERLAP}, NO_START, {}),
    "rank patterns that are expressions": ("glm", {"rank_pattern": EXPRESSION, "use_rslora": True}, NO_START, {}),
    "both patterns": ("glm3", {"rank_pattern": {"dense": 2}, "alpha_pattern": EXPRESSION}, NO_START, {}),
    "target modules as an expression": (
        "glm3", {"target_modules": r".*\.(query_key_value|dense)"}, {}, {},
    ),
    "some layers": (
        "glm3", {"layers_to_transform": [1, 2], "layers_pattern": "layers"}, NO_START, {},
    ),
    "modules left out": ("glm3", {"exclude_modules": r".*layers\.0.*"}, NO_START, {}),
    "all linear layers": ("glm3", {"target_modules": "all-linear"}, {}, {"lora_module_name": ("all-linear",)}),
    "the output layer": ("glm3", {"target_modules": ["output_layer", "dense"]}, NO_START, {}),
    "the tied output layer": ("glm", {"target_modules": ["lm_head", "dense"]}, {"all": f"{BOTH_TIED}|has "}, {}),
    "bias all": ("glm", {"bias": "all"}, NO_START, {}),
    "bias all of glm3": ("glm3", {"bias": "all"}, NO_START, {}),
    "bias of adapted layers": ("glm3", {"bias": "lora_only"}, NO_START, {}),
    "lora bias": ("glm3", {"lora_bias": True, "target_modules": ["query_key_value"]}, NO_START, {}),
    "lora bias of glm": ("glm", {"lora_bias": True}, NO_START, {}),
    "lora bias without a bias to merge into": (
        "glm3", {"lora_bias": True}, {**NO_START, "merge_lora.py": r"changes .*dense\.bias, which the base does not"},
        {},
    ),
    "embedding": ("glm3", {"target_modules": ["word_embeddings", "dense"]}, NO_START, {}),
    "embedding with dora": (
        "glm3", {"target_modules": ["word_embeddings", "dense"], "use_dora": True}, NO_START, {},
    ),
    "embedding with patterns": (
        "glm3", {"target_modules": ["word_embeddings", "dense"], "rank_pattern": {"word_embeddings": 2},
                 "alpha_pattern": {"word.*": 5}, "use_rslora": True}, NO_START, {},
    ),
    "tied embedding": ("glm", {"target_modules": ["word_embeddings", "dense"]}, {"all": f"{BOTH_TIED}|has "}, {}),
    "trainable tokens": ("glm3", {"trainable_token_indices": [3, 101, 120]}, NO_START, {}),
    "trainable tokens of a module": (
        "glm3", {"trainable_token_indices": {"word_embeddings": [120, 101]}}, NO_START, {},
    ),
    "trainable tokens of tied embeddings": ("glm", {"trainable_token_indices": [3, 101, 120]}, NO_START, {}),
    "modules trained whole": (
        "glm3", {"modules_to_save": ["final_layernorm"]}, {}, {"modules_to_save": ("final_layernorm",)},
    ),
    "embeddings trained whole": (
        "glm3", {"modules_to_save": ["word_embeddings", "output_layer"]}, {},
        {"modules_to_save": ("word_embeddings", "output_layer")},
    ),
    "one of tied embeddings trained whole": (
        "glm", {"modules_to_save": ["word_embeddings"]}, {"all": BOTH_TIED}, {"modules_to_save": ("word_embeddings",)},
    ),
    "modules trained whole with a bias": (
        "glm", {"modules_to_save": ["final_layernorm"], "bias": "all"}, {"all": "holds both .*bias and .*bias"},
        {"modules_to_save": ("final_layernorm",)},
    ),
}  # fmt: skip


def agrees(program, directory, mode, expected, refusals, flags):
    """One program has peft's logits, or ends with its sentence."""
    sentence = refusals.get("all") or refusals.get(program)
    arguments = flags if program == "train.py" else {}
    if sentence:
        with pytest.raises(UserError, match=sentence) as caught:
            PROGRAMS[program](directory, mode, **arguments)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
        return
    output = PROGRAMS[program](directory, mode, **arguments)
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max(), program


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_program_agrees_with_peft(kind, tmp_path):
    mode, changes, refusals, flags = KINDS[kind]
    directory = write_adapter(tmp_path, mode, **changes)
    if changes.get("bias") == "lora_only" and not any(name.endswith(".bias") for name in load_file(directory / NAME)):
        refusals = {}  # earlier versions of peft forgot these biases in the file: it is a plain adapter
    expected = peft_logits(mode, directory)
    assert (expected - logits(build(mode))).abs().max() > 1e-3  # the adapter changes something
    for program in PROGRAMS:
        agrees(program, directory, mode, expected, refusals, flags)


def renamed(directory, change):
    """Rename the tensors of an adapter's file."""
    tensors = load_file(directory / NAME)
    save_file({change(name): tensor for name, tensor in tensors.items()}, directory / NAME)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", NAMES)
def test_names_in_files(style, tmp_path):
    """The same tensors under other names are the same adapter, for all programs."""
    changes = {"use_dora": True, "modules_to_save": ["final_layernorm"], "trainable_token_indices": [101]}
    directory = write_adapter(tmp_path, "glm3", **changes)
    expected = peft_logits("glm3", directory)
    renamed(directory, NAMES[style])
    for program in ("predict.py", "merge_lora.py"):
        agrees(program, directory, "glm3", expected, {}, {})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["without prefix", "with the adapter's name", "compiled layers"])
def test_names_in_the_file_of_a_start(style, tmp_path):
    directory = write_adapter(tmp_path, "glm3", modules_to_save=["final_layernorm"])
    expected = peft_logits("glm3", directory)
    renamed(directory, NAMES[style])
    agrees("train.py", directory, "glm3", expected, {}, {"modules_to_save": ("final_layernorm",)})


@pytest.mark.filterwarnings("ignore")
def test_biases_under_the_names_of_older_peft(tmp_path):
    """peft 0.5 and earlier wrote no base_layer, and today's peft then ignores the biases."""
    directory = write_adapter(tmp_path, "glm3", bias="lora_only")
    expected = peft_logits("glm3", directory)
    renamed(directory, lambda name: name.replace(".base_layer", ""))
    for program in ("predict.py", "merge_lora.py"):
        agrees(program, directory, "glm3", expected, {}, {})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["glm", "glm3"])
def test_embeddings_saved_beside_the_adapter(mode, tmp_path):
    """peft's save_embedding_layers: they are not in modules_to_save, and load into the base."""
    directory = write_adapter(tmp_path, mode)
    tensors = load_file(directory / NAME)
    name = next(name for name, _ in build(mode).named_parameters() if "word_embeddings" in name)
    tensors[f"base_model.model.{name}"] = torch.randn_like(build(mode).get_input_embeddings().weight)
    save_file(tensors, directory / NAME)
    expected = peft_logits(mode, directory)
    for program in PROGRAMS:
        agrees(program, directory, mode, expected, NO_START, {})


def add(name, shape=(2,), dtype=torch.float32):
    """Add a tensor to the file of an adapter."""

    def damage(directory):
        tensors = load_file(directory / NAME)
        save_file({**tensors, name: torch.ones(shape, dtype=dtype)}, directory / NAME)

    return damage


def remove(part):
    def damage(directory):
        tensors = load_file(directory / NAME)
        save_file({name: tensor for name, tensor in tensors.items() if part not in name}, directory / NAME)

    return damage


def configure(**changes):
    def damage(directory):
        config = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps({**config, **changes}))

    return damage


LAYER = "base_model.model.transformer.encoder.layers.0.self_attention"
TWO = f"{LAYER}.query_key_value.lora_A"
# name: (damage, what every program says)
BROKEN = {
    "a tensor of no layer": (add("base_model.model.no_such.weight"), "no such layer"),
    "matrices of no layer": (
        lambda directory: renamed(directory, lambda name: name.replace("layers.0.", "layers.9.")),
        "no such layer",
    ),
    "a tensor of an unknown part": (add(f"{LAYER}.dense.lora_C.weight"), "lora_C.weight, which cannot be applied"),
    "the original of a module": (add(f"{LAYER}.original_module.weight"), "original_module.weight, which cannot"),
    "two adapters in a file": (add(f"{TWO}.other.weight", (4, 64)), "holds both"),
    "integers": (add(f"{LAYER}.dense.bias", dtype=torch.int64), "torch.int64 values"),
    "one matrix alone": (remove("layers.1.self_attention.dense.lora_A"), "no whole pair"),
    "a layer is missing": (
        remove("layers.1.self_attention.dense."),
        r"holds no .*layers.1.*dense.*, which adapter_config.json requires",
    ),
    "a layer that the config leaves out": (
        configure(target_modules=["query_key_value"]),
        "dense.*, which adapter_config.json does not list",
    ),
    "layers that the config leaves out": (configure(layers_to_transform=[0]), "does not list"),
    "a bias that the config leaves out": (configure(lora_bias=True), "lora_B.bias, which adapter_config.json requires"),
    "another rank": (configure(rank_pattern={"dense": 3}), "has r 3 for .*dense, its tensors have 4"),
    "tokens without ids": (add(f"{LAYER}.token_adapter.trainable_tokens_delta", (2, 64)), "trainable_token_indices"),
    "a module is missing": (
        configure(modules_to_save=["final_layernorm"]),
        "final_layernorm.weight, which adapter_config.json requires",
    ),
    "embeddings of more tokens": (
        add("base_model.model.transformer.embedding.word_embeddings.weight", (9999, 64)),
        "9999 tokens in .*; added tokens are not supported",
    ),
}
# What only a key of the config says: name -> changes. None of these may be applied as if it were not there.
UNKNOWN = {
    "block-diagonal": {"use_bdlora": {"target_modules_bd_a": ["dense"]}},
    "activated": {"alora_invocation_tokens": [3]},
    "qalora": {"use_qalora": True},
    "parameters": {"target_parameters": ["x"]},
    "arrow": {"arrow_config": {"top_k": 2}},
    "of a later peft": {"use_something_new": True},
    "a mica start": {"init_lora_weights": "mica"},
    "a pissa start": {"init_lora_weights": "pissa"},
    "a start that is a list": {"init_lora_weights": [1]},
    "bias that is a list": {"bias": ["all"]},
    "no expression": {"alpha_pattern": {"(": 3}},
    "an expression that takes for ever": {"alpha_pattern": {r"(\w+)+x": 3}},
    "an expression of many repetitions": {"rank_pattern": {".*.*.*.*.*.*x": 3}},
    "targets that take for ever": {"target_modules": r"(\w+)+x"},
    "exclusions that take for ever": {"exclude_modules": r"(\w+)+x"},
    "a pattern that is a list": {"alpha_pattern": ["dense"]},
    "the scale of a pattern is NaN": {"alpha_pattern": {"dense": float("nan")}},
    "ids twice": {"trainable_token_indices": [3, 3]},
    "a negative id": {"trainable_token_indices": [-1]},
}
BROKEN |= {name: (configure(**changes), f"has {next(iter(changes))} ") for name, changes in UNKNOWN.items()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("sound"), "glm3")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters(name, sound, tmp_path):
    """Every program refuses, before any weight is loaded, what it cannot apply as a whole."""
    damage, sentence = BROKEN[name]
    directory = tmp_path / "adapter"
    shutil.copytree(sound, directory)
    damage(directory)
    for program in PROGRAMS:
        agrees(program, directory, "glm3", None, {"all": sentence}, {})


@pytest.mark.parametrize(
    ("named", "warns"),
    [
        ("", False),
        (None, False),
        (str(GOLDEN / "glm3" / "base"), False),
        ("/elsewhere/Base", False),
        ("C:\\models\\base\\", False),
        ("/hub/models--someone--base/snapshots/0123", False),
        ("THUDM/chatglm3-6b", True),
        ("/elsewhere/chatglm3-6b-32k", True),
        (3, False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_base(named, warns, sound, tmp_path, capsys):
    directory = tmp_path / "adapter"
    shutil.copytree(sound, directory)
    configure(base_model_name_or_path=named)(directory)
    base = GOLDEN / "glm3" / "base"
    ask = {"model_path": directory, "base_model": base, "instruction": "a", "max_new_tokens": 1}
    predict.main(launch.flags(ask))
    said = capsys.readouterr().err
    assert ("warning:" in said) == warns and (not warns or named in said)
    merge_lora.main(launch.flags({"ori_model_dir": base, "model_dir": directory, "output_dir": tmp_path / "merged"}))
    assert ("warning: the adapter" in capsys.readouterr().err) == warns


def test_names_that_the_hub_gave(sound, tmp_path):
    """config.json of a download names the hub's repository, whatever the directory is called."""
    directory = tmp_path / "adapter"
    shutil.copytree(sound, directory)
    configure(base_model_name_or_path="THUDM/chatglm3-6b")(directory)
    config = read_adapter(directory).config
    assert other_base(config, directory, tmp_path / "renamed", {"_name_or_path": "/x/ChatGLM3-6B"}) is None
    assert other_base(config, directory, tmp_path / "renamed", {"_name_or_path": "THUDM/chatglm2-6b"})


def test_names_of_all_kinds_are_official():
    for name in build("glm3").state_dict():
        assert official_name(name) == official_name(f"base_model.model._orig_mod.{name}") == name


def test_what_an_adapter_changes(sound):
    adapter = read_adapter(sound)
    assert adapter.names() == {f"{module}.weight" for module in adapter.layers} and len(adapter.layers) == 8
