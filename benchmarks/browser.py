"""A real headless Chromium for tests and benchmarks of the page: Debian's package, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking")  # as root, in containers


def find_chromium() -> str | None:
    """The path of Chromium; None if it is not installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright.sync_api.

    Raises:
        ImportError: Playwright for Python is not installed.
        FileNotFoundError: Chromium is not installed.
    """
    from playwright.sync_api import sync_playwright  # of an extra

    path = find_chromium()
    if path is None:
        raise FileNotFoundError("Chromium is not installed: apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()
