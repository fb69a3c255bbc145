"""A real Chromium, whose every request and error is checked."""

from collections.abc import Callable

import psutil
import pytest

from benchmarks import browser
from tests import forks


@pytest.fixture(scope="session")
def chromium():
    """A headless browser; tests are skipped where Chromium or Playwright cannot be had."""
    pytest.importorskip("playwright", reason="Playwright for Python is not installed: pip install -e '.[browser-test]'")
    if browser.find_chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)  # many wait for a server's answer
    before = set(psutil.Process().children())
    with browser.chromium() as running:
        forks.servers.extend(set(psutil.Process().children()) - before)  # these stay at the end of a test
        yield running


def is_error(line) -> bool:
    """Whether a line of the console is an error, other than the browser's note about a refused or failed request."""
    return line.type == "error" and not line.text.startswith("Failed to load resource")


@pytest.fixture
def open_page(chromium) -> Callable:
    """(url, language="en", width=1400, scheme="light") -> a page in a context of its own.

    At the end, no page has asked another server for anything, or printed an error.
    """
    contexts, foreign, errors = [], [], []

    def open_it(url: str, language: str = "en", width: int = 1400, scheme: str = "light"):
        locale = {"en": "en-US", "zh": "zh-CN"}[language]
        context = chromium.new_context(
            locale=locale, viewport={"width": width, "height": 1000}, color_scheme=scheme, has_touch=width < 800
        )
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        origin = "/".join(url.split("/")[:3])
        page.on(
            "request", lambda request: request.url.startswith((origin, "data:", "blob:")) or foreign.append(request.url)
        )
        page.on("console", lambda line: is_error(line) and errors.append(line.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    open_it.errors = errors
    yield open_it
    for context in contexts:
        context.close()
    assert foreign == []
    assert errors == []
