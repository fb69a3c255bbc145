"""options/fields.py, runs/command.py: every flag is a field; values become the command that runs, within the root."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from flags import flags_of
from options.fields import located, sections_of
from options.merge import MERGE
from options.train import TRAIN, parse_train
from runs.command import arguments, compose, presets
from runs.errors import Refused
from runs.places import Root
from tests.launch import REPOSITORY

CHINESE = range(0x4E00, 0x9FFF)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "more.json").write_text("{}")
    return Root.at(str(tmp_path))


def fields(program):
    return {field["name"]: field for section in sections_of(program) for field in section["fields"]}


NEEDED = {"model_name_or_path": "base", "train_path": "train.json", "output_dir": "out"}


def texts(composed):
    return {problem["field"]: problem["text"] for problem in composed.problems}


def test_every_flag_is_a_field():
    ignored = {name for name, flag in TRAIN.flags.items() if flag.ignored}
    assert ignored == {"local_rank", "deepspeed", "deepspeed_config"}
    assert fields(TRAIN).keys() == TRAIN.flags.keys() - ignored - {"dry_run", "gpu_memory"}
    assert fields(MERGE).keys() == MERGE.flags.keys()
    sections = sections_of(TRAIN)
    of_methods = {field["name"]: field["method"] for section in sections for field in section["fields"]}
    assert of_methods["lora_dim"] == "lora" and of_methods["pre_seq_len"] == "ptuning" and not of_methods["max_len"]
    assert all(section["name"] for section in sections)


@pytest.mark.parametrize("program", [TRAIN, MERGE], ids=lambda program: program.name)
def test_every_field_has_help_in_both_languages(program):
    for field in fields(program).values():
        assert field["help"].endswith(".") and any(ord(c) in CHINESE for c in field["zh"]), field["name"]


def test_the_page_has_a_name_for_every_section():
    texts = json.loads((REPOSITORY / "web" / "static" / "texts.json").read_text(encoding="utf-8"))["train"]
    for section in sections_of(TRAIN) + sections_of(MERGE):
        english, chinese = texts[f"section.{section['name']}"]
        assert english and chinese


def test_kinds_follow_from_the_flags():
    train, merge = fields(TRAIN), fields(MERGE)
    kinds = {name: field["kind"] for name, field in train.items()}
    assert {kinds[name] for name, flag in TRAIN.flags.items() if flag.choices and name in kinds} == {"choice"}
    assert kinds["learning_rate"] == kinds["seed"] == "number" and kinds["checkpoint_layers"] == "text"
    assert kinds["packing"] == "flag" and kinds["lora_module_name"] == "list"
    paths = {name: field["want"] for name, field in train.items() if field["kind"] == "path"}
    assert (
        paths["model_name_or_path"] == "base" and paths["train_path"] == "data" and paths["output_dir"] == "directory"
    )
    assert paths.keys() == {
        name
        for name, flag in TRAIN.flags.items()
        if name in train and ("DIR" in flag.metavar or flag.metavar == "FILE")
    }
    assert "ds_zero2_offload.json" in train["ds_file"]["choices"]
    assert train["resume_from_checkpoint"]["choices"] == ["auto", "none"]
    assert train["learning_rate"]["bounds"] == "> 0" and train["learning_rate"]["default"] == "0.001"
    assert merge["verify"]["choices"] == ["True", "False"] and merge["verify"]["default"] == ""


def test_the_command_and_the_file_mean_the_same(root):
    values = {
        "model_name_or_path": "base",
        "train_path": "train.json, more.json",
        "output_dir": "my output",
        "train_type": "freeze",
        "freeze_module_name": "layers.3.,layers.2.",
        "gradient_checkpointing": "True",
        "share_prompts": "False",
        "learning_rate": " 1e-4 ",
        "source_prefix": "--it's $HOME; `id`",
        "mode": "",
    }
    composed = compose(values, {"devices": [1, 3], "port": 31000}, root)
    assert composed.problems == [] and composed.environment == {"CUDA_VISIBLE_DEVICES": "1,3"}
    assert composed.launcher == ["deepspeed", "--master_port", "31000", "train.py"]
    assert shlex.split(composed.shown) == ["CUDA_VISIBLE_DEVICES=1,3", *composed.launcher, *composed.argv]
    printed = subprocess.run(
        ["bash", "-c", composed.shown.replace("deepspeed", "printf '%s\\0'")], capture_output=True, text=True
    )
    assert printed.stdout.split("\0")[:-1] == [*composed.launcher[1:], *composed.argv]
    options, problems = parse_train(composed.argv)
    assert problems == [] and options.optimizer.learning_rate == 1e-4 and not options.compute.share_prompts
    assert options.data.train_path == f"{root.path}/train.json,{root.path}/more.json"
    assert options.data.is_skip is False and options.columns.source_prefix == "--it's $HOME; `id`"
    file = root.path / "run.yaml"
    file.write_text(composed.yaml, encoding="utf-8")
    of_file, problems = parse_train(["--config", str(file)])
    assert problems == [] and of_file.flat() == options.flat()


def test_a_path_in_the_repository_is_relative_to_it():
    composed = compose(
        {"train_path": "spo_0.json", "ds_file": "ds_zero2_offload.json"}, {}, Root.at(REPOSITORY / "data")
    )
    assert composed.argv == ["--train_path", "data/spo_0.json", "--ds_file", "ds_zero2_offload.json"]
    assert composed.launcher == ["deepspeed", "--master_port", "29520", "--num_gpus", "1", "train.py"]
    assert composed.environment == {}


def test_problems_are_at_their_fields(root):
    found = texts(compose({"max_len": "many", "learning_rate": "-1", "eval_step": "3", "train_type": "lor"}, {}, root))
    assert found["max_len"].startswith("--max_len: 'many' is not a whole number")
    assert found["learning_rate"] == "--learning_rate -1.0 is out of bounds: it must be greater than 0."
    assert found["eval_step"] == "--eval_step 3 needs --dev_path: give both or neither."
    assert found["train_type"].startswith("--train_type lor is unknown: choose freeze")
    assert located(MERGE, ["It is.", "a --x of --model_dir"]) == [
        {"field": "", "text": "It is."},
        {"field": "model_dir", "text": "a --x of --model_dir"},
    ]
    assert "control character" in texts(compose({"task_key": "a\nb"}, {}, root))["task_key"]


def test_what_is_missing_is_named(root):
    assert texts(compose({}, {}, root)).keys() == {"model_name_or_path", "train_path", "output_dir"}
    assert texts(compose({"dataset": "spo_0", "output_dir": "o"}, {}, root)).keys() == {"model_name_or_path"}
    required = {name for name, field in {**fields(MERGE), **fields(TRAIN)}.items() if field["required"]}
    assert required == {"model_name_or_path", "train_path", "output_dir", "ori_model_dir"}
    assert not fields(MERGE)["output_dir"]["required"]


def test_paths_outside_of_the_root_are_refused(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.symlink(elsewhere, root.path / "link")
    for path in ("/etc", "..", "base/../..", "link/x", "a\0b", str(elsewhere)):
        argv, problems = arguments(TRAIN, {"output_dir": path}, root)
        assert argv == [] and [problem["field"] for problem in problems] == ["output_dir"], path
    for name, field in fields(TRAIN).items():
        if field["kind"] == "path":
            assert texts(compose({name: "/etc/passwd"}, {}, root))[name].startswith(f"--{name}: /etc/passwd is outside")
    assert "train_path" in texts(compose({"train_path": "train.json,/etc/passwd"}, {}, root))
    assert compose({"resume_from_checkpoint": "none"}, {}, root).argv == ["--resume_from_checkpoint", "none"]


def test_a_registry_cannot_name_a_file_outside_of_the_root(root):
    (root.path / "dataset_info.json").write_text(
        '{"good": {"file_name": "train.json"}, "bad": {"file_name": "/etc/passwd"}, "up": {"file_name": "../x.json"}}'
    )
    assert compose({**NEEDED, "dataset": "good", "dataset_dir": "."}, {}, root).problems == []
    for name in ("bad", "up", "good,bad", "none"):
        assert "dataset" in texts(compose({"dataset": name, "dataset_dir": "."}, {}, root)), name
    assert compose({**NEEDED, "dataset": "spo_0"}, {}, root).problems == []  # the shipped registry


@pytest.mark.parametrize(
    "values",
    [[], {"config": "/etc/passwd"}, {"dry_run": "True"}, {"help": "True"}, {"max_len": 3}, {"max-len": "3"}, {"": "x"}],
)
def test_only_fields_with_texts_are_taken(values, root):
    with pytest.raises(Refused, match=r"(are|is) no "):
        compose(values, {}, root)


@pytest.mark.parametrize(
    "launch",
    [{"devices": ["0; id"]}, {"devices": [-1]}, {"devices": [0, 0]}, {"ranks": 0}, {"ranks": True}, {"port": "1"},
     {"port": 70000}, {"devices": [[1]]}, {"devices": "0"}],
)  # fmt: skip
def test_only_numbers_start_ranks(launch, root):
    with pytest.raises(Refused, match="devices, ranks or port"):
        compose({}, launch, root)


def test_presets_are_the_recipes():
    found = {preset["name"]: preset["values"] for preset in presets(Root.at(str(REPOSITORY)))}
    assert len(found) == 12 and found["glm3_lora"]["lora_dim"] == "16" and found["glm2_all"]["train_type"] == "all"
    for name, values in found.items():
        assert values["train_path"] == "data/spo_0.json" and values["output_dir"] == f"output-{name.replace('_', '-')}"
        composed = compose({"model_name_or_path": "data", **values}, {}, Root.at(str(REPOSITORY)))
        assert composed.problems == [] and values["gradient_checkpointing"] == "True", name


def test_paths_of_presets_outside_of_the_root_are_left_out(root):
    assert all("train_path" not in preset["values"] for preset in presets(root))


def test_no_flag_of_a_method_is_twice():
    names = [name for section in TRAIN.sections for name in flags_of(section)]
    assert len(names) == len(set(names))


def test_it_needs_no_torch():
    code = "import sys, runs.command; print(sorted({'torch', 'numpy', 'transformers', 'deepspeed'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert printed.stdout == "[]\n", printed.stderr
