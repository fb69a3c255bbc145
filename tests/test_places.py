"""training/places.py: files to read and directories to write to, each with a sentence where it cannot be used."""

import os

import pytest

from options.train import parse_train
from training.places import check_places


@pytest.fixture
def paths(tmp_path):
    """The paths that a valid command line needs."""
    (tmp_path / "base").mkdir()
    (tmp_path / "train.json").write_text("{}\n")
    return {
        "model_name_or_path": tmp_path / "base",
        "train_path": tmp_path / "train.json",
        "output_dir": tmp_path / "out",
        "data_cache_dir": tmp_path / "cache",
    }


def problems_of(paths, *argv, rank=0, **changed):
    """The sentences about the places of a command line whose values are right."""
    flags = [text for name, path in (paths | changed).items() for text in (f"--{name}", str(path))]
    options, problems = parse_train([*flags, *argv])
    assert problems == []
    return check_places(options, rank)


def problem_of(*arguments, **keywords):
    """The only one."""
    (problem,) = problems_of(*arguments, **keywords)
    assert problem.endswith(".") and "\n" not in problem
    return problem


def test_valid_places_are_left_as_they_were(paths, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert problems_of(paths, output_dir=tmp_path / "new/deep/out") == []
    assert sorted(tmp_path.rglob("*")) == before
    paths["output_dir"].mkdir()
    assert problems_of(paths) == []
    assert paths["output_dir"].is_dir()  # what was there stays


def test_everything_that_is_missing_is_said():
    assert [problem.split(" ")[0] for problem in problems_of({})] == [
        "--model_name_or_path",
        "--train_path",
        "--output_dir",
    ]


def test_the_end_of_the_polynomial_schedule(paths):
    problem = problem_of(paths, "--lr_scheduler_type", "polynomial", "--learning_rate", "1e-8")
    assert problem.startswith("--learning_rate 1e-08 is not above 1e-07, where ") and "polynomial ends" in problem
    assert problems_of(paths, "--lr_scheduler_type", "linear", "--learning_rate", "1e-8") == []


@pytest.mark.parametrize("flag", ["model_name_or_path", "train_path", "output_dir", "data_cache_dir"])
def test_paths_of_the_wrong_kind(paths, tmp_path, flag):
    (tmp_path / "file").write_text("")
    wrong = tmp_path if flag == "train_path" else tmp_path / "file"
    assert problem_of(paths, **{flag: wrong}).startswith(f"--{flag} {wrong} ")


@pytest.mark.parametrize("flag", ["model_name_or_path", "train_path", "dev_path", "probe_path", "replay_path"])
def test_missing_inputs(paths, tmp_path, flag):
    none, more = tmp_path / "none", {"dev_path": paths["train_path"]} if flag == "probe_path" else {}
    assert problem_of(paths, **{**more, flag: none}).startswith(f"--{flag} {none} does not exist")


def test_each_of_several_files_is_looked_at(paths, tmp_path):
    listed = f"{paths['train_path']},{tmp_path / 'a'},{tmp_path / 'b'}"
    problems = problems_of(paths, train_path=listed)
    assert [problem.split(" does not exist")[0] for problem in problems] == [
        f"--train_path {tmp_path / 'a'}",
        f"--train_path {tmp_path / 'b'}",
    ]


@pytest.mark.parametrize("inside", ["", "out", "a/b", "../base"])
def test_output_in_the_base_directory(paths, inside):
    assert "is inside the base directory" in problem_of(paths, output_dir=paths["model_name_or_path"] / inside)
    link = paths["train_path"].parent / "link"
    link.symlink_to(paths["model_name_or_path"])
    assert "is inside the base directory" in problem_of(paths, output_dir=link / "out")


def test_output_that_cannot_be_written(paths, tmp_path):
    for place in (paths["train_path"] / "out", "/proc/out"):
        problem = problem_of(paths, output_dir=place)
        assert problem.startswith("--output_dir ") and "cannot be written" in problem
    assert problems_of(paths, output_dir="/proc/out", rank=1) == []  # only rank 0 tries
    if os.geteuid() != 0:  # permissions do not hold root back
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert "cannot be written" in problem_of(paths, output_dir=locked / "out")


def test_what_to_resume_from(paths, tmp_path):
    for known in ("auto", "none", tmp_path):
        assert problems_of(paths, resume_from_checkpoint=known) == []
    assert "--resume_from_checkpoint no/such is not a directory" in problem_of(paths, resume_from_checkpoint="no/such")
