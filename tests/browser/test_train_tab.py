"""The train tab: what the page says of a wrong entry and of a lost server, and the dialog that browses."""

import pytest

from tests.web_server import page_server

expect = pytest.importorskip("playwright.sync_api").expect


def test_a_wrong_number_of_ranks_is_told_until_it_is_corrected(tmp_path, open_page):
    with page_server(tmp_path) as server:
        page = open_page(f"{server.url}/#train")
        ranks = page.get_by_label("CPU ranks")
        ranks.fill("two")
        expect(page.get_by_text("devices, ranks or port are no whole numbers")).to_be_visible()
        ranks.fill("2")
        expect(page.get_by_role("region", name="Command")).to_contain_text("--num_gpus 2")
        expect(page.get_by_text("devices, ranks or port")).to_have_count(0)


def test_the_dialog_keeps_the_focus(tmp_path, open_page):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with page_server(tmp_path) as server:
        page = open_page(f"{server.url}/#train")
        page.get_by_role("button", name="Browse --model_name_or_path").focus()
        page.keyboard.press("Enter")
        for name in ("a/", "b/"):
            expect(page.get_by_role("button", name=name)).to_be_focused()
            page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Up")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("[name=model_name_or_path]")).to_be_focused()


def test_a_server_that_is_gone(tmp_path, open_page):
    with page_server(tmp_path) as server:
        page = open_page(f"{server.url}/#train")
        expect(page.get_by_role("region", name="Command")).to_contain_text("deepspeed")
    page.locator("[name=max_len]").fill("300")
    expect(page.locator("#status")).to_have_text("The server does not answer; trying again. Runs continue.")
