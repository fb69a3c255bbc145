"""training/caches.py: a run succeeds with a home directory that cannot be written."""

import tempfile

import pytest

from errors import UserError
from options.train import parse_train
from tests import launch
from training.caches import CACHES, use_writable_caches


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary directory."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/x", "~"])
def test_no_home(home, temporary):
    environ = {"HOME": home}
    (note,) = use_writable_caches(environ)
    (directory,) = temporary.iterdir()
    assert note == f"{home}/.cache cannot be written: caches go to {directory}."
    assert environ == {"HOME": home, **{name: str(directory / name.lower()) for name in CACHES}}
    assert use_writable_caches(environ) == []  # once is enough
    again = {"HOME": home}
    use_writable_caches(again)
    assert again == environ  # in every process the same


def test_a_home_that_can_be_written_stays(temporary, tmp_path):
    environ = {"HOME": str(tmp_path / "someone")}
    assert use_writable_caches(environ) == [] and environ == {"HOME": str(tmp_path / "someone")}
    assert not (tmp_path / "someone").exists() and not list(temporary.iterdir())


@pytest.mark.parametrize("name", CACHES)
def test_one_place_alone(name, temporary, tmp_path):
    environ = {"HOME": str(tmp_path), name: "/dev/null/cache"}
    (note,) = use_writable_caches(environ)
    assert note.startswith("/dev/null/cache cannot be written")
    assert environ == {"HOME": str(tmp_path), name: str(next(temporary.iterdir()) / name.lower())}


def test_nowhere(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    with pytest.raises(UserError, match="set XDG_CACHE_HOME and TMPDIR"):
        use_writable_caches({"HOME": "/dev/null"})


def test_tokenized_data_follows(temporary, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    use_writable_caches()
    cache = parse_train([])[0].data.cache_dir
    assert cache == str(next(temporary.iterdir()) / "xdg_cache_home" / "chatglm-finetuning")
    for name in CACHES:
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_a_run_without_a_home(tmp_path):
    options = launch.train_options("glm3", "lora", tmp_path / "out", max_steps=1)
    del options["data_cache_dir"]
    none = dict.fromkeys(CACHES, "")
    result = launch.train(options, num_ranks=2, HOME="/dev/null", TMPDIR=str(tmp_path), **none)
    assert result.stdout.count("/dev/null/.cache cannot be written: caches go to") == 1
    assert "Matplotlib" not in result.stderr and (tmp_path / "out" / "loss.png").is_file()
