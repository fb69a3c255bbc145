"""options/serve.py and serve.py: what is refused before weights are loaded, and where defaults come from."""

import configparser
import json
import re
import shutil

import pytest
from packaging.requirements import Requirement

pytest.importorskip("fastapi")

import serve
from errors import UserError
from options.serve import NEEDED, check_installed, open_note, parse_serve
from serving.models import OPENAI_DEFAULTS, defaults_of, find_models, read_generation_config
from tests import golden
from tests.launch import REPOSITORY

BASE = str(golden.base_path("glm3"))


def refusal(*words):
    """The sentences of a command line that is refused."""
    with pytest.raises(UserError) as refused:
        serve.main(["--model_path", BASE, "--device", "cpu", *words])
    return str(refused.value)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("serving.models.load_model", None)
    monkeypatch.setattr("serving.models.load_adapters", None)


def test_addresses():
    assert "--host 192.0.2.1 is no address of this machine" in refusal("--host", "192.0.2.1")
    assert "--host no such name is no address" in refusal("--host", "no such name")


def test_a_cache_without_room():
    small = refusal("--kv_cache_memory", "0.0001", "--port", "0")
    assert re.fullmatch(r"--kv_cache_memory 0.0001 has room for \d+ tokens per model: give 0.\d+ or more\.", small)


def test_limits_and_names(tmp_path):
    assert "--max_model_len 9000 exceeds the model's 8192 tokens" in refusal("--max_model_len", "9000")
    twice = refusal("--lora", f"a={tmp_path}", "--lora", f"a={tmp_path}", "--temperature", "3")
    assert "--temperature 3.0 is out of bounds" in twice and "--lora has two adapters of the name a" in twice
    assert str(tmp_path) in refusal("--lora", f"a={tmp_path}")
    assert "mutually exclusive" in refusal("--lora", f"a={tmp_path}", "--base_model", BASE)
    assert "is not NAME=DIR" in refusal("--lora", "a")
    assert "--model_path is missing" in "".join(parse_serve([])[1])


def test_keys(monkeypatch):
    for key in ("", "a b", "密"):
        assert "--api_key" in refusal("--api_key", key)
    monkeypatch.setenv("CHATGLM_API_KEY", "a b")
    assert "--api_key" in refusal()
    monkeypatch.setenv("CHATGLM_API_KEY", "")
    assert parse_serve(["--model_path", BASE])[1] == []


def test_an_open_server_without_a_key(monkeypatch):
    monkeypatch.delenv("CHATGLM_API_KEY", raising=False)
    notes = {host: open_note(parse_serve([BASE, "--host", host])[0].server) for host in ("0.0.0.0", "127.0.0.1")}
    assert notes["127.0.0.1"] == [] and "--host 0.0.0.0 lets other machines" in notes["0.0.0.0"][0]
    assert open_note(parse_serve([BASE, "--host", "0.0.0.0", "--api_key", "k"])[0].server) == []


def test_the_model_without_its_flag():
    for words in ([BASE, "--port", "1"], ["--port", "1", BASE], ["--port=1", "--model_path", BASE]):
        options, problems = parse_serve(words)
        assert (options.model.model_path, options.server.port, problems) == (BASE, 1, [])
    assert parse_serve(["--model_path", BASE, "x"])[1][0].startswith("x belongs to no option")


def test_missing_directories():
    """Each is named with its flag; the model's before torch is loaded."""
    _, problems = parse_serve(["--model_path", "none", "--temperature", "3"])
    assert len(problems) == 2 and problems[1].startswith("--model_path none is not a directory: give a base")
    assert "--lora b=nothing is not a directory: give a LoRA checkpoint" in refusal("--lora", "b=nothing")


def test_several_adapters():
    for words in (["--lora", "a=x", "--lora", "b=y z"], ["--lora=a=x,b=y z"], ["--lora", "a=x", "--lora=b=y z"]):
        options, problems = parse_serve(["--model_path", BASE, *words, "--port", "1"])
        assert (options.adapters, options.server.port, problems) == ({"a": "x", "b": "y z"}, 1, [])


def test_the_extra_has_what_is_needed():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extra = map(Requirement, config["options.extras_require"]["serve"].split("\n")[1:])
    assert sorted(NEEDED) == sorted(requirement.name.replace("-", "_") for requirement in extra)


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr("options.serve.NEEDED", ("fastapi", "no_such_package"))
    with pytest.raises(UserError, match=r"^serve.py needs no_such_package, not installed: pip install .*\[serve\]"):
        check_installed()


def test_defaults(tmp_path):
    """Of the flags, else of generation_config.json, else of OpenAI's API."""
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    options, _ = parse_serve(["--model_path", str(base)])
    assert defaults_of(find_models(options).base, options) == OPENAI_DEFAULTS
    content = {"do_sample": True, "temperature": 0.8, "top_p": 0.7, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(content))
    found = find_models(options).base
    assert defaults_of(found, options) == {**OPENAI_DEFAULTS, "temperature": 0.8, "top_p": 0.7}
    options, _ = parse_serve(["--model_path", str(base), "--temperature", "0"])
    assert defaults_of(found, options) == {**OPENAI_DEFAULTS, "temperature": 0, "top_p": 0.7}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"do_sample": False, "temperature": 0.8}, {"temperature": 0}),
        ({"top_k": 50, "repetition_penalty": 1.1}, {"top_k": 50, "repetition_penalty": 1.1}),
        ({"temperature": None, "max_length": 8192}, {}),
        ({"temperature": "warm"}, None),
        ({"temperature": 9}, None),
        ([], None),
    ],
)
def test_generation_config(tmp_path, content, expected):
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(content))
    if expected is not None:
        assert {name: read_generation_config(file)[name] for name in expected} == expected
        return
    with pytest.raises(UserError, match="generation_config.json"):
        read_generation_config(file)
