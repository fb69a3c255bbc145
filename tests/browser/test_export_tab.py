"""The export tab: a problem at its field, a merge with its check, and the way to the chat."""

import shutil

import pytest

from tests import golden
from tests.web_server import page_server

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.mark.slow
def test_export_and_chat(tmp_path, open_page):
    shutil.copytree(golden.base_path("glm3"), tmp_path / "glm3")
    with page_server(tmp_path) as server:
        page = open_page(f"{server.url}/#export", language="zh", width=400)
        start = page.get_by_role("button", name="合并或导出")
        page.get_by_label("--ori_model_dir").first.fill("nothing")
        start.click()
        expect(page.locator(".field", has_text="--model_dir is missing")).to_be_visible()
        expect(page.locator("[name=model_dir]")).to_be_focused()
        page.get_by_label("--ori_model_dir").first.fill("glm3")
        page.get_by_label("--format").select_option("hf")
        start.click()
        expect(page.locator(".merges li")).to_have_attribute("data-state", "finished", timeout=200_000)
        expect(page.locator(".merges pre")).to_contain_text("greedy answers equal")
        page.get_by_role("button", name="与它对话").click()
        expect(page.locator(".models li[data-state=loaded]", has_text="glm3-hf")).to_be_visible(timeout=200_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
