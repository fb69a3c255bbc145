"""The diffs of docs/architecture.md: applied to a copy of the project, the new flag and the new method train."""

import re
import shutil
import sys

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


def run(project, *words):
    result = launch.start([sys.executable, *words], cwd=project)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def trained(checkpoint, stem):
    with safe_open(checkpoint / f"{stem}.safetensors", "pt") as opened:
        return set(opened.keys())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "stem", "part"),
    [
        (["--train_type", "bitfit"], "biases", ".bias"),
        (["--train_type", "freeze", "--freeze_module_name", "layers.3.", "--freeze_norms"], "trained", "layernorm"),
    ],
)
def test_a_method_and_a_flag_as_documented(flags, stem, part, project, tmp_path):
    base, output = GOLDEN / "glm" / "base", tmp_path / "output"
    options = launch.train_options("glm", "all", output, max_steps=2, num_train_epochs=1)
    words = launch.flags({name: options[name] for name in options if name not in ("train_type", "freeze_module_name")})
    run(project, "train.py", *words, *flags)
    checkpoint = launch.newest_checkpoint(output)
    names = trained(checkpoint, stem)
    assert any(part in name for name in names)
    assert stem == "trained" or all(part in name for name in names)
    if stem == "trained":
        return
    merged = tmp_path / "merged"
    run(project, "merge_lora.py", "--ori_model_dir", base, "--model_dir", checkpoint, "--output_dir", merged)
    assert (merged / "config.json").is_file()
