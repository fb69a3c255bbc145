"""LoRA variants, modules trained whole, the last layers, and starts from what was trained before; without DeepSpeed."""

import json
import re
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UserError
from methods import METHODS, adalora
from methods.freeze import Freeze
from methods.lora import Lora
from methods.targets import target_modules
from modes import MODES
from options.train import parse_train
from parameters import parameters_of
from scripts.variant_sizes import table
from shards import write_shards
from tests import golden, launch
from tests.launch import GOLDEN, REPOSITORY
from tests.prepared import LORA, build, trained
from training.check import check
from training.engine import make_schedule, parameter_groups

VARIANTS = ("lora", "dora", "rslora", "loraplus", "pissa", "adalora")
INPUT_IDS = torch.arange(100, 140)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=INPUT_IDS).logits


def disturb(model):
    """Other values of the trained parameters, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def saved(model, directory):
    """The directory, with the model's checkpoint in it."""
    directory.mkdir(exist_ok=True)
    Lora().save(directory, model, [(name, tensor.detach()) for name, tensor in trained(model).items()])
    return directory


def base_tensors(mode):
    return {name: tensor.detach() for name, tensor in build(mode).named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("whole", [None, ("word_embeddings",), ("final_layernorm",)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_saved_loaded_by_peft_and_folded(mode, variant, whole, tmp_path):
    """What was trained = our loading = plain peft = the fold, on the base as it was."""
    model = build(mode, "lora", **{**LORA, "lora_variant": variant, "modules_to_save": whole})
    disturb(model)
    if variant == "adalora":  # as after allocation: 3, 1, 0, 0, 0, … ranks
        model.peft_config["default"].rank_pattern = {"some": [True]}
        with torch.no_grad():
            for i, (_, values) in enumerate(adalora.of_layers(model, "E")):
                values[(3, 1, 0)[min(i, 2)] :] = 0
    expected, directory = logits(model), saved(model, tmp_path)
    tolerance = 1e-5 * expected.abs().max()  # of PiSSA, whose base is split and put together again
    loaded = Lora().load(build(mode), Lora().read(directory))
    assert (logits(loaded) - expected).abs().max() <= tolerance
    plain = peft.PeftModel.from_pretrained(build(mode), directory)
    assert torch.equal(logits(plain), logits(loaded))

    merged = dict(plain.merge_and_unload().named_parameters(remove_duplicate=False))
    fold, base = Lora().fold(Lora().read(directory)), base_tensors(mode)
    two = mode == "glm"  # its norms have biases, its head is the embedding
    assert len(fold.names) == 16 + ((2 if two else 1) if whole else 0)
    assert fold.names <= base.keys()
    for name, tensor in base.items():
        assert (fold.change(name, tensor) - merged[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_start_is_the_base(variant):
    model = build("glm", "lora", **{**LORA, "lora_variant": variant})
    assert torch.allclose(logits(model), logits(build("glm")), atol=1e-5)
    parts = {name.split(".lora_")[1].split(".")[0] for name in trained(model)}
    assert parts == {"A", "B"} | {"dora": {"magnitude_vector"}, "adalora": {"E"}}.get(variant, set())


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_else_is_trained_in_half_precision(variant):
    model = Lora(**{**LORA, "lora_variant": variant}).prepare(build("glm2").to(torch.bfloat16))
    assert all(".lora_" in name for name in trained(model))


def test_pissa_starts_from_the_largest_singular_vectors():
    weight = base_tensors("glm2")["transformer.encoder.layers.0.self_attention.dense.weight"]
    model = build("glm2", "lora", **{**LORA, "lora_variant": "pissa"})
    layer = model.get_base_model().transformer.encoder.layers[0].self_attention.dense
    values = torch.linalg.svdvals(weight)
    rest = layer.base_layer.weight
    assert torch.allclose(rest + layer.get_delta_weight("default"), weight, atol=1e-6)
    assert rest.norm() <= 1.001 * values[4:].norm()  # no four vectors leave less


def test_pissa_in_half_precision_is_still_the_base():
    """B and A are rounded before W - B A is: only the rounding of what is left remains, which is smaller."""
    weight = build("glm2").to(torch.bfloat16).blocks[0].self_attention.dense.weight
    model = Lora(**{**LORA, "lora_variant": "pissa"}).prepare(build("glm2").to(torch.bfloat16)).to(torch.bfloat16)
    layer = model.get_base_model().blocks[0].self_attention.dense
    a, b = (part["default"].weight.float() for part in (layer.lora_A, layer.lora_B))
    error = layer.base_layer.weight.float() + layer.scaling["default"] * b @ a - weight.float()
    assert error.abs().max() <= 2**-8 * layer.base_layer.weight.abs().max()


def test_pissa_is_the_same_for_the_same_seed():
    first, second = (build("glm2", "lora", **{**LORA, "lora_variant": "pissa"}).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rslora_divides_by_the_root_of_the_rank():
    for variant, scaling in (("lora", 16 / 4), ("rslora", 16 / 4**0.5)):
        model = build("glm2", "lora", **{**LORA, "lora_variant": variant})
        assert model.get_base_model().blocks[0].self_attention.dense.scaling["default"] == scaling


def test_loraplus_rates_follow_the_schedule():
    options = {**LORA, "lora_variant": "loraplus", "modules_to_save": ("final_layernorm",)}
    model = build("glm", "lora", **options)
    groups = parameter_groups(model, 0.1, 1e-3, Lora(**options).rate_factors())
    of_b = {id(weight) for name, weight in trained(model).items() if ".lora_B." in name}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(8e-3 if id(parameter) in of_b else 1e-3)
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)
    assert groups[0]["lr"] == 1e-3 and len(groups) == 3
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = make_schedule("linear", 0, 4)(optimizer)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups][0] == pytest.approx(0.75e-3)
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(6e-3)
    assert Lora(**{**options, "lora_variant": "lora"}).rate_factors() == {} == Freeze().rate_factors()


@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_all_linear_is_all_but_the_head(mode):
    linear = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]
    assert target_modules(build(mode), ("all-linear",)) == linear
    assert target_modules(build(mode), ("dense", "all-linear")) == linear


@pytest.mark.parametrize("name", ["word_embeddings", "lm_head"])
def test_a_tied_head_stays_tied(name, tmp_path):
    model = build("glm", "lora", **{**LORA, "modules_to_save": (name,)})
    assert {key for key in trained(model) if ".lora_" not in key} == {
        "base_model.model.transformer.word_embeddings.weight"
    }
    disturb(model)
    directory = saved(model, tmp_path)
    assert json.loads((directory / "adapter_config.json").read_text())["modules_to_save"] == [
        "lm_head",
        "transformer.word_embeddings",
    ]
    fold, base = Lora().fold(Lora().read(directory)), base_tensors("glm")
    names = ("lm_head.weight", "transformer.word_embeddings.weight")
    head, embedding = (fold.change(key, base[key]) for key in names)
    assert torch.equal(head, embedding) and not torch.equal(head, base[names[0]])


@pytest.mark.parametrize(
    ("mode", "changes", "sentence"),
    [
        ("glm2", {"modules_to_save": ("no_such",)}, r"--modules_to_save no_such .* output_layer, .*word_embeddings"),
        ("glm2", {"modules_to_save": ("layers.3.mlp",)}, "--modules_to_save: .*leave one of them out"),
        ("glm2", {"modules_to_save": ("dense",)}, "--modules_to_save: .*leave one of them out"),
        ("glm2", {"lora_variant": "pissa", "lora_dim": 65}, "--lora_dim 65 is more than PiSSA's 64 singular vectors"),
        ("glm", {"lora_module_name": ("lm_head",)}, "lm_head: it is tied to the embedding of this model"),
    ],
)
def test_what_no_model_can_do(mode, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Lora(**{**LORA, **changes}).check(build(mode))


@pytest.mark.parametrize(
    ("argv", "stage", "sentences"),
    [
        ("--lora_variant dora", 2, []),
        ("--lora_variant adalora", 1, []),
        ("--freeze_last_n 2 --train_type freeze", 3, []),
        ("--freeze_module_name layers.3. --train_type freeze", 3, []),
        ("--lora_variant dora", 3, ["--lora_variant dora does not work at ZeRO stage 3"]),
        ("--lora_variant adalora", 3, ["--lora_variant adalora does not work at ZeRO stage 3"]),
        ("--lora_variant adalora --lora_dim 4", 2, ["--adalora_target_r 4 is not below --lora_dim 4"]),
        ("--lora_variant dora --adalora_target_r 2", 2, ["--adalora_target_r 2 needs --lora_variant adalora"]),
        ("--loraplus_lr_ratio 4", 2, ["--loraplus_lr_ratio 4.0 needs --lora_variant loraplus"]),
        ("--lora_variant pissa --quantization_bit 4", 2, ["--lora_variant pissa does not work on quantized weights"]),
        (
            "--freeze_last_n 2 --freeze_module_name a,b --train_type freeze",
            2,
            ["--freeze_last_n 2 and --freeze_module_name a,b are mutually exclusive"],
        ),
        ("--init_adapter x --train_type all", 2, ["--init_adapter x cannot be combined with --train_type all"]),
        ("--init_adapter x --lora_variant pissa", 2, ["--init_adapter x cannot be combined with --lora_variant pissa"]),
        (
            "--init_adapter x --lora_variant adalora --loraplus_lr_ratio 2",
            3,
            ["--loraplus_lr_ratio", "ZeRO stage 3", "--init_adapter x"],
        ),
    ],
)
def test_flags_that_do_not_go_together(argv, stage, sentences, tmp_path):
    if "--quantization_bit" in argv:
        pytest.importorskip("bitsandbytes")
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    run = launch.train_options("glm2", "lora", tmp_path / "out", ds_file=tmp_path / "ds.json")
    given = ("train_path", "model_name_or_path", "ds_file", "output_dir", "data_cache_dir")
    options, problems = parse_train([*launch.flags({name: run[name] for name in given}), *argv.split()])
    if not sentences:
        assert check(options, problems).options == options
        return
    with pytest.raises(UserError) as caught:
        check(options, problems)
    reported = caught.value.sentences
    assert len(reported) == len(sentences), reported
    assert all(part in problem and problem.endswith(".") for part, problem in zip(sentences, reported, strict=True))


@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_the_last_layers(mode):
    options = {"freeze_module_name": ("layers.0.",), "freeze_last_n": 2}
    names = set(trained(build(mode, "freeze", **options)))
    by_name = build(mode, "freeze", freeze_module_name=("layers.2.", "layers.3."))
    assert names == set(trained(by_name)) and names
    with pytest.raises(UserError, match="--freeze_last_n 5: this model has 4 layers"):
        Freeze(freeze_module_name=(), freeze_last_n=5).check(build(mode))


def test_freeze_with_a_tied_head():
    Freeze(freeze_module_name=("lm_head",)).check(build("glm"))
    names = set(trained(build("glm", "freeze", freeze_module_name=("lm_head", "final_layernorm"))))
    assert {name for name in names if "final_layernorm" not in name} == {"transformer.word_embeddings.weight"}


def started(mode, directory, **changes):
    """A prepared model that starts from a checked directory."""
    method = "ptuning" if "pre_seq_len" in changes else "lora"
    options = changes if method == "ptuning" else {**LORA, **changes}
    model = build(mode, method, **options)
    parameters = parameters_of(model)
    config = MODES[mode].config_class.from_pretrained(GOLDEN / mode / "base")
    METHODS[method](**options).configure(config)
    start = METHODS[method](**options).read_start(directory, parameters, MODES[mode].model_class, config)
    METHODS[method](**options).load_start(model, start)
    return model


@pytest.mark.parametrize(("name", "modules"), [("lora", ("query_key_value",)), ("lora_all", ("all-linear",))])
@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
def test_a_start_from_an_adapter_of_2023(mode, name, modules):
    model = started(mode, GOLDEN / mode / f"adapter_{name}", lora_module_name=modules).eval()
    tensors = golden.tensors(mode)
    with torch.no_grad():
        top = model(input_ids=tensors["padded.input_ids"]).logits.topk(8).values
    assert golden.relative_error(top, tensors[f"{name}.padded.logits_top"]) < 1e-4
    assert trained(model)  # and it learns on


@pytest.mark.parametrize("variant", ["lora", "dora", "rslora", "loraplus"])
def test_a_start_from_a_checkpoint(variant, tmp_path):
    changes = {"lora_variant": variant, "modules_to_save": ("lm_head",)}
    model = build("glm", "lora", **{**LORA, **changes})
    disturb(model)
    directory = saved(model, tmp_path)
    assert torch.equal(logits(started("glm", directory, **changes)), logits(model))


def test_a_start_from_a_pissa_checkpoint_is_a_lora_of_twice_the_rank(tmp_path):
    model = build("glm2", "lora", **{**LORA, "lora_variant": "pissa"})
    disturb(model)
    other = started("glm2", saved(model, tmp_path), lora_dim=8, lora_alpha=32)
    assert torch.allclose(logits(other), logits(model), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora_dim": 8}, "has 4 for --lora_dim, which is 8"),
        ({"lora_alpha": 30}, "has 16 for --lora_alpha, which is 30"),
        ({"lora_variant": "dora"}, "has lora for --lora_variant, which is dora"),
        (
            {"lora_module_name": ("dense",)},
            r"has query_key_value \(4 times\) for --lora_module_name, which is dense \(4 times\)",
        ),
        (
            {"lora_module_name": ("layers.3.self_attention.query_key_value",)},
            r"has query_key_value \(4 times\) for --lora_module_name, which is query_key_value:",
        ),
        ({"modules_to_save": ("final_layernorm",)}, "has none for --modules_to_save, which is .*final_layernorm"),
        ({"pre_seq_len": 4, "prefix_projection": True, "prefix_layers": "all"}, "holds none of prefix_encoder"),
    ],
)
def test_a_start_that_does_not_fit_the_flags(changes, sentence):
    directory = GOLDEN / "glm2" / "adapter_lora"
    changes = {"lora_module_name": ("query_key_value",), **changes} if "pre_seq_len" not in changes else changes
    with pytest.raises(UserError, match=f"--init_adapter .*{sentence}"):
        started("glm2", directory, **changes)


def test_a_start_from_another_base():
    with pytest.raises(UserError, match="the adapter of .*it belongs to another base"):
        started("glm2", GOLDEN / "glm" / "adapter_lora", lora_module_name=("query_key_value",))


PREFIX = {"pre_seq_len": 6, "prefix_projection": True, "prefix_layers": "all"}


def prefix_layout(layout, mode, projection, directory):
    """The golden prefix as this toolkit, the official code, or the 2023 tool would have left it."""
    start = f"ptuning_{'proj' if projection else 'noproj'}.prefix."
    prefix = {
        name.removeprefix(start): tensor.half()
        for name, tensor in golden.tensors(mode).items()
        if name.startswith(start)
    }
    if layout == "ours":
        write_shards(prefix.items(), directory, "prefix_encoder")
    elif layout == "official":
        torch.save(prefix, directory / "pytorch_model.bin")
    elif layout == "whole":
        torch.save({**build(mode).state_dict(), **prefix}, directory / "pytorch_model.bin")
    elif layout == "whole in shards":
        shutil.copytree(GOLDEN / mode / "base", directory, dirs_exist_ok=True)
        torch.save(prefix, directory / "pytorch_model-00003-of-00003.bin")
    elif layout == "safetensors":
        save_file({**prefix, "other": torch.zeros(2)}, directory / "model.safetensors")
    return prefix


@pytest.mark.parametrize("layout", ["ours", "official", "whole", "whole in shards", "safetensors"])
@pytest.mark.parametrize(("mode", "projection"), [("glm", True), ("glm2", False), ("glm3", True)])
def test_a_start_from_a_prefix(layout, mode, projection, tmp_path):
    prefix = prefix_layout(layout, mode, projection, tmp_path)
    model = started(mode, tmp_path, **{**PREFIX, "prefix_projection": projection})
    assert {name: tensor.shape for name, tensor in trained(model).items()} == {
        name: t.shape for name, t in prefix.items()
    }
    assert all(torch.equal(tensor, prefix[name].float()) for name, tensor in trained(model).items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pre_seq_len": 8}, "has 6 for --pre_seq_len, which is 8"),
        ({"prefix_projection": False}, "has True for --prefix_projection, which is False"),
        ({"prefix_layers": "embedding"}, "it belongs to another base or other flags"),
    ],
)
def test_a_prefix_that_does_not_fit_the_flags(changes, sentence, tmp_path):
    prefix_layout("official", "glm2", True, tmp_path)
    with pytest.raises(UserError, match=f"--init_adapter .*{sentence}"):
        started("glm2", tmp_path, **{**PREFIX, **changes})


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [{"x": Hostile()}, [1], {"transformer.prefix_encoder.x": 3}, {"transformer.word_embeddings.weight": torch.ones(2)}],
    ids=["hostile", "list", "number", "no prefix"],
)
def test_no_prefix_in_the_file(content, tmp_path, capsys):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="^--init_adapter.*(cannot be read as tensors|holds no transformer.prefix_enc)"):
        started("glm2", tmp_path, **PREFIX)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--init_adapter .*none is not a directory"):
        started("glm2", tmp_path / "none", **PREFIX)


def changed_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights .*cannot be applied"),
        ({"bias": "some"}, 'has bias "some"'),
        ({"alpha_pattern": {"(.*)*$": 3}}, "has alpha_pattern"),
        ({"modules_to_save": "lm_head"}, "has modules_to_save"),
        ({"peft_type": "ADALORA"}, "has init_r null"),
        ({"peft_type": "ADALORA", "init_r": 4}, "no whole pair"),
        ({"lora_dropout": 7}, "has lora_dropout 7"),
    ],
)
def test_adapters_that_cannot_be_applied(changes, sentence, tmp_path):
    directory = saved(build("glm2", "lora", **LORA), tmp_path)
    changed_config(directory, **changes)
    with pytest.raises(UserError, match=sentence):
        Lora().fold(Lora().read(directory))


def test_patterns_of_scales_are_folded_as_peft_does(tmp_path):
    model = build("glm2", "lora", **LORA)
    disturb(model)
    directory = saved(model, tmp_path)
    changed_config(directory, alpha_pattern={"dense": 3, "layers.1.mlp.dense_h_to_4h": 5})
    merged = dict(Lora().load(build("glm2"), Lora().read(directory)).merge_and_unload().named_parameters())
    fold = Lora().fold(Lora().read(directory))
    for name, tensor in base_tensors("glm2").items():
        assert (fold.change(name, tensor) - merged[name]).abs().max() <= 1e-6, name


def test_an_adapter_that_unties_the_head(tmp_path):
    directory = saved(build("glm", "lora", **{**LORA, "modules_to_save": ("lm_head",)}), tmp_path)
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.transformer.word_embeddings.weight"]
    save_file(tensors, file)
    with torch.device("meta"):
        model = MODES["glm"].model_class(MODES["glm"].config_class.from_pretrained(GOLDEN / "glm" / "base"))
    with pytest.raises(UserError, match=r"changes lm_head.weight but not transformer.word_embeddings.weight"):
        Lora().fits(model, Lora().read(directory))


def test_the_schedule_of_adalora_fits_any_number_of_steps():
    model = build("glm2", "lora", **{**LORA, "lora_variant": "adalora"})
    config, allocator = model.peft_config["default"], model.base_model.rankallocator
    for total_steps in (1, 2, 3, 7, 10, 1000):
        adalora.schedule_ranks(model, total_steps)
        type(config)(**{**config.to_dict(), "r": 8})  # peft's own check of such a schedule
        last = total_steps - config.tfinal
        budgets = [allocator.budget_schedule(step)[0] for step in range(1, last)]
        assert all(2 * 16 <= budget <= 4 * 16 for budget in budgets) and budgets == sorted(budgets, reverse=True)
        assert allocator.budget_schedule(last + 1)[0] == 2 * 16
    assert (config.tinit, config.tfinal, config.deltaT) == (100, 400, 10)


def test_the_documents_have_the_computed_sizes():
    english, chinese = (
        (REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("methods.md", "methods.zh-CN.md")
    )
    rows = table()
    assert "\n".join(rows) in english
    for row in rows[2:]:
        assert row[row.index(" |") :] in chinese  # the figures, behind a translated name
    assert len(re.findall("^#+ ", english, re.M)) == len(re.findall("^#+ ", chinese, re.M))
    assert set(re.findall(r"`([^`\n]+)`", english)) == set(re.findall(r"`([^`\n]+)`", chinese))
