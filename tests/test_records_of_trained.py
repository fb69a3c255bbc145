"""Records in merged directories, adapters, and checkpoints to resume from."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from checkpoints.merging import prepare_merge
from checkpoints.read import read_model
from checkpoints.record import MERGED_FILE, RECORD_FILE, make_record
from checkpoints.resume import newest_state
from checkpoints.side_files import copy_beside
from errors import UserError
from files import write_json
from generation.models import load_answerer
from methods.lora import Lora
from modes import MODES
from modes.directory import fingerprint, read_base
from tests.launch import GOLDEN
from tests.prepared import LORA, build, trained, write_merged

ADAPTER = GOLDEN / "glm3" / "adapter_lora"


def record_of(base, train_type, method, **options):
    return make_record(
        mode="glm3", train_type=train_type, method=method, base_path=base, fingerprint=fingerprint(read_base(base)),
        template=MODES["glm3"].template, options=options, precision="fp32",
    )  # fmt: skip


@pytest.fixture
def trained_base(tmp_path):
    """A checkpoint of `--train_type all` that was itself trained on a merged directory: a base with two records."""
    base = tmp_path / "output" / "epoch-1-step-50"
    shutil.copytree(GOLDEN / "glm3" / "base", base)
    stale = record_of(base, "all", {}, max_len=8, max_src_len=4)
    write_json(base / RECORD_FILE, {**stale, "step": 50, "files": {"model.safetensors": 1}})
    write_json(base / MERGED_FILE, stale)
    return base


def lora_checkpoint(base, directory):
    """A LoRA checkpoint on that base, with a record."""
    options = {**LORA, "lora_module_name": ("query_key_value",)}
    model = build("glm3", "lora", **options)
    directory.mkdir()
    Lora().save(directory, model, [(name, tensor.detach()) for name, tensor in trained(model).items()])
    record = record_of(base, "lora", {**options, "lora_module_name": ["query_key_value"]}, max_len=99, max_src_len=77)
    write_json(directory / RECORD_FILE, record)
    return directory


@pytest.mark.parametrize("own", [True, False], ids=["checkpoint", "adapter from elsewhere"])
def test_a_merged_directory_has_a_record_of_its_own(own, trained_base, tmp_path):
    """Whatever records the base has: predict.py takes the limits of the checkpoint, or none."""
    merged_from = lora_checkpoint(trained_base, tmp_path / "lora") if own else ADAPTER
    merged = tmp_path / "merged"
    write_merged(prepare_merge(trained_base, merged_from, merged))
    record = json.loads((merged / MERGED_FILE).read_text())
    assert not (merged / RECORD_FILE).exists()
    assert record["base"] == {"path": str(trained_base), "fingerprint": fingerprint(read_base(trained_base))}
    assert (
        record["checkpoint"] == str(merged_from.resolve()) and record["train_type"] == "lora" and "files" not in record
    )
    limits = {"max_src_len": 77, "max_len": 99} if own else {"max_src_len": None, "max_len": None}
    assert load_answerer(merged).limits == limits
    assert read_model(merged).run_options == ({"max_len": 99, "max_src_len": 77} if own else {})


def test_a_merged_directory_names_the_base_that_it_was_merged_into(tmp_path):
    """With --force, that is another one than the base of the training."""
    base = tmp_path / "other"
    shutil.copytree(GOLDEN / "glm3" / "base", base)
    checkpoint = lora_checkpoint(GOLDEN / "glm3" / "base", tmp_path / "lora")
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    write_json(checkpoint / RECORD_FILE, {**record, "base": {"path": "/gone", "fingerprint": "x"}})
    write_merged(prepare_merge(base, checkpoint, tmp_path / "merged", force=True))
    assert json.loads((tmp_path / "merged" / MERGED_FILE).read_text())["base"]["path"] == str(base)


def test_a_base_that_was_trained_does_not_hand_on_its_records(trained_base, tmp_path):
    (tmp_path / "next").mkdir()
    copy_beside(read_base(trained_base), tmp_path / "next", {})
    assert not {RECORD_FILE, MERGED_FILE} & {path.name for path in (tmp_path / "next").iterdir()}


def test_an_adapter_names_its_base_by_an_absolute_path(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "glm3" / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = MODES["glm3"].model_class.from_pretrained("base", dtype="float32")
    model = Lora(**{**LORA, "lora_module_name": ("query_key_value",)}).prepare(model)
    Path("adapter").mkdir()
    Lora().save(Path("adapter"), model, [(name, tensor.detach()) for name, tensor in trained(model).items()])
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    monkeypatch.chdir("/")
    assert load_answerer(tmp_path / "adapter").model is not None  # without --base_model


STATE = {
    "format": 1, "step": 50, "epoch": 1, "samples": 0, "optimizer_steps": 50, "schedule_step": 50, "world_size": 1,
    "same": {}, "files": {},
}  # fmt: skip


def state(directory, step):
    (directory / f"step-{step}").mkdir(parents=True)
    write_json(directory / f"step-{step}" / "state.json", {**STATE, "step": step})


def checkpoint(directory, train_type, step=50):
    directory.mkdir(parents=True)
    write_json(directory / RECORD_FILE, {**record_of(GOLDEN / "glm3" / "base", train_type, {}), "step": step})
    return directory


@pytest.mark.parametrize("name", ["epoch-1-step-50", "best"])
def test_the_state_of_a_checkpoint_is_found(name, tmp_path):
    for step in (50, 60):
        state(tmp_path / "state", step)
    newest = newest_state(tmp_path / "elsewhere", str(checkpoint(tmp_path / name, "lora")))
    assert newest.directory == tmp_path / "state" / "step-50" and newest.position.step == 50


@pytest.mark.parametrize(
    ("train_type", "advice"),
    [
        ("lora", "--init_adapter {}"),
        ("ptuning", "--init_adapter {}"),
        ("all", "--model_name_or_path {}"),
        ("freeze", "the result of merge_lora.py as --model_name_or_path"),
    ],
)
@pytest.mark.parametrize("other", [None, 60])
def test_a_checkpoint_without_its_state(train_type, advice, other, tmp_path):
    if other:
        state(tmp_path / "state", other)
    directory = checkpoint(tmp_path / "epoch-1-step-50", train_type)
    with pytest.raises(UserError) as caught:
        newest_state(tmp_path, str(directory))
    text = str(caught.value)
    assert f"--resume_from_checkpoint {directory} holds trained values but no resume state" in text
    assert advice.format(directory) in text and "\n" not in text and text.endswith(".")
    assert (f"{tmp_path} to resume from step-60" in text) == bool(other)


def test_an_adapter_is_not_resumed(tmp_path):
    shutil.copytree(ADAPTER, tmp_path / "adapter")
    with pytest.raises(UserError, match="no resume state: give --init_adapter .*adapter to start a new run"):
        newest_state(tmp_path, str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="holds no state.json"):
        newest_state(tmp_path, str(tmp_path))


def test_predict_uses_all_of_an_adapter_without_prefix(tmp_path):
    """The names that some tools write; it was answered by the plain base."""
    directory = lora_checkpoint(GOLDEN / "glm3" / "base", tmp_path / "lora")
    (directory / RECORD_FILE).unlink()
    file = directory / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): tensor + 0.1 for name, tensor in load_file(file).items()}, file)
    model = load_answerer(directory, GOLDEN / "glm3" / "base").model
    values = [tensor for name, tensor in model.named_parameters() if ".lora_B." in name]
    assert values and all((tensor != 0).all() for tensor in values)
