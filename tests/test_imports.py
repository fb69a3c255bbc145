"""Imports between packages and top-level modules: they go down only, and no further than the architecture says."""

import ast
from pathlib import Path

from tests.launch import REPOSITORY

PROGRAMS = ("train", "predict", "merge_lora", "chat", "serve", "webui")


def imported(path: Path) -> set[str]:
    """The first part of every name that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def imports() -> dict[str, set[str]]:
    """What each package or top-level module of the product imports of the others."""
    parts = {path.stem: [path] for path in REPOSITORY.glob("*.py")}
    for init in REPOSITORY.glob("*/__init__.py"):
        parts[init.parent.name] = sorted(init.parent.rglob("*.py"))
    parts = {name: files for name, files in parts.items() if name not in ("tests", "benchmarks", "scripts")}
    assert len(parts) > 15
    return {
        name: set.union(*(imported(path) for path in files)) & parts.keys() - {name} for name, files in parts.items()
    }


def test_imports_go_down_only():
    """Take away what imports nothing that is left, until nothing is left: what remains imports itself in a circle."""
    left = imports()
    while lowest := [name for name, names in left.items() if not names & left.keys()]:
        for name in lowest:
            del left[name]
    assert left == {}


def test_no_program_is_imported():
    assert not any(set(PROGRAMS) & names for names in imports().values())


def test_data_generations_and_methods_do_not_import_one_another():
    rooms = {"data", "modes", "methods"}
    assert {room: imports()[room] & rooms for room in rooms} == {room: set() for room in rooms}


def test_runs_know_nothing_of_the_page():
    assert not imports()["runs"] & {"web", "serving"}
    assert not [path for path in (REPOSITORY / "runs").glob("*.py") if {"fastapi", "starlette"} & imported(path)]
