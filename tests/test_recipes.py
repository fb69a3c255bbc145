"""scripts/recipes/: one command per mode × method, and each way to start on several machines; read, then started."""

import json
import subprocess
from pathlib import Path

import pytest

from methods import METHODS
from modes import MODES
from options.train import parse_train
from tests import launch
from training.ds_config import find_ds_file

RECIPES = launch.REPOSITORY / "scripts" / "recipes"
CASES = [(mode, method) for mode in MODES for method in METHODS]
SEVERAL = {name: RECIPES / f"multi_machine_{name}.sh" for name in ("ssh", "no_ssh", "torchrun", "slurm")}
NEEDED = {
    "ssh": {"HOSTFILE": "hosts", "MASTER_ADDR": "10.0.0.1"},
    "no_ssh": {"HOSTFILE": "hosts", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"},
    "torchrun": {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"},
    "slurm": {},
}
WORDS = {
    "ssh": "--hostfile hosts --force_multi --master_addr 10.0.0.1 --master_port 29520",
    "no_ssh": "--hostfile hosts --no_ssh --node_rank 1 --master_addr 10.0.0.1 --master_port 29520",
    "torchrun": "--nnodes 2 --nproc_per_node 4 --node_rank 1 --master_addr 10.0.0.1 --master_port 29520",
    "slurm": "--kill-on-bad-exit=1 python",
}
BASES = {"glm": "ChatGLM-6B/", "glm2": "ChatGLM2-6B/", "glm3": "ChatGLM3-6B/"}
OF_METHOD = {
    "freeze": {"freeze_module_name": ("layers.27.", "layers.26.", "layers.25.", "layers.24.")},
    "ptuning": {"pre_seq_len": 16, "prefix_projection": True, "prefix_layers": "all"},
    "lora": {"lora_dim": 16, "lora_alpha": 64, "lora_dropout": 0.1, "lora_module_name": ("query_key_value",)},
    "all": {},
}


def recipe(mode: str, method: str) -> Path:
    return RECIPES / f"{mode}_{method}.sh"


def command_of(script: Path, tmp_path: Path, *arguments: str, **variables: str) -> tuple[str, str, list[str]]:
    """(directory, CUDA_VISIBLE_DEVICES, arguments) that a recipe gives to its launcher, here one that prints them."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name in ("deepspeed", "torchrun", "srun"):
        stand_in = tmp_path / "bin" / name
        stand_in.write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "${CUDA_VISIBLE_DEVICES-}" "$@"\n')
        stand_in.chmod(0o755)
    ours = ("MODEL_PATH", "TRAIN_PATH", "OUTPUT_DIR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "SLURM_SUBMIT_DIR")
    environment = {name: value for name, value in launch.environment().items() if name not in ours}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{environment['PATH']}", **variables}
    result = subprocess.run(
        ["bash", str(script), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    directory, cards, *rest = result.stdout.split("\0")[:-1]
    return directory, cards, rest


def options_of(arguments: list[str]) -> dict:
    """What train.py makes of the arguments behind its name."""
    options, problems = parse_train(arguments[arguments.index("train.py") + 1 :])
    assert problems == []
    values = {name: value for section in options.sections for name, value in vars(section).items()}
    return {**values, "given": options.given}


def test_there_is_a_recipe_for_everything_and_nothing_else():
    expected = {recipe(mode, method).name for mode, method in CASES} | {path.name for path in SEVERAL.values()}
    assert {path.name for path in RECIPES.iterdir()} == expected


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.stem)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize(("mode", "method"), CASES)
def test_the_command(mode, method, tmp_path):
    directory, cards, arguments = command_of(recipe(mode, method), tmp_path)
    assert directory == str(launch.REPOSITORY)
    assert cards == ("0,1,2,3" if method == "all" else "0")
    assert arguments[:3] == ["--master_port", "29520", "train.py"]
    options = options_of(arguments)
    short = (mode, method) == ("glm", "ptuning")
    expected = {
        "mode": mode,
        "train_type": method,
        "model_name_or_path": BASES[mode],
        "train_path": "data/spo_0.json",
        "max_len": 768 if short else 1560,
        "max_src_len": 512 if short else 1024,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "warmup_ratio": 0.1,
        "seed": 1234,
        "ds_file": "ds_zero3_offload.json" if method == "all" else "ds_zero2_no_offload.json",
        "gradient_checkpointing": True,
        "show_loss_step": 10,
        "output_dir": f"./output-{mode}-{method}",
        **OF_METHOD[method],
    }
    assert {name: options[name] for name in expected} == expected
    assert options["given"] <= expected.keys()  # no flag of another method
    assert find_ds_file(options["ds_file"]).is_file()


@pytest.mark.parametrize(("mode", "method"), CASES)
def test_everything_can_be_replaced(mode, method, tmp_path):
    variables = {"MODEL_PATH": "/my base", "TRAIN_PATH": "my.json", "OUTPUT_DIR": "out", "MASTER_PORT": "31000"}
    flags = ["--max_len", "64", "--learning_rate", "0.5", "--save_total_limit", "2"]
    _, cards, arguments = command_of(recipe(mode, method), tmp_path, *flags, CUDA_VISIBLE_DEVICES="2,5", **variables)
    assert cards == "2,5" and arguments[1] == "31000"
    options = options_of(arguments)
    expected = {
        "model_name_or_path": "/my base",
        "train_path": "my.json",
        "output_dir": "out",
        "max_len": 64,
        "learning_rate": 0.5,
        "save_total_limit": 2,
    }
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize("name", SEVERAL)
def test_several_machines(name, tmp_path):
    directory, _, arguments = command_of(SEVERAL[name], tmp_path, "--train_type", "lora", **NEEDED[name])
    launcher = WORDS[name].split()
    assert directory == str(launch.REPOSITORY) and arguments[: len(launcher) + 1] == [*launcher, "train.py"]
    options = options_of(arguments)
    assert (options["mode"], options["train_type"]) == ("glm3", "lora")


@pytest.mark.parametrize(
    ("name", "missing"), [(name, variable) for name, given in NEEDED.items() for variable in given]
)
def test_several_machines_ask_for_what_they_need(name, missing):
    variables = {variable: value for variable, value in NEEDED[name].items() if variable != missing}
    result = launch.start(["bash", SEVERAL[name]], **variables)
    assert result.returncode != 0 and missing in result.stderr


def on_the_tiny_base(mode: str, tmp_path: Path) -> tuple[dict[str, str], list[str]]:
    """Variables and flags that make a recipe one quick step on the tiny base of a mode, on a CPU."""
    variables = {
        "MODEL_PATH": str(launch.GOLDEN / mode / "base"),
        "TRAIN_PATH": str(launch.GOLDEN / "samples.jsonl"),
        "OUTPUT_DIR": str(tmp_path / "output"),
        "MASTER_PORT": str(launch.free_port()),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    return variables, ["--max_steps", "1", "--max_len", "128", "--max_src_len", "64"]


def check_checkpoint(directory: Path, mode: str, method: str) -> None:
    (row,) = launch.metrics(directory)
    assert row["step"] == 1 and 0 < row["loss"] < 20
    record = json.loads((directory / "epoch-1-step-1" / "checkpoint.json").read_text())
    assert (record["mode"], record["train_type"]) == (mode, method)
    assert list((directory / "epoch-1-step-1").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "method"), CASES)
def test_it_trains(mode, method, tmp_path):
    variables, flags = on_the_tiny_base(mode, tmp_path)
    if method == "freeze":  # the tiny base has four layers
        flags += ["--freeze_module_name", "layers.3."]
    *_, arguments = command_of(recipe(mode, method), tmp_path, *flags, **variables)
    words = arguments[arguments.index("train.py") :]
    result = launch.fork(words, 1, XDG_CACHE_HOME=variables["XDG_CACHE_HOME"])
    assert result.returncode == 0, result.stdout + result.stderr
    check_checkpoint(tmp_path / "output", mode, method)
