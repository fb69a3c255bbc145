"""The diffs of docs/architecture.md: applied to a copy of the project, the new flag and the new method train."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from tests import launch
from tests.launch import GOLDEN, REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
LEFT_BEHIND = ("tests", "docs", ".*", "__pycache__", "benchmarks", "*.egg-info", "output-*")


def apply(diff, project):
    """Apply a diff without line numbers: new files (+++ b/PATH), changed ones (--- a/PATH), hunks apart by @@."""
    for part in re.split(r"^(?=(?:\+\+\+ b/|--- a/))", diff, flags=re.M):
        if not part.strip():
            continue
        head, _, body = part.partition("\n")
        path = project / head[6:]
        if head.startswith("+++"):
            path.write_text("".join(line[1:] + "\n" for line in body.splitlines()), encoding="utf-8")
            continue
        text = path.read_text(encoding="utf-8")
        for hunk in body.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(before) == 1, f"{path.name} has no {before!r}"
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the new flag and the new method."""
    target = tmp_path_factory.mktemp("project") / "copy"
    shutil.copytree(REPOSITORY, target, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    diffs = re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    for diff in diffs:
        if "GENERATIONS" not in diff:
            apply(diff, target)
    return target


# The commands of the programs, one after another in a process that imports the copy, and libraries as they are.
COMMANDS = """
import json, sys
for name, module in list(sys.modules.items()):
    path = vars(module).get("__file__") or ""
    if path.startswith(sys.argv[1]) and "site-packages" not in path:
        del sys.modules[name]
import merge_lora, train

for program, words in json.loads(sys.argv[2]):
    {"train.py": train, "merge_lora.py": merge_lora}[program].main(words)
"""


def trained(checkpoint, stem):
    with safe_open(checkpoint / f"{stem}.safetensors", "pt") as opened:
        return set(opened.keys())


@pytest.mark.slow
def test_a_method_and_a_flag_as_documented(project, tmp_path):
    base, checkpoint, merged = GOLDEN / "glm" / "base", Path("epoch-1-step-2"), tmp_path / "merged"
    options = launch.train_options("glm", "all", tmp_path / "output", max_steps=2, num_train_epochs=1)
    options = {name: options[name] for name in options if name not in ("train_type", "freeze_module_name")}
    method = {**options, "train_type": "bitfit", "output_dir": tmp_path / "method"}
    flag = {**options, "train_type": "freeze", "freeze_module_name": "layers.3.", "output_dir": tmp_path / "flag"}
    merge = {"ori_model_dir": base, "model_dir": tmp_path / "method" / checkpoint, "output_dir": merged}
    commands = [
        ("train.py", launch.flags(method)),
        ("train.py", [*launch.flags(flag), "--freeze_norms"]),
        ("merge_lora.py", launch.flags(merge)),
    ]
    words = [(program, [str(word) for word in words]) for program, words in commands]
    (project / "commands.py").write_text(COMMANDS)
    result = launch.fork([project / "commands.py", REPOSITORY, json.dumps(words)], cwd=project)
    assert result.returncode == 0, result.stdout + result.stderr
    biases = trained(tmp_path / "method" / checkpoint, "biases")
    assert biases and all(".bias" in name for name in biases)
    assert any("layernorm" in name for name in trained(tmp_path / "flag" / checkpoint, "trained"))
    assert (merged / "config.json").is_file()
