"""From a run to the chat and the export: models load by themselves, forms are filled, and nothing has to be browsed."""

import shutil

import pytest

from tests import golden
from tests.prepared import checkpoint_of
from tests.test_engines import OPTIONS
from tests.web_server import page_server

expect = pytest.importorskip("playwright.sync_api").expect
RUN, BASE, CHECKPOINT = "output-a", "models/base", "output-a/epoch-1-step-2"


@pytest.fixture
def page(tmp_path, open_page, monkeypatch):
    """The watch tab with a run that has a checkpoint."""
    base = tmp_path / BASE
    base.parent.mkdir()
    shutil.copytree(golden.base_path("glm3"), base)
    monkeypatch.setattr("tests.prepared.GOLDEN", tmp_path / "golden")
    (tmp_path / "golden/glm3").mkdir(parents=True)
    (tmp_path / "golden/glm3/base").symlink_to(base)
    checkpoint_of("glm3", "lora", OPTIONS["lora"], tmp_path / CHECKPOINT, noise=0.05)
    (tmp_path / RUN / "run.yaml").write_text("train_type: lora\n")
    (tmp_path / RUN / "metrics.jsonl").write_text('{"step": 2, "epoch": 1, "loss": 1.5, "lr": 0.001}\n')
    with page_server(tmp_path) as server:
        yield open_page(f"{server.url}/#watch")


def test_a_run_opens_the_chat_with_its_base_and_checkpoint(page):
    page.get_by_role("listitem").get_by_role("button", name="Chat").click()
    expect(page.locator(".models li[data-state=loaded]")).to_have_count(2, timeout=200_000)
    expect(page.get_by_label("Model on the left")).to_have_value(BASE)
    expect(page.get_by_label("Model on the right")).to_have_value(CHECKPOINT)
    page.locator(".models li", has_text=CHECKPOINT).get_by_role("button", name="Unload").click()
    expect(page.get_by_role("alert").filter(has_text="is not loaded")).to_be_visible()
    page.reload()  # loads nothing
    expect(page.get_by_role("alert").filter(has_text=f"{CHECKPOINT} is not loaded")).to_be_visible()
    expect(page.locator(".models li")).to_have_count(1)


def test_an_address_alone_loads_nothing(page):
    page.goto(page.url.replace("#watch", f"#chat?model={BASE}"))
    expect(page.get_by_role("alert").filter(has_text=f"{BASE} is not loaded")).to_be_visible()
    expect(page.locator(".models li")).to_have_count(0)


def test_a_found_model_is_loaded(page):
    page.get_by_role("link", name="Chat").click()
    expect(page.get_by_text("Load a model and send it a message")).to_be_visible()
    found = page.get_by_label("Models below the root")
    expect(found.get_by_role("option")).to_have_text([BASE, CHECKPOINT])
    found.select_option(BASE)
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".models li[data-state=loaded]")).to_have_count(1, timeout=200_000)
    expect(page.get_by_label("Model on the left")).to_have_value(BASE)


def test_a_run_fills_the_form_of_the_export(page):
    page.get_by_role("listitem").get_by_role("button", name="Export").click()
    base, model = (page.locator(f'#export [name="{name}"]') for name in ("ori_model_dir", "model_dir"))
    expect(base).to_have_value(BASE)
    expect(model).to_have_value(CHECKPOINT)
    base.fill("")
    page.reload()  # keeps what was changed since
    expect(model).to_have_value(CHECKPOINT)
    expect(base).to_have_value("")
    page.get_by_role("button", name="Browse --model_dir").click()
    page.get_by_role("dialog").get_by_role("button", name="Choose epoch-1-step-2").click()
    expect(base).to_have_value(BASE)
