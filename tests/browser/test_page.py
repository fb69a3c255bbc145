"""The page as a person uses it: a run from the form to its end, through closed tabs and a killed server; chat; export.

Real processes: webui.py, deepspeed, Chromium. Both languages, a wide and a narrow window.
"""

import json
import shutil
import signal

import pytest

from benchmarks.runs import free_port
from tests import golden
from tests.launch import REPOSITORY
from tests.web_server import start_webui

expect = pytest.importorskip("playwright.sync_api").expect
TEXTS = json.loads((REPOSITORY / "web" / "static" / "texts.json").read_text(encoding="utf-8"))
WAIT = 240_000  # milliseconds for something that starts processes
RUN = "output-a"
FLAGS = {
    "max_len": "256", "max_src_len": "160", "per_device_train_batch_size": "1", "gradient_accumulation_steps": "1",
    "lora_dropout": "0", "show_loss_step": "1", "save_model_step": "20", "num_train_epochs": "200",
    "save_total_limit": "2", "report_to": "none",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A root with a tiny base and records."""
    shutil.copytree(golden.base_path("glm3"), tmp_path / "base")
    shutil.copy(REPOSITORY / "tests" / "fixtures" / "golden" / "samples.jsonl", tmp_path / "samples.jsonl")
    return tmp_path


@pytest.fixture
def server(root):
    """webui.py, which can be killed and started again; ends with the test."""
    running = Server(root)
    yield running
    running.process.kill()
    running.process.wait()


class Server:
    """A process of webui.py."""

    def __init__(self, root):
        self.root, self.port = root, free_port()
        self.process = start_webui(root, self.port)
        self.url = f"http://127.0.0.1:{self.port}/"

    def kill_and_restart(self):
        """SIGKILL, and start it again on the same port."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = start_webui(self.root, self.port)


class Person:
    """Uses one page; finds everything by the names that are read out."""

    def __init__(self, page, language):
        self.page, self.place = page, {"en": 0, "zh": 1}[language]

    def text(self, key, *values):
        """The text of the table in the language of the page."""
        tab, _, name = key.partition(".")
        text = TEXTS[tab][name][self.place]
        for number, value in enumerate(values):
            text = text.replace(f"{{{number}}}", value)
        return text

    def tab(self, name):
        """Open a tab."""
        self.page.get_by_role("link", name=self.text(f"page.{name}")).click()
        panel = self.page.locator(f"#{name}")
        expect(panel).to_be_visible()
        return panel

    def press(self, panel, key, **keywords):
        """Press a button."""
        panel.get_by_role("button", name=self.text(key), exact=True, **keywords).first.click()

    def open_groups(self, panel):
        """Open all groups of a form."""
        panel.locator("details").evaluate_all("(groups) => groups.forEach((group) => { group.open = true; })")

    def fill(self, panel, name, value):
        """Fill a field of a form."""
        panel.locator(f'[name="{name}"]').fill(value)

    def pick(self, panel, name, *path):
        """Pick a field's path in the dialog."""
        panel.get_by_role("button", name=f"{self.text('train.browse')} --{name}").click()
        dialog = self.page.get_by_role("dialog")
        for directory in path[:-1]:
            dialog.get_by_role("button", name=f"{directory}/", exact=True).click()
        dialog.get_by_role("button", name=f"{self.text('train.choose')} {path[-1]}", exact=True).click()
        expect(dialog).to_have_count(0)

    def step(self):
        """The step that the list of runs shows."""
        return int(self.page.locator(f'[data-run="{RUN}"]').get_attribute("data-step") or 0)

    def wait_for_step(self, step):
        """Wait until the curve has a step."""
        row = self.page.locator(f'[data-run="{RUN}"]')
        row.wait_for(timeout=WAIT)
        handle = row.element_handle()
        self.page.wait_for_function(
            "([row, step]) => Number(row.dataset.step) >= step", arg=[handle, step], timeout=WAIT
        )

    def wait_for_state(self, state):
        """Wait until the list of runs shows a state."""
        row = self.page.locator(f'[data-run="{RUN}"]')
        expect(row.locator(".state")).to_have_text(self.text(f"watch.{state}"), timeout=WAIT)


def start_run(person):
    """Fill the form, see an error at its field, correct it, and start."""
    train = person.tab("train")
    person.open_groups(train)
    person.pick(train, "model_name_or_path", "base")
    person.pick(train, "train_path", "samples.jsonl")
    for name, value in FLAGS.items():
        person.fill(train, name, value)
    person.fill(train, "output_dir", RUN)
    person.fill(train, "learning_rate", "fast")
    field = train.locator('[name="learning_rate"]')
    expect(field).to_have_attribute("aria-invalid", "true")
    problem = train.locator(f"#{field.get_attribute('aria-describedby').split()[1]}")
    expect(problem).to_contain_text("--learning_rate: 'fast' is not a number")
    person.fill(train, "learning_rate", "1e-3")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    expect(
        train.get_by_text("--learning_rate 0.001").or_(train.get_by_text("--learning_rate 1e-3")).first
    ).to_be_visible()
    person.press(train, "train.start")
    expect(person.page.locator("#watch")).to_be_visible()


def check_records(person):
    """Look at the data before training."""
    train = person.page.locator("#train")
    person.press(train, "train.preview")
    expect(train.get_by_text(person.text("train.histogram"))).to_be_visible(timeout=WAIT)
    expect(train.locator(".tokens.supervised").first).to_be_visible()


def chat_with_both(person, left, right):
    """Load two models, ask both, vote, and keep the pair."""
    chat = person.tab("chat")
    for path in (left, right):
        person.press(chat, "chat.browse")
        dialog = person.page.get_by_role("dialog")
        *directories, name = path.split("/")
        for directory in directories:
            dialog.get_by_role("button", name=f"{directory}/", exact=True).click()
        dialog.get_by_role("button", name=f"{person.text('train.choose')} {name}", exact=True).click()
        expect(chat.locator(".models").get_by_text(path, exact=True)).to_be_visible(timeout=WAIT)
    expect(chat.locator('.models [data-state="loaded"]')).to_have_count(2, timeout=WAIT)
    chat.get_by_text(person.text("chat.settings")).click()
    chat.locator('[name="max_tokens"]').fill("12")
    chat.locator('[name="temperature"]').fill("0")
    chat.get_by_role("textbox", name=person.text("chat.question")).fill("发动机漏油 <b>怎么办</b>")
    chat.get_by_role("textbox", name=person.text("chat.question")).press("Enter")
    expect(chat.locator(".answer")).to_have_count(2)
    expect(chat.locator('.answer[aria-busy="true"]')).to_have_count(0, timeout=WAIT)
    expect(chat.locator(".question .said")).to_have_text("发动机漏油 <b>怎么办</b>")
    person.press(chat, "chat.right")
    person.press(chat, "chat.keepPair")
    person.page.reload()
    expect(person.page.locator("#chat .answer")).to_have_count(2)


def export_it(person, checkpoint, form, name):
    """Merge in a format, and see the check of what was written."""
    export = person.tab("export")
    person.fill(export, "ori_model_dir", "base")
    person.fill(export, "model_dir", checkpoint)
    export.locator('[name="format"]').select_option(form)
    person.fill(export, "output_dir", name)
    person.press(export, "export.start")
    item = export.locator("li").filter(has_text=name).first
    expect(item).to_have_attribute("data-state", "finished", timeout=WAIT)
    expect(item.locator("pre")).to_contain_text(name)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "width"), [("en", 1400), ("zh", 400)])
def test_a_run_from_the_form_to_its_export(root, server, open_page, language, width):
    page = open_page(server.url, language, width)
    person = Person(page, language)
    start_run(person)
    person.wait_for_step(3)
    page.close()

    person = Person(page.context.new_page(), language)
    person.page.goto(f"{server.url}#watch?run={RUN}")
    person.wait_for_step(5)
    server.kill_and_restart()
    person.wait_for_step(person.step() + 5)
    person.wait_for_step(21)  # behind the first checkpoint
    watch = person.page.locator("#watch")
    person.press(watch, "watch.stop")
    person.wait_for_state("stopped")
    stopped_at = person.step()
    assert list((root / RUN / "state").glob("step-*"))

    person.tab("train")
    check_records(person)
    chat_with_both(person, "base", newest(root))
    watch = person.tab("watch")
    person.press(watch, "watch.resume")
    person.wait_for_step(stopped_at + 3)
    person.press(watch, "watch.stop")
    person.wait_for_state("stopped")
    export_it(person, newest(root), "official", "merged")
    export_it(person, newest(root), "hf", "hf")
    assert (root / "merged" / "merged_from.json").exists() and (root / "hf" / "tokenizer.json").exists()
    steps = [json.loads(line)["step"] for line in (root / RUN / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))  # nothing is lost, nothing is trained twice


def newest(root):
    """The newest checkpoint, as a path below the root."""
    found = sorted((root / RUN).glob("epoch-*-step-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    return found[-1].relative_to(root).as_posix()
