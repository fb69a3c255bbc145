"""The tabs: the one that was opened last is shown, however long another one takes to load."""

import pytest

from tests.web_server import page_server

expect = pytest.importorskip("playwright.sync_api").expect


def test_a_tab_that_loads_late_does_not_cover_the_next(tmp_path, open_page):
    with page_server(tmp_path) as server:
        page = open_page(f"{server.url}/#train")
        expect(page.locator("#train")).to_be_visible()
        held = []
        page.route("**/watch.js", lambda route: held.append(route))
        with page.expect_request("**/watch.js"):
            page.get_by_role("link", name="Watch").click()
        page.get_by_role("link", name="Export").click()
        expect(page.locator("#export")).to_be_visible()
        held[0].continue_()
        expect(page.locator("#watch .runs")).to_have_count(1)
        expect(page.locator("#export")).to_be_visible()
        expect(page.locator("#watch")).to_be_hidden()
        expect(page.locator("[aria-current=page]")).to_have_text("Export")
        page.get_by_role("link", name="Watch").click()
        expect(page.locator("#watch")).to_be_visible()
        expect(page.locator("#export")).to_be_hidden()
