"""Files that hosts and tools read: the workflow, pre-commit, issue forms, metadata and changelog."""

import configparser
import re

import pytest
import yaml

from tests.launch import REPOSITORY
from version import VERSION

GITHUB = REPOSITORY / ".github"
FORMS = sorted(form for form in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if form.name != "config.yml")


def read(*names: str) -> dict:
    return yaml.safe_load(REPOSITORY.joinpath(*names).read_text(encoding="utf-8"))


def metadata() -> configparser.SectionProxy:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    return config["metadata"]


def test_precommit_runs_the_checks_of_the_test_script():
    script = (REPOSITORY / "scripts" / "test.sh").read_text(encoding="utf-8")
    checks = re.findall(r"^ *((?:ruff|mypy)\b.*)$", script, re.M)
    assert checks
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]] == checks
    assert all(hook["language"] == "system" and hook["always_run"] for hook in local["hooks"])


def test_the_workflow_runs_what_ci_runs():
    (job,) = read(".github", "workflows", "ci.yml")["jobs"].values()
    assert job["timeout-minutes"] == 90
    python = next(step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert python["python-version"] == "3.12"
    assert job["steps"][-1]["run"] == ".ci/run"
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o100


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_what_github_requires(form):
    content = read(".github", "ISSUE_TEMPLATE", form.name)
    assert content["name"] and content["description"]
    questions = [part for part in content["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in questions}) == len(questions) > 0
    assert all(part["attributes"]["label"] for part in questions)
    assert any(part.get("validations", {}).get("required") for part in questions)


def test_the_newest_version_in_the_changelog_is_that_of_the_package():
    newest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == VERSION
    assert metadata()["version"] == "attr: version.VERSION"


def test_the_package_describes_itself():
    described = metadata()
    kind, _, name = described["long_description"].partition(": ")
    assert kind == "file" and (REPOSITORY / name).is_file()
    assert described["author"] and described["description"]
    links = dict(line.split(" = ") for line in described["project_urls"].strip().splitlines())
    inside = [url.partition("/blob/main/")[2] for url in links.values() if "/blob/main/" in url]
    assert inside and all((REPOSITORY / path).is_file() for path in inside)


def test_no_two_files_of_tests_have_the_same_name():
    """pytest imports each by its name."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
