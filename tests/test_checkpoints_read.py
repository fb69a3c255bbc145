"""checkpoints/read.py: what a directory is, read once."""

import json
import shutil

import peft
import pytest

from checkpoints.merging import prepare_merge
from checkpoints.read import CheckpointInfo, read_checkpoint, read_model
from checkpoints.record import MERGED_FILE, make_record
from checkpoints.write import save_checkpoint
from errors import UserError
from generation.models import find_model, load_model
from methods.all import All
from methods.lora import Lora
from modes import MODES
from modes.directory import fingerprint, read_base
from tests.launch import GOLDEN
from tests.prepared import build, trained, write_merged

BASE, ADAPTER = GOLDEN / "glm3" / "base", GOLDEN / "glm3" / "adapter_lora"


def checkpoint_of(directory, **options):
    """A LoRA checkpoint on the golden base."""
    method, base = Lora(lora_dim=2, lora_alpha=8), read_base(BASE)
    model = build("glm3", "lora", lora_dim=2, lora_alpha=8)
    record = make_record(
        mode="glm3", train_type="lora", method=method.record(), base_path=BASE, fingerprint=fingerprint(base),
        template=MODES["glm3"].template, options=options, precision="fp32",
    )  # fmt: skip
    tensors = ((name, parameter.detach()) for name, parameter in trained(model).items())
    save_checkpoint(directory, tensors, lambda files, pairs: method.save(files, model, pairs), record, True)
    return directory


@pytest.fixture
def reads(monkeypatch):
    """The directories whose adapter_model file is read from now on."""
    directories, load = [], peft.load_peft_weights
    monkeypatch.setattr(peft, "load_peft_weights", lambda path, **more: directories.append(path) or load(path, **more))
    return directories


def test_a_checkpoint_has_its_record_method_and_tensors(tmp_path):
    checkpoint = read_model(checkpoint_of(tmp_path / "lora", max_len=99))
    assert (checkpoint.train_type, checkpoint.mode, checkpoint.base_path()) == ("lora", "glm3", BASE.resolve())
    assert checkpoint.method == Lora(lora_dim=2, lora_alpha=8) and checkpoint.run_options == {"max_len": 99}
    assert checkpoint.saved.config["r"] == 2 and checkpoint.saved.layers


def test_an_adapter_from_elsewhere_has_no_record():
    checkpoint = read_model(ADAPTER)
    assert (checkpoint.train_type, checkpoint.mode, checkpoint.record) == ("lora", None, None)
    assert checkpoint.run_options == {} and checkpoint.saved.layers
    with pytest.raises(UserError, match="which is not here: add --base_model"):
        checkpoint.base_path()


def test_a_base_and_a_merged_directory_are_whole_models(tmp_path):
    assert vars(read_model(BASE)) == {"path": BASE, "method": All(), "record": None, "saved": None}
    merged = tmp_path / "merged"
    write_merged(prepare_merge(BASE, checkpoint_of(tmp_path / "lora", max_len=99), merged))
    info = read_model(merged)
    assert (info.train_type, info.mode, info.run_options) == ("all", "glm3", {"max_len": 99})
    assert json.loads((merged / MERGED_FILE).read_text())["train_type"] == "lora"


def test_a_directory_of_something_else(tmp_path):
    with pytest.raises(UserError, match="holds neither checkpoint.json nor adapter_config.json"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="--model_path .*gone is not a directory"):
        read_model(tmp_path / "gone")


def test_the_directory_of_a_run_is_no_checkpoint(tmp_path):
    checkpoint_of(tmp_path / "best")
    with pytest.raises(UserError, match="holds checkpoints and is none itself: give one of them, such as .*best"):
        read_model(tmp_path)


def test_prediction_reads_an_adapter_once(reads):
    located = find_model(read_model(ADAPTER), BASE)
    assert load_model(located).model is not None
    assert reads == [str(ADAPTER)]


def test_merging_reads_an_adapter_once(reads, tmp_path):
    write_merged(prepare_merge(BASE, ADAPTER, tmp_path / "merged"))
    assert reads == [str(ADAPTER)]


def test_a_checkpoint_that_is_deleted_meanwhile_still_answers(tmp_path):
    """The tensors that were checked are those that are loaded."""
    directory = checkpoint_of(tmp_path / "lora")
    located = find_model(read_model(directory))
    shutil.rmtree(directory)
    assert isinstance(located.checkpoint, CheckpointInfo) and load_model(located).model is not None
