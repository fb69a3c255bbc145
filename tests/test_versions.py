"""setup.cfg, constraints.txt and constraints-oldest.txt: the supported versions, and those that the tests run with."""

import configparser
import re
import subprocess

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.launch import REPOSITORY

SUPPORTED = {  # first and last version
    "torch": ("2.11.0", "2.14.1"),
    "transformers": ("5.17.0", "5.23.0"),
    "deepspeed": ("0.19.0", "0.19.8"),
    "peft": ("0.19.0", "0.21.2"),
}


def requirements():
    """Direct dependencies by name."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    parsed = map(Requirement, config["options"]["install_requires"].split("\n")[1:])
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def pins(file):
    """The version of each package of a constraints file."""
    lines = [line for line in (REPOSITORY / file).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_range(name):
    assert all(requirements()[name].specifier.contains(version) for version in SUPPORTED[name])


def test_lower_bounds_are_what_the_oldest_environment_has():
    lower = {
        name: Version(spec.version)
        for name, requirement in requirements().items()
        for spec in requirement.specifier
        if spec.operator == ">="
    }
    assert lower == pins("constraints-oldest.txt")


def test_extras_have_names_that_every_pip_finds():
    """Older ones do not find serve_test, which metadata call serve-test, and install nothing."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extras = list(config["options.extras_require"])
    assert extras == [canonicalize_name(extra) for extra in extras]
    script = (REPOSITORY / "scripts" / "test.sh").read_text()
    installed = {name for names in re.findall(r'-e "\.\[([\w,-]+)\]"', script) for name in names.split(",")}
    assert {"serve-test", "browser-test"} < installed <= set(extras)


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_pinned_versions_are_admitted(file):
    pinned = pins(file)
    assert {
        name: pinned[name]
        for name, requirement in requirements().items()
        if not requirement.specifier.contains(pinned[name])
    } == {}


@pytest.mark.parametrize("versions", [[], ["old"]])
def test_unknown_versions_are_an_error_before_anything_is_installed(versions, tmp_path):
    command = ["bash", REPOSITORY / "scripts" / "test.sh", "--versions", *versions]
    environment = {"PATH": "/usr/bin:/bin", "VENV": str(tmp_path / "venv")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"--versions '{''.join(versions)}' is unknown: give oldest or newest.\n"
    assert not (tmp_path / "venv").exists()
