"""All tabs at two widths, in both languages, light and dark: nothing overflows, axe-core finds no serious fault.

The screenshots go to screenshots/ in the repository.
"""

import asyncio
import contextlib
import json
import shutil
import threading

import httpx
import pytest
import uvicorn

from tests import golden, launch
from tests.servers import wait_until
from tests.web_server import PASSWORD, page_server

expect = pytest.importorskip("playwright.sync_api").expect
SCREENSHOTS = launch.REPOSITORY / "screenshots"
SHOWN = {  # tab: what is there once it is complete
    "train": "#train .field",
    "watch": "#watch canvas",
    "chat": "#chat .compose textarea",
    "export": "#export .field",
}
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A page with a base and a real run that was evaluated."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(golden.base_path("glm3"), root / "base")
    shutil.copy(launch.GOLDEN / "samples.jsonl", root / "samples.jsonl")
    flags = {"model_name_or_path": root / "base", "train_path": root / "samples.jsonl"}
    flags |= {"dev_path": root / "samples.jsonl", "eval_metric": "rougeL", "eval_samples": 2, "report_to": "none"}
    launch.train(launch.train_options("glm3", "lora", root / "output-a", **flags))
    (root / "output-a" / "train.log").write_text("step 1/8, epoch 1, loss 7.0\n" * 50)
    with page_server(root) as running:
        yield running


@pytest.fixture(scope="module")
def axe():
    """axe-core."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    return module.Axe()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("zh", "dark")])
def test_every_tab(server, open_page, axe, language, scheme, width):
    SCREENSHOTS.mkdir(exist_ok=True)
    page = open_page(f"{server.url}/", language, width, scheme)
    for tab, selector in SHOWN.items():
        page.goto(f"{server.url}/#{tab}")
        page.wait_for_selector(selector)
        page.wait_for_timeout(700)  # for what is read from the server
        if tab == "train":  # all that may be wrong with it
            page.evaluate(
                "() => document.querySelectorAll('#train details').forEach((group) => { group.open = true; })"
            )
        page.screenshot(path=SCREENSHOTS / f"{tab}-{language}-{width}.png", full_page=True)
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), tab
        faults = [fault for fault in axe.run(page).response["violations"] if fault["impact"] in SERIOUS]
        assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in faults] == []
    assert page.get_attribute("html", "lang") == {"en": "en", "zh": "zh-CN"}[language]


@pytest.mark.slow
def test_the_keyboard_reaches_everything(server, open_page):
    """Tab moves through the tabs, the fields and Start; the focus is always to be seen."""
    page = open_page(f"{server.url}/#export")
    page.wait_for_selector("#export .field")
    page.evaluate("() => document.activeElement.blur()")
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(page.evaluate(FOCUSED))
        if "Merge or export" in names[-1]:
            break
    assert [
        name for name in ("Train", "Watch", "Chat", "Export", "ori_model_dir", "format") if name not in " ".join(names)
    ] == []
    assert "Merge or export" in names[-1] and "none" not in [name.rpartition(" ")[2] for name in names]


FOCUSED = """() => {
  const {activeElement: at} = document;
  return `${at.name || at.textContent} ${getComputedStyle(at).outlineStyle}`;
}"""


def test_the_language_is_kept(server, open_page):
    page = open_page(f"{server.url}/#watch", "en")
    expect(page.get_by_role("link", name="Watch")).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("link", name="观察")).to_have_attribute("aria-current", "page")
    page.reload()
    expect(page.get_by_role("link", name="观察")).to_be_visible()


def test_names_are_shown_as_text(server, open_page):
    name = "<img src=x onerror=document.title='hacked'>"
    (server.root / name).mkdir()
    page = open_page(f"{server.url}/#train", "en")
    page.get_by_role("button", name="Browse --model_name_or_path").click()
    expect(page.get_by_role("dialog").get_by_role("button", name=f"{name}/")).to_be_visible()
    assert page.title() != "hacked" and page.locator("img").count() == 0
    (server.root / name).rmdir()


def test_a_password(tmp_path, open_page):
    with page_server(tmp_path, password=PASSWORD) as locked:
        page = open_page(f"{locked.url}/", "zh")
        dialog = page.get_by_role("dialog")
        dialog.locator("input").fill("wrong")
        dialog.get_by_role("button").click()
        expect(dialog.get_by_role("alert")).to_contain_text("The password is wrong")
        dialog.locator("input").fill(PASSWORD)
        dialog.get_by_role("button").click()
        expect(page.locator("#train .field").first).to_be_visible()
        page.reload()
        expect(page.locator("#train .field").first).to_be_visible()
        expect(dialog).to_have_count(0)


@contextlib.contextmanager
def proxy(target, prefix):
    """A real reverse proxy: PREFIX/… goes to a server, with the proxy's own Host header, as nginx does by default."""

    async def app(scope, receive, send):
        assert scope["type"] == "http" and scope["path"].startswith(prefix)
        path = scope["path"].removeprefix(prefix.rstrip("/"))
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"connection")]
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        url = f"{target}{path}" + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        async with (
            httpx.AsyncClient() as client,
            client.stream(scope["method"], url, headers=headers, content=body) as answer,
        ):
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}{prefix}"
    server.should_exit = True
    thread.join()


def test_behind_a_proxy_under_a_path(server, open_page):
    with proxy(server.url, "/tools/glm/") as url:
        page = open_page(url, "en")
        page.locator('#train [name="output_dir"]').fill("output-b")
        expect(page.locator("#train pre").first).to_contain_text("--output_dir")  # a POST with its token
        page.get_by_role("link", name="Watch").click()
        expect(page.locator('[data-run="output-a"]')).to_be_visible()
        assert page.url.startswith(url)


def test_what_starts_the_page_is_small(server):
    answer = server.client.get("/api/start", headers={"Accept-Encoding": "gzip"})
    assert json.loads(answer.text)["programs"]["train"]
    assert int(answer.headers["content-length"]) < 20_000
