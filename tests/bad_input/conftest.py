"""Inputs to damage: a base, records, and a checkpoint of each method, made once and copied for every test."""

import shutil

import pytest

from checkpoints.record import make_record
from checkpoints.write import save_checkpoint
from methods import METHODS
from modes import MODES
from modes.directory import fingerprint, read_base
from tests import launch
from tests.bad_input.place import RECORD, write

METHOD_OPTIONS = {
    "lora": {"lora_dim": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_module_name": ("query_key_value",)},
    "ptuning": {"pre_seq_len": 4, "prefix_projection": False, "prefix_layers": "all"},
    "freeze": {"freeze_module_name": ("layers.3.",)},
}


@pytest.fixture
def place(tmp_path):
    """A directory with base/ (ChatGLM2, tiny), records.json and an empty cache/."""
    shutil.copytree(launch.GOLDEN / "glm2" / "base", tmp_path / "base")
    write(tmp_path / "records.json", RECORD)
    (tmp_path / "cache").mkdir()
    return tmp_path


@pytest.fixture(scope="session")
def untrained_checkpoints(tmp_path_factory):
    """train_type → a checkpoint of the golden ChatGLM2 base, as it would be before the first step."""
    base, mode = read_base(launch.GOLDEN / "glm2" / "base"), MODES["glm2"]
    parent = tmp_path_factory.mktemp("checkpoints")
    for name, options in METHOD_OPTIONS.items():
        method, config = METHODS[name](**options), mode.config_class.from_pretrained(base.path)
        method.configure(config)
        model = method.prepare(mode.model_class.from_pretrained(base.path, config=config, dtype="float32"))
        trained = ((key, value.detach()) for key, value in model.named_parameters() if value.requires_grad)
        record = make_record(
            mode="glm2",
            train_type=name,
            method=method.record(),
            base_path=base.path,
            fingerprint=fingerprint(base),
            template=mode.template,
            options={"max_len": 256, "max_src_len": 160},
            precision="fp32",
        )

        def write_files(directory, tensors, method=method, model=model):
            method.save(directory, model, tensors)

        save_checkpoint(parent / name, trained, write_files, {**record, "epoch": 1, "step": 1}, is_main=True)
    return parent


@pytest.fixture
def checkpoints(place, untrained_checkpoints):
    """`place`, with lora/, ptuning/ and freeze/ beside the base that they name."""
    for name in METHOD_OPTIONS:
        shutil.copytree(untrained_checkpoints / name, place / name)
    return place
