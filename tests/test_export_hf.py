"""--format hf: a model is the same in transformers' own class, and can be trained and merged from there."""

import json
import re
import shutil
import warnings

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmConfig, GlmForCausalLM

import merge_lora
from checkpoints.merging import prepare_merge
from checkpoints.read import read_model
from errors import UserError
from export import verify
from export.hf import hf_config, hf_tensors, written_outputs
from files import read_json
from generation.models import load_answerer
from modes import MODES
from modes.directory import fingerprint, read_base
from options.merge import parse_merge
from tests import golden, launch
from tests.bases import SHAPES, write_base
from tests.launch import GOLDEN
from tests.prepared import OPTIONS, build, checkpoint_of, trained

HF_MODES = ("glm2", "glm3")
ADAPTERS = (None, "adapter_lora", "adapter_lora_all")


def merge(base, model_dir, output, *words):
    """Run merge_lora.py."""
    checkpoint = ["--model_dir", str(model_dir)] if model_dir else []
    merge_lora.main(["--ori_model_dir", str(base), *checkpoint, "--output_dir", str(output), *map(str, words)])
    return output


def export(mode, adapter, output, *words):
    """A golden base with one of its adapters, or without, in the hf layout in float32."""
    model_dir = GOLDEN / mode / adapter if adapter else None
    words = ("--format", "hf", "--precision", "fp32", "--verify", "False", *words)
    return merge(golden.base_path(mode), model_dir, output, *words)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(mode, adapter) -> directory, each written once."""
    written = {}

    def directory(mode, adapter=None):
        if (mode, adapter) not in written:
            written[mode, adapter] = export(mode, adapter, tmp_path_factory.mktemp("hf") / f"{mode}-{adapter}")
        return written[mode, adapter]

    return directory


def load(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert type(model) is GlmForCausalLM
    return model


def rows(vocab_size, lengths):
    """Random ids [b, s], padded on the left, and their mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - length for length in lengths]).long()
    return ids * mask, mask


@torch.no_grad()
def same_logits(ours, theirs, lengths, tolerance=0.0):
    ids, mask = rows(1000, lengths)
    kept = mask.bool()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    left = ours(input_ids=ids, attention_mask=mask, position_ids=positions).logits[kept]
    right = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits[kept]
    assert (left - right).abs().max() <= tolerance * left.abs().max()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("mode", HF_MODES)
def test_logits_are_the_same_to_the_bit(mode, adapter, exported):
    directory = exported(mode, adapter)
    ours, theirs = load_answerer(directory).model, load(directory)
    for lengths in ([1], [7], [300], [3, 1, 12]):
        same_logits(ours, theirs, lengths)


def test_trained_layers_are_merged(tmp_path):
    checkpoint = checkpoint_of("glm3", "freeze", OPTIONS["freeze"], tmp_path / "freeze", noise=0.1)
    directory = merge(golden.base_path("glm3"), checkpoint, tmp_path / "hf", "--format", "hf")
    trained_model = load_answerer(checkpoint).model
    same_logits(trained_model, load(directory), [12, 3])


@pytest.mark.parametrize("mode", HF_MODES)
def test_logits_are_those_of_the_official_code(mode, exported):
    tensors = golden.tensors(mode)
    for adapter, case in ((None, ""), ("adapter_lora", "lora."), ("adapter_lora_all", "lora_all.")):
        theirs = load(exported(mode, adapter))
        with torch.no_grad():
            loss = theirs(
                input_ids=tensors["padded.input_ids"], labels=tensors["padded.labels"],
                attention_mask=torch.ones_like(tensors["padded.input_ids"]),
            ).loss  # fmt: skip
        assert loss.item() == pytest.approx(tensors[f"{case}padded.loss"].item(), rel=1e-5)
    greedy = load(exported(mode)).generate(tensors["greedy.prompt"], max_new_tokens=16, do_sample=False)
    assert greedy.tolist() == tensors["greedy.output"].tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", HF_MODES)
def test_bases_of_other_shapes(mode, shape, tmp_path):
    base = write_base(tmp_path / "base", mode, **SHAPES[shape])
    directory = merge(base, None, tmp_path / "hf", "--format", "hf", "--mode", mode, "--verify", "False")
    # the linear scaling of ChatGLM2-32k divides frequencies, the official code positions
    tolerance = 1e-4 if mode == "glm2" and "rope_ratio" in SHAPES[shape] else 0.0
    same_logits(load_answerer(base, mode=mode).model, load(directory), [40, 3], tolerance)
    back = read_base(directory)
    assert back.mode == mode and fingerprint(back) == fingerprint(read_base(base, mode))
    assert vars(back.make_config())["rope_ratio"] == SHAPES[shape].get("rope_ratio", 1)


@pytest.mark.parametrize("mode", HF_MODES)
def test_readers_old_and_new_find_their_keys(mode, exported):
    config = read_json(exported(mode) / "config.json", "")
    official = read_json(golden.base_path(mode) / "config.json", "")
    for rotary in (config, config["rope_parameters"]):
        assert (rotary["rope_theta"], rotary["partial_rotary_factor"]) == (10000, 0.5)
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["num_key_value_heads"] == official["multi_query_group_num"]
    assert config["head_dim"] == official["kv_channels"] and config["attention_bias"] is True
    assert config["max_position_embeddings"] == official["seq_length"]
    tokenizer = golden.tokenizer(mode)
    ends = [2] if mode == "glm2" else [2, *(tokenizer.get_command(f"<|{role}|>") for role in ("user", "observation"))]
    generation = read_json(exported(mode) / "generation_config.json", "")
    assert config["eos_token_id"] == generation["eos_token_id"] == ends
    assert generation["pad_token_id"] == 0
    assert not [name for name in config if "auto_map" in name]
    assert not [path.name for path in exported(mode).iterdir() if path.suffix in (".py", ".bin")]


def test_interpolated_positions_of_chatglm2_32k(tmp_path):
    base = write_base(tmp_path / "base", "glm2", rope_ratio=8)
    directory = merge(base, None, tmp_path / "hf", "--format", "hf", "--mode", "glm2")
    assert read_json(directory / "config.json", "")["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize("mode", HF_MODES)
def test_prompts_and_answers_through_transformers_alone(mode, exported):
    """As the page on deployment shows it: no code of this toolkit."""
    directory = exported(mode)
    tokenizer, model = AutoTokenizer.from_pretrained(directory), load(directory)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好 <|user|> sop"}], add_generation_prompt=True, return_tensors="pt"
    )
    answerer = load_answerer(directory)
    assert inputs["input_ids"][0].tolist() == answerer.prompt_ids({"instruction": "你好 <|user|> sop"})
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ours = answerer.model.generate(inputs["input_ids"], max_new_tokens=12, do_sample=False)
    assert answer.tolist() == ours[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("mode", HF_MODES)
def test_shards(mode, exported, tmp_path):
    directory = export(mode, "adapter_lora_all", tmp_path / "hf", "--max_shard_size", "200KB")
    names = sorted(path.name for path in directory.glob("model-*.safetensors"))
    assert len(names) > 3 and (directory / "model.safetensors.index.json").exists()
    assert fingerprint(read_base(directory)) == fingerprint(read_base(exported(mode, "adapter_lora_all")))


def test_back_to_the_official_layout(exported, tmp_path):
    """The tensors of a base that went to the hf layout and back."""
    merge(exported("glm3"), None, tmp_path / "official", "--format", "official", "--precision", "fp16")
    back = read_base(tmp_path / "official")
    assert back.hf is None and fingerprint(back) == fingerprint(read_base(golden.base_path("glm3")))
    assert read_model(tmp_path / "official").mode == "glm3"


@pytest.mark.parametrize(
    "words", [["--train_type", "lora"], ["--train_type", "all"], ["--train_type", "lora", "--ds_file", "zero3"]]
)
@pytest.mark.slow
def test_training_goes_on_from_an_exported_directory(words, exported, tmp_path):
    """The losses of the official layout; the checkpoint names the exported directory, and is merged into it."""
    train_type, zero3 = words[1], "zero3" in words[-1]
    ds_file = "ds_zero3_no_offload.json" if zero3 else "ds_zero2_no_offload.json"
    bases = {"official": golden.base_path("glm3"), "hf": exported("glm3")}
    for name, base in bases.items():
        options = launch.train_options(
            "glm3", train_type, tmp_path / name / "out", model_name_or_path=base, max_steps=3, ds_file=ds_file
        )
        launch.train(options, 2 if zero3 else 1)
    losses = {name: launch.losses(tmp_path / name / "out") for name in bases}
    assert losses["hf"] == losses["official"]
    checkpoint = launch.newest_checkpoint(tmp_path / "hf" / "out")
    assert json.loads((checkpoint / "checkpoint.json").read_text())["base"]["path"] == str(bases["hf"])
    assert load_answerer(checkpoint).mode.name == "glm3"
    merged = merge(bases["hf"], checkpoint, tmp_path / "merged", "--format", "hf", "--precision", "fp32")
    same_logits(load_answerer(checkpoint).model, load(merged), [9]) if train_type == "all" else load(merged)


def adapter_of(variant, directory, **changes):
    """A LoRA checkpoint of the golden ChatGLM3 base with random matrices."""
    options = {"r": 4, "lora_alpha": 16, "target_modules": ["query_key_value", "dense", "dense_h_to_4h"], **changes}
    kind = peft.AdaLoraConfig if variant == "adalora" else peft.LoraConfig
    if variant == "adalora":
        options |= {"init_r": options.pop("r"), "target_r": 2, "total_step": 10}
    model = peft.get_peft_model(build("glm3"), kind(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(directory)
    return directory


VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases of matrices": {"lora_bias": True, "target_modules": ["query_key_value"]},
    "adalora": {},
    "some layers": {"layers_to_transform": [1, 3]},
    "ranks by layer": {"rank_pattern": {"layers.2.self_attention.query_key_value": 6}},
    "whole modules": {"modules_to_save": ["output_layer"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_alone(variant, exported, tmp_path):
    """The fused projection's matrices as three; loaded by peft beside the exported base."""
    checkpoint = adapter_of(variant, tmp_path / "lora", **VARIANTS[variant])
    adapter = merge(golden.base_path("glm3"), checkpoint, tmp_path / "adapter", "--format", "hf", "--adapter_only")
    theirs = peft.PeftModel.from_pretrained(load(exported("glm3")), adapter).eval()
    ours = load_answerer(checkpoint, golden.base_path("glm3")).model
    ids, _ = rows(1000, [20])
    with torch.no_grad():
        left, right = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
        plain = load(exported("glm3"))(input_ids=ids).logits
    assert (left - right).abs().max() < 1e-5 * left.abs().max() < (plain - left).abs().max()
    targets = read_json(adapter / "adapter_config.json", "")["target_modules"]
    assert all("query_key_value" not in name for name in targets)
    assert variant == "some layers" or {"q_proj", "k_proj", "v_proj"} <= set(targets)


def test_the_command_prints_what_it_verified(capsys, tmp_path):
    base = golden.base_path("glm3")
    merge(base, GOLDEN / "glm3" / "adapter_lora", tmp_path / "hf", "--format", "hf")
    difference, scale = re.search(r"largest logit difference (\S+) of (\S+),", capsys.readouterr().out).groups()
    assert float(difference) <= 1e-6 * float(scale)
    merge(base, GOLDEN / "glm3" / "adapter_lora", tmp_path / "adapter", "--format", "hf", "--adapter_only")
    assert "5 of 5 greedy answers equal" in capsys.readouterr().out
    merge(base, None, tmp_path / "quiet", "--format", "hf", "--verify", "False")
    assert "verified" not in capsys.readouterr().out


def test_only_small_bases_are_verified_without_being_asked(tmp_path, capsys, monkeypatch):
    """The base's size decides, because an adapter is small beside any base."""
    monkeypatch.setattr(verify, "SMALL_BYTES", 1000)
    base, adapter = golden.base_path("glm3"), GOLDEN / "glm3" / "adapter_lora"
    merge(base, adapter, tmp_path / "adapter", "--format", "hf", "--adapter_only")
    assert "verified" not in capsys.readouterr().out


def test_logits_that_are_no_numbers_are_not_verified(tmp_path):
    outputs = verify.Outputs([[1]], [[2]], torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(UserError, match="differs from the merged model"):
        verify.compare(outputs, outputs, tmp_path, "transformers")


def test_an_exported_adapter_is_refused_with_its_checkpoint(tmp_path):
    base, adapter = golden.base_path("glm3"), GOLDEN / "glm3" / "adapter_lora"
    written = merge(base, adapter, tmp_path / "adapter", "--format", "hf", "--adapter_only", "--verify", "False")
    with pytest.raises(UserError, match=f"give the checkpoint that it was made from, {adapter}"):
        load_answerer(written, base)


def test_another_model_is_not_verified(tmp_path):
    checked = prepare_merge(golden.base_path("glm3"), GOLDEN / "glm3" / "adapter_lora", tmp_path / "hf")
    other = verify.merged_outputs(checked)
    merge(golden.base_path("glm3"), None, tmp_path / "hf", "--format", "hf", "--verify", "False")
    with pytest.raises(UserError, match="differs from the merged model"):
        verify.compare(
            other, written_outputs(tmp_path / "hf", verify.stops_of(checked)), tmp_path / "hf", "transformers"
        )


@pytest.mark.parametrize("mode", HF_MODES)
def test_names_are_those_of_the_class(mode):
    checked = prepare_merge(golden.base_path(mode), None, GOLDEN.parent / "none")
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = GlmForCausalLM(GlmConfig(**hf_config(checked)))
    assert {name: tensor.shape for name, tensor in hf_tensors(checked)} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model_dir is missing"),
        (["--format", "hf", "--adapter_only"], "--adapter_only needs --model_dir"),
        (["--adapter_only", "--model_dir", "x"], "--adapter_only needs --format hf, which is official"),
        (["--quantize", "q8_0", "--format", "hf"], "--quantize q8_0 needs --format gguf"),
        (["--format", "hf", "--quantization_bit", "4"], "--quantization_bit 4 needs --format official"),
        (["--format", "safetensors"], "--format"),
    ],
)
def test_flags_that_do_not_go_together(words, message, tmp_path):
    base = golden.base_path("glm3")
    with pytest.raises(UserError, match=message):
        merge_lora.main(["--ori_model_dir", str(base), "--output_dir", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--model_dir", "out/best/"], "out/best-merged"),
        (["--model_dir", "out/best", "--format", "hf"], "out/best-hf"),
        (["--model_dir", "out/best", "--format", "hf", "--adapter_only"], "out/best-hf-adapter"),
        (["--model_dir", "out/best", "--format", "gguf"], "out/best-gguf"),
        (["--format", "gguf"], "base-gguf"),
        (["--quantization_bit", "4"], "base-official"),
        (["--format", "hf", "--output_dir", "mine"], "mine"),
    ],
)
def test_the_directory_that_is_written_by_default(words, name):
    options, problems = parse_merge(["--ori_model_dir", "base/", *words])
    assert (options.output, problems) == (name, [])


def test_models_that_transformers_has_no_class_for(tmp_path):
    with pytest.raises(UserError, match=r"is a ChatGLM-6B, which has no class in transformers: use --format official"):
        merge(golden.base_path("glm"), None, tmp_path / "out", "--format", "hf")
    biased = write_base(tmp_path / "biased", "glm3", add_bias_linear=True)
    with pytest.raises(UserError, match="add_bias_linear true, which GlmForCausalLM cannot compute"):
        merge(biased, None, tmp_path / "out", "--format", "hf")
    base = golden.base_path("glm3")
    freeze = checkpoint_of("glm3", "freeze", OPTIONS["freeze"], tmp_path / "freeze")
    with pytest.raises(UserError, match="is no LoRA checkpoint"):
        merge(base, freeze, tmp_path / "out", "--format", "hf", "--adapter_only")
    prefix = checkpoint_of("glm3", "ptuning", OPTIONS["ptuning"], tmp_path / "prefix")
    with pytest.raises(UserError, match="holds a prefix, which GlmForCausalLM lacks"):
        merge(base, prefix, tmp_path / "out", "--format", "hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "yarn", "factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "factor": "8"}},
        {"rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 50000}},
        {"rope_parameters": {"rope_type": "linear", "factor": 8}},  # of ChatGLM2-32k
        {"rope_parameters": None, "rope_theta": [1]},
        {"rope_parameters": None, "partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_type": {}}},
        {"rope_parameters": None, "rope_theta": float("nan")},
        {"num_hidden_layers": "many"},
        {"head_dim": None},
        {"attention_bias": 3},
        {"vocab_size": -1},
    ],
)
def test_configs_that_cannot_be_read(changes, exported, tmp_path):
    shutil.copytree(exported("glm3"), tmp_path / "base")
    config = {**read_json(exported("glm3") / "config.json", ""), **changes}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json"):
        read_base(tmp_path / "base")


def test_a_key_that_is_missing(exported, tmp_path):
    config = read_json(exported("glm3") / "config.json", "")
    del config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json has no head_dim, which GlmForCausalLM needs"):
        read_base(tmp_path)


def test_glm4_is_refused_with_its_name(tmp_path, exported):
    config = {**read_json(exported("glm3") / "config.json", ""), "vocab_size": 151552}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="describes GLM-4"):
        read_base(tmp_path)


def test_modes_declare_their_class():
    assert {mode.name: mode.hf.architecture if mode.hf else None for mode in MODES.values()} == {
        "glm": None, "glm2": "GlmForCausalLM", "glm3": "GlmForCausalLM",
    }  # fmt: skip
