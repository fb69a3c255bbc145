"""web/merges.py: merges of the page are those of merge_lora.py, with its checks; nothing outside of the root."""

import shutil
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from checkpoints.read import read_model
from generation.models import find_model
from runs.job import JOBS
from runs.places import Root
from tests import golden
from web import merges
from web.app import answer_errors


@pytest.fixture
def root(tmp_path):
    shutil.copytree(golden.base_path("glm3"), tmp_path / "root/glm3")
    return Root.at(str(tmp_path / "root"))


@pytest.fixture
def client(root):
    app = FastAPI()
    answer_errors(app)
    app.include_router(merges.router(root))
    return TestClient(app)


def begin(client, **values):
    return client.post("/api/merges", json={"values": values})


def ended(client, seconds=200):
    """What is listed about the newest merge once it has ended."""
    until = time.monotonic() + seconds
    while (newest := client.get("/api/merges").json()[0])["state"] in ("queued", "running", "stopping"):
        assert time.monotonic() < until, newest
        time.sleep(0.1)
    return newest


@pytest.mark.slow
def test_a_conversion(root, client):
    """It is checked, can be chatted with, and is not written twice."""
    assert client.get("/api/merges").json() == []
    assert begin(client, ori_model_dir="glm3", format="hf").json() == {"output": "glm3-hf"}
    assert begin(client, ori_model_dir="glm3", format="hf").status_code == 409
    merge = ended(client)
    assert (merge["output"], merge["state"], merge["can_chat"]) == ("glm3-hf", "finished", True)
    assert "glm3-hf" in merge["log"] and "use it:" in merge["log"]
    assert find_model(read_model(root.path / "glm3-hf")).base.mode == "glm3"
    again = begin(client, ori_model_dir="glm3", format="hf")
    assert again.status_code == 400 and again.json()["error"]["param"] == "output_dir"


@pytest.mark.slow
def test_a_merge_that_fails_says_why(root, client):
    (root.path / "empty").mkdir()
    assert begin(client, ori_model_dir="glm3", model_dir="empty", output_dir="out").is_success
    merge = ended(client)
    assert merge["state"] == "failed" and not merge["can_chat"]
    assert "error: " in merge["log"] and "empty" in merge["log"]
    assert not (root.path / "out").exists()


def test_a_merge_is_stopped(root, client):
    assert begin(client, ori_model_dir="glm3", format="gguf").is_success
    assert client.post("/api/merges/stop", json={"output": "glm3-gguf"}).is_success
    assert ended(client)["state"] == "stopped"
    assert not (root.path / "glm3-gguf").exists()
    assert client.post("/api/merges/stop", json={"output": "other"}).status_code == 404


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "ori_model_dir"),
        ({"ori_model_dir": "glm3"}, "model_dir"),
        ({"ori_model_dir": "../glm3", "format": "hf"}, "ori_model_dir"),
        ({"ori_model_dir": "glm3", "format": "hf", "output_dir": "/tmp/elsewhere"}, "output_dir"),
        ({"ori_model_dir": "glm3", "format": "hf", "output_dir": ".hidden"}, "output_dir"),
        ({"ori_model_dir": "glm3", "format": "hf", "output_dir": "glm3"}, "output_dir"),
        ({"ori_model_dir": "glm3", "format": "zip"}, "format"),
        ({"ori_model_dir": "glm3", "quantize": "q8_0"}, None),
        ({"ori_model_dir": "glm3", "format": "hf", "config": "x"}, "values"),
    ],
)
def test_what_is_refused(root, client, values, field):
    response = begin(client, **values)
    assert response.status_code == 400, response.text
    assert field is None or response.json()["error"]["param"] == field
    assert not (root.path / JOBS).exists()
