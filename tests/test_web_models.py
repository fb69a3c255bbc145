"""web/models.py and serving/loading.py: models of the page come and go, and answer at /v1 as predict.py does."""

import contextlib
import gc
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import FastAPI
from fastapi.testclient import TestClient

import serving.loading
from generation.answerer import answer
from generation.models import load_answerer
from generation.prediction import generation_config
from options.predict import GenerationOptions
from runs.places import Root
from serving.hosting import ChatModels
from tests import golden
from tests.launch import REPOSITORY, free_port
from tests.prepared import checkpoint_of
from tests.servers import wait_until
from tests.test_engines import OPTIONS
from tests.web_server import open_session, start_webui
from web.app import answer_errors
from web.models import router

QUESTION = "发动机"


class Page:
    """A client of the chat's paths."""

    def __init__(self, client, models):
        self.client, self.models = client, models

    def listed(self):
        return {model.pop("name"): model for model in self.client.get("/api/models").json()["models"]}

    def load(self, path, **fields):
        """Load a model, and wait for it; returns what is listed about it."""
        response = self.client.post("/api/models/load", json={"path": path, "device": "cpu", **fields})
        assert response.status_code == 200, response.text
        name = response.json()["name"]
        until = time.monotonic() + 200
        while (about := self.listed()[name])["state"] == "loading" and time.monotonic() < until:
            time.sleep(0.02)
        return about

    def unload(self, name):
        return self.client.post("/api/models/unload", json={"name": name})

    def ask(self, model, **fields):
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def answer(self, model):
        return self.ask(model).json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A root with a base and checkpoints of it."""
    root = tmp_path_factory.mktemp("root")
    for mode in ("glm", "glm3"):
        shutil.copytree(golden.base_path(mode), root / f"{mode}-base")
    return root


@pytest.fixture(scope="module")
def checkpoints(directory):
    """Checkpoints whose record names the base below the root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.prepared.GOLDEN", directory / "golden")
        (directory / "golden/glm3").mkdir(parents=True)
        (directory / "golden/glm3/base").symlink_to(directory / "glm3-base")
        for method in ("lora", "freeze", "ptuning"):
            checkpoint_of("glm3", method, OPTIONS[method], directory / "run" / method, noise=0.05)
    return directory


@pytest.fixture
def page(directory):
    root = Root.at(str(directory))
    models = ChatModels(root)
    app = FastAPI()
    answer_errors(app)
    app.include_router(router(root, models))
    with TestClient(app) as client:
        page = Page(client, models)
        yield page
    models.close()


def expected(path):
    """The answer of predict.py."""
    answerer = load_answerer(path, precision="fp32")
    config = generation_config(answerer.mode, answerer.tokenizer, GenerationOptions(max_new_tokens=8))
    return answer(answerer, [answerer.prompt_ids({"instruction": QUESTION, "input": ""})], config)[0]


def test_before_the_first_model(page):
    assert page.client.get("/v1/models").json() == {"object": "list", "data": []}
    assert page.listed() == {}
    response = page.ask("glm3-base")
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"


def test_a_base_and_its_checkpoints_side_by_side(page, checkpoints):
    """Each answers as predict.py does; LoRA shares the base's weights, whichever is loaded first."""
    lora, base = page.load("run/lora"), page.load("glm3-base")
    assert (lora["state"], lora["train_type"], lora["base"]) == ("loaded", "lora", "glm3-base")
    assert lora["shared"] == 0 and base["memory"] == 0 < base["shared"]
    assert page.listed()["run/lora"]["memory"] < base["shared"]
    for method in ("freeze", "ptuning"):
        assert page.load(f"run/{method}")["memory"] > 0.9 * base["shared"]
    names = ["run/lora", "glm3-base", "run/freeze", "run/ptuning"]
    assert [card["id"] for card in page.client.get("/v1/models").json()["data"]] == names
    assert [page.answer(name) for name in names] == [expected(checkpoints / name) for name in names]


def test_unloading_frees_the_memory(page, checkpoints):
    page.load("glm3-base")
    page.load("run/lora")
    entry = page.models._entries["run/lora"].loaded
    adapter, weights = weakref.ref(entry.served.engine), weakref.ref(entry.weights)
    del entry
    before = page.answer("glm3-base")
    assert page.unload("run/lora").is_success and page.ask("run/lora").status_code == 404
    assert adapter() is None and weights() is not None
    assert page.answer("glm3-base") == before and list(page.listed()) == ["glm3-base"]
    page.unload("glm3-base")
    gc.collect()
    assert weights() is None
    assert page.client.get("/v1/models").json()["data"] == []
    assert page.load("run/lora")["state"] == "loaded"  # again


def test_unloading_ends_answers(page):
    page.load("glm-base")
    served = page.models._loader.service.models.by_name["glm-base"]
    bias = {str(token): -100 for token in served.stop_ids}
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(page.ask, "glm-base", logit_bias=bias, max_tokens=1900)
        wait_until(lambda: served.engine.running)
        assert page.unload("glm-base").is_success
        assert answered.result().status_code == 503 and "was unloaded" in answered.result().text
    assert page.models._loader.service.places.taken == 0


def test_a_precision_is_other_weights(page, checkpoints):
    """They are not shared."""
    base = page.load("glm3-base", precision="bf16")
    adapter = page.load("run/lora", precision="fp32")
    assert base["shared"] == adapter["shared"] == 0 and base["memory"] < 0.6 * adapter["memory"]


def test_the_cache_is_bounded(page, monkeypatch):
    """Every model takes a part of the free memory, at most CACHE_BYTES."""
    monkeypatch.setattr(serving.loading, "CACHE_BYTES", 64 * 2**10)
    page.load("glm3-base")
    (served,) = page.models._loader.service.models.by_name.values()
    assert served.max_model_len < 1024


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"path": "nothing"}, 400, "--model_path nothing is not a directory"),
        ({"path": "../x"}, 403, "outside of the root"),
        ({"path": "link"}, 403, "outside of the root"),
        ({"path": 3}, 400, "is not a path"),
        ({"quantization_bit": "3"}, 400, "--quantization_bit"),
        ({"precision": "--lora x=y"}, 400, "--precision"),
        ({"device": "tpu"}, 400, "--device"),
    ],
)
def test_what_is_refused_at_once(page, directory, tmp_path, fields, status, text):
    if not (directory / "link").is_symlink():
        (directory / "link").symlink_to(golden.base_path("glm2"))
    response = page.client.post("/api/models/load", json={"path": "glm3-base", **fields})
    assert response.status_code == status and text in response.json()["error"]["message"]
    assert page.listed() == {}


def test_what_fails_while_loading(page, directory, tmp_path):
    """A directory without a model, one with a base outside of the root; the failure is listed until dismissed."""
    (directory / "empty").mkdir(exist_ok=True)
    empty = page.load("empty")
    assert empty["state"] == "failed" and "empty" in empty["problem"] and str(directory) not in empty["problem"]
    checkpoint_of("glm2", "lora", OPTIONS["lora"], directory / "foreign")
    assert "outside of the root" in page.load("foreign")["problem"]
    shutil.rmtree(directory / "foreign")
    assert page.load("empty")["state"] == "failed"  # tried again
    assert page.unload("empty").is_success and page.unload("empty").status_code == 409
    assert list(page.listed()) == ["foreign"]


def test_a_model_is_loaded_once(page):
    page.load("glm3-base")
    response = page.client.post("/api/models/load", json={"path": "./glm3-base"})
    assert response.status_code == 409


def test_the_server_ends_with_models(directory):
    """The thread of an engine would keep the process alive."""
    port = free_port()
    process = start_webui(directory, port)
    try:
        with contextlib.closing(open_session(f"http://127.0.0.1:{port}")) as client:
            assert Page(client, None).load("glm3-base")["state"] == "loaded"
        process.terminate()
        _, printed = process.communicate(timeout=200)
        assert process.returncode == 0, printed
    finally:
        process.kill()


def test_no_torch_before_the_first_model():
    code = "import sys, web.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
