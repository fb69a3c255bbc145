"""The watch tab: curves that grow and resume, the window of a log, notes, names and downloads."""

import csv
import json
import re

import pytest

from runs.log import SLICE
from tests.web_server import page_server

expect = pytest.importorskip("playwright.sync_api").expect


def write_rows(directory, steps, loss=1.0):
    """Append rows to a run's metrics, as training does."""
    directory.mkdir(exist_ok=True)
    (directory / "run.yaml").write_text(f"output_dir: {directory}\n")
    with (directory / "metrics.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"step": step, "epoch": 1, "loss": loss * step, "lr": 1e-4}) + "\n" for step in steps
        )


@pytest.fixture
def watch(tmp_path, open_page):
    """watch(*runs) -> the watch tab with these runs chosen."""
    with page_server(tmp_path) as server:
        yield lambda *runs: open_page(f"{server.url}/#watch?{'&'.join(f'run={run}' for run in runs)}")


def legend_at(page, share):
    """The legend's text with the pointer at a share of the chart's width."""
    chart = page.locator(".u-over")  # which may be built again at any time
    width = chart.evaluate("(chart) => chart.clientWidth")
    chart.hover(position={"x": share * (width - 1), "y": 20})
    return page.locator(".u-legend")


def test_curves_grow_resume_and_zoom(tmp_path, watch):
    write_rows(tmp_path / "a", range(101))
    write_rows(tmp_path / "b", range(0, 101, 50), loss=3.0)
    page = watch("a", "b")
    expect(page.locator(".u-legend")).to_contain_text("b, as measured")
    page.get_by_label("Smoothing").fill("0")
    expect(page.locator(".u-legend")).not_to_contain_text("as measured")
    expect(legend_at(page, 0.5)).to_have_text(re.compile(r"Step\s*50\s*a\s*50\s*b\s*150"))
    write_rows(tmp_path / "a", range(40, 61), loss=-1.0)  # resumed from step 40
    expect(page.locator('[data-run="a"]')).to_have_attribute("data-step", "60")
    expect(legend_at(page, 0.5)).to_have_text(re.compile(r"Step\s*50\s*a\s*-50"))
    expect(page.get_by_role("row", name="loss")).to_contain_text("-60")
    page.locator(".curve").focus()
    page.keyboard.press("+")
    expect(legend_at(page, 0)).to_contain_text(re.compile(r"Step\s*25"))
    page.keyboard.press("0")
    expect(legend_at(page, 0)).to_contain_text(re.compile(r"Step\s*0"))
    page.get_by_label("Metric").select_option("lr")
    expect(page.get_by_label("Metric")).to_have_value("lr")
    page.wait_for_timeout(1000)  # the chart is built again
    expect(legend_at(page, 0.5)).to_have_text(re.compile(r"a\s*0.0001"))
    page.reload()
    expect(page.get_by_label("Metric")).to_have_value("lr")
    expect(page.get_by_label("Smoothing")).to_have_value("0")


def test_a_log_is_a_window(tmp_path, watch):
    write_rows(tmp_path / "a", [1])
    log = tmp_path / "a/train.log"
    log.write_text("".join(f"line {number:09}\n" for number in range(1_000_000)))
    page = watch("a")
    box = page.get_by_role("log")
    expect(box).to_contain_text("line 000999999")
    with log.open("a") as file:
        file.write("new\nhalf")
    expect(box).to_contain_text("new\nhalf")
    for _ in range(6):  # to the top, where earlier lines are loaded
        box.evaluate("(box) => { box.scrollTop = 0; }")
        page.wait_for_function("(box) => box.scrollTop > 40", arg=box.element_handle())
        text = box.evaluate("(box) => box.textContent")
        numbers = [int(line[5:]) for line in text.split("\n") if line.startswith("line ")]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and len(text) < 6 * SLICE
    assert numbers[-1] < 999_999
    page.get_by_role("button", name="Last lines").click()
    expect(box).to_contain_text("new\nhalf")


def test_progress_bars_in_a_log(tmp_path, watch):
    write_rows(tmp_path / "a", [1])
    bars = (f"\r{'=' * 30_000}\rloaded {number}\n" for number in range(100))
    (tmp_path / "a/train.log").write_text("".join(bars))
    box = watch("a").get_by_role("log")  # a slice has two lines
    expect(box).to_contain_text("loaded 85")
    expect(box).to_contain_text("loaded 99")
    expect(box).not_to_contain_text("loaded 50")


def test_more_runs_than_are_shown(tmp_path, watch):
    names = [f"run{number:02}" for number in range(18)]
    for name in names:
        write_rows(tmp_path / name, [1, 2])
    page = watch(*names)
    expect(page.locator(".runs input")).to_have_count(18)
    expect(page.locator(".runs input:checked")).to_have_count(16)
    page.locator('[data-run="run00"] input').check()
    expect(page.locator('[data-run="run02"] input')).not_to_be_checked()
    expect(page.get_by_role("status")).to_be_hidden()


def test_notes_names_and_downloads(tmp_path, watch):
    write_rows(tmp_path / "a", [1, 2])
    page = watch("a")
    row = page.get_by_role("listitem")
    page.once("dialog", lambda dialog: dialog.accept("<b>the best</b>"))
    row.get_by_role("button", name="Note").click()
    expect(row).to_contain_text("<b>the best</b>")
    page.once("dialog", lambda dialog: dialog.accept("c"))
    row.get_by_role("button", name="Rename").click()
    expect(page).to_have_url(re.compile(r"run=c$"))
    with page.expect_download() as curves:
        page.get_by_role("link", name="CSV").click()
    with curves.value.path().open() as file:
        assert [(one["run"], one["loss"]) for one in csv.DictReader(file)] == [("c", "1.0"), ("c", "2.0")]
    with page.expect_download() as picture:
        page.get_by_role("button", name="PNG").click()
    assert picture.value.path().read_bytes().startswith(b"\x89PNG")
    page.once("dialog", lambda dialog: dialog.dismiss())
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    assert not (tmp_path / "c").exists()
