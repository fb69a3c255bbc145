"""runs/browsing.py: what a directory offers for picking."""

import os

import pytest

from checkpoints.record import RECORD_FILE
from runs.browsing import list_directory
from runs.errors import Outside
from runs.places import Root


def test_what_is_offered_and_as_what(tmp_path):
    root = tmp_path / "root"
    kinds = {"base": "config.json", "lora": RECORD_FILE, "adapter": "adapter_config.json", "run": "process.json"}
    for name, file in {**kinds, "empty": "notes", ".hidden": "config.json"}.items():
        (root / name).mkdir(parents=True)
        (root / name / file).touch()
    (root / "b.JSONL").write_text("{}")
    (root / "a.bin").write_text("")
    (root / "link").symlink_to(root / "base")
    for name, target in (("outside", "/etc"), ("nowhere", "gone"), ("circle", "circle")):
        (root / name).symlink_to(target)
    entries, more = list_directory(Root(root), root, 100)
    assert [(entry["name"], entry["kind"]) for entry in entries] == [
        ("adapter", "checkpoint"), ("base", "model"), ("empty", "directory"), ("link", "model"), ("lora", "checkpoint"),
        ("run", "run"), ("a.bin", "file"), ("b.JSONL", "data"),
    ]  # fmt: skip
    assert [entry["bytes"] for entry in entries[-2:]] == [0, 2] and "bytes" not in entries[0]
    assert more == 0 and list_directory(Root(root), root, 3) == (entries[:3], 8)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(Outside, match="cannot be read"):
        list_directory(Root(tmp_path), tmp_path / "locked", 100)
