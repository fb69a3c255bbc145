"""The chat tab: two models side by side, what Enter does, stop, votes, records, editing, models that are gone."""

import json
import shutil

import pytest

from data.formats import Columns
from data.records import read_records
from tests import golden
from tests.web_server import page_server

expect = pytest.importorskip("playwright.sync_api").expect
LONG = "2000"


@pytest.fixture
def chat(tmp_path, open_page):
    """The chat tab with two models chosen, none loaded."""
    for mode in ("glm2", "glm3"):
        shutil.copytree(golden.base_path(mode), tmp_path / mode)
    with page_server(tmp_path) as server:
        page = open_page(f"{server.url}/#chat?model=glm2&model=glm3")
        page.on("dialog", lambda dialog: dialog.accept())
        yield page


def load_both(page):
    """Load the models that the page misses."""
    for name in ("glm2", "glm3"):
        page.get_by_role("alert").locator("p", has_text=name).get_by_role("button").click()
    expect(page.locator(".models li[data-state=loaded]")).to_have_count(2)


def limit(page, tokens):
    """Set the length of answers."""
    page.get_by_text("System prompt, sampling, files").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Maximum tokens").fill(tokens)
    page.get_by_text("System prompt, sampling, files").click()


def ask(page, text):
    """Send a message and wait for both answers."""
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_side_by_side(chat, tmp_path):
    load_both(chat)
    limit(chat, "8")
    message = chat.get_by_label("Your message")
    message.fill("发动机")
    message.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    message.press("Shift+Enter")
    expect(message).to_have_value("发动机\n")
    expect(chat.locator(".turns li")).to_have_count(0)
    ask(chat, "发动机\n异响")
    answers = [said.inner_text() for said in chat.locator(".answer .said").all()]
    assert len(answers) == 2 and all(answers)
    chat.get_by_role("button", name="Right is better").press("Enter")
    expect(chat.get_by_role("button", name="Right is better", pressed=True)).to_be_focused()
    chat.get_by_role("button", name="Save the pair").press("Enter")
    expect(chat.get_by_role("status")).to_have_text("Saved to chat-preference.jsonl.")
    expect(chat.get_by_role("button", name="Save the pair")).to_be_focused()
    chat.get_by_role("button", name="Save for training").first.click()
    expect(chat.get_by_role("status")).to_have_text("Saved to chat-training.jsonl.")
    pair = json.loads((tmp_path / "chat-preference.jsonl").read_text())
    assert pair["prompt"] == [{"role": "user", "content": "发动机\n异响"}]
    assert [pair["rejected"][0]["content"], pair["chosen"][0]["content"]] == answers
    for name, columns in (("training", Columns()), ("preference", Columns(prompt="prompt", response="chosen"))):
        assert len(list(read_records(tmp_path / f"chat-{name}.jsonl", columns=columns))) == 1
    ask(chat, "二")
    chat.get_by_role("button", name="Edit").first.click()
    ask(chat, "三")
    expect(chat.locator(".question .said")).to_have_text(["三"])


def test_stop_and_models_that_are_gone(chat):
    load_both(chat)
    limit(chat, LONG)
    chat.get_by_label("Your message").fill("长")
    chat.get_by_label("Your message").press("Enter")
    expect(chat.locator(".answer .said").first).not_to_be_empty()
    for _ in range(2):
        chat.get_by_role("button", name="Stop").first.click()
    expect(chat.locator(".answer")).to_contain_text(["Stopped.", "Stopped."])
    said = chat.locator(".answer .said").all_inner_texts()
    for words in ("many", "1e999"):
        limit(chat, words)
        chat.get_by_role("button", name="Regenerate").last.press("Enter")
        expect(chat.locator(".answer").last).to_contain_text(f'max_tokens is "{words}"')
        expect(chat.get_by_role("button", name="Regenerate").last).to_be_focused()
    chat.locator(".models li", has_text="glm3").get_by_role("button").click()
    expect(chat.get_by_role("alert").filter(has_text="glm3 is not loaded")).to_be_visible()
    ask(chat, "再")
    expect(chat.get_by_role("status")).to_contain_text("glm3 is not loaded")
    chat.reload()
    expect(chat.locator(".answer .said").first).to_have_text(said[0])
    expect(chat.get_by_label("Your message")).to_have_value("再")
