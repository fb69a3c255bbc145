"""What the page costs: bytes and seconds to first use, drawing a growing curve, many tabs, a killed server.

python benchmarks/page.py --work_dir /tmp/page --output benchmarks/results/page.json

A real server (webui.py) and a real headless Chromium on this machine. The run has 20,000 steps of metrics, to
which a process appends 5 times a second. First use is when the form can be filled. The main thread's share is that of
Chromium's TaskDuration, the longest frame the longest between two frames. The server is started again at once after
SIGKILL, and is live when the page shows newer points; the chat and the draft of the form must be kept. JSON last.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
import psutil  # noqa: E402

from benchmarks.browser import chromium  # noqa: E402
from benchmarks.command import benchmark, output_flag, repeats_flag, size_flag, work_dir_flag  # noqa: E402
from benchmarks.pairs import report  # noqa: E402
from benchmarks.runs import free_port  # noqa: E402
from errors import run_program  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

RUN = "output-benchmark"
APPENDER = """
import json, sys, time
step = int(sys.argv[2])
while True:
    step += 1
    row = {"step": step, "epoch": 1, "loss": 1 / step, "lr": 1e-4, "grad_norm": 1.0, "tokens_per_second": 1000.0,
           "peak_memory_bytes": 2**30}
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps(row) + "\\n")
    time.sleep(0.2)
"""
LONGEST_FRAME = """(seconds) => new Promise((done) => {
  let last = performance.now();
  const began = last;
  let longest = 0;
  const frame = (now) => {
    longest = Math.max(longest, now - last);
    last = now;
    if (now - began < 1000 * seconds) requestAnimationFrame(frame); else done(longest);
  };
  requestAnimationFrame(frame);
})"""


@dataclass(frozen=True)
class PageOptions:
    """What is measured, and for how long."""

    TITLE: ClassVar[str] = "page"

    work_dir: str = work_dir_flag("Directory for the run directory and logs.", "存放训练目录和日志的目录。")
    steps: int = size_flag(20_000, "Number of steps of the curve.", "曲线的步数。")
    seconds: int = size_flag(20, "Seconds of drawing.", "绘制的秒数。")
    tabs: int = size_flag(10, "Number of tabs at once.", "同时打开的标签页数。")
    repeats: int = repeats_flag(5)
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, PageOptions)


class Server:
    """webui.py as a process, which can be killed and started again."""

    def __init__(self, root: Path):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._words = [sys.executable, "webui.py", "--root", str(root), "--port", str(self.port)]
        self.process = self._start()
        assert self.process.stderr is not None
        self.process.stderr.readline()  # it listens

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(self._words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)

    def kill_and_restart(self) -> None:
        """SIGKILL, and a new process at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def write_run(root: Path, steps: int) -> Path:
    """A run directory with metrics; returns their file."""
    directory = root / RUN
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.yaml").write_text(f"output_dir: {directory}\n")
    rows = (
        {"step": step, "epoch": 1, "loss": 2 / step**0.3 + (step * 7919 % 100) / 500, "lr": 1e-4, "grad_norm": 1.0,
         "tokens_per_second": 1000.0, "peak_memory_bytes": 2**30}
        for step in range(1, steps + 1)
    )  # fmt: skip
    path = directory / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def growing(metrics: Path, steps: int) -> Iterator[None]:
    """A process appends to the metrics 5 times a second."""
    process = subprocess.Popen([sys.executable, "-c", APPENDER, str(metrics), str(steps)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def first_use(browser: Any, url: str, *, warm: bool) -> dict[str, float]:
    """Bytes on the wire, requests, and seconds until the form can be filled, in a new context."""
    context = browser.new_context()
    page = context.new_page()
    if warm:
        page.goto(url)
        page.wait_for_selector("#train input")
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: list[float] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("#train input")
    seconds = time.perf_counter() - began
    page.wait_for_timeout(1500)  # for what it loads behind the form
    context.close()
    return {"seconds": seconds, "bytes": sum(sizes), "requests": len(sizes)}


def open_curve(browser: Any, url: str) -> Any:
    """A page that shows the run's curve."""
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(f"{url}#watch?run={RUN}")
    page.wait_for_selector("#watch canvas")
    page.wait_for_timeout(1500)
    return page


def drawing(browser: Any, url: str, seconds: int) -> dict[str, float]:
    """The main thread's share and the longest frame in ms while the curve grows."""
    page = open_curve(browser, url)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def busy() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    page.wait_for_timeout(1000)
    before, began = busy(), time.perf_counter()
    page.wait_for_timeout(1000 * seconds)
    share = (busy() - before) / (time.perf_counter() - began)
    longest = page.evaluate(LONGEST_FRAME, seconds)
    page.context.close()
    return {"main_thread": share, "longest_frame_ms": longest}


def shown_step(page: Any) -> int:
    """The step that the watch tab shows for the run."""
    return int(page.get_attribute(f'#watch [data-run="{RUN}"]', "data-step") or 0)


def wait_for_newer(page: Any, step: int, seconds: float = 30) -> float:
    """Seconds until a page shows a newer step."""
    began = time.perf_counter()
    while shown_step(page) <= step:
        assert time.perf_counter() - began < seconds, "the page shows nothing newer"
        page.wait_for_timeout(10)
    return time.perf_counter() - began


def many_tabs(browser: Any, server: Server, count: int) -> dict[str, float]:
    """Seconds until the last of many tabs shows a newer step, and the server's memory."""
    pages = [open_curve(browser, server.url) for _ in range(count)]
    slowest = max(wait_for_newer(page, shown_step(page)) for page in pages)
    memory = server.memory()
    for page in pages:
        page.context.close()
    return {"slowest_seconds": slowest, "server_bytes": memory}


def after_kill(browser: Any, server: Server) -> dict[str, Any]:
    """Seconds from SIGKILL until the page shows a newer step, and whether draft and chat are kept."""
    page = open_curve(browser, server.url)
    page.goto(f"{server.url}#train")
    page.fill('#train [name="output_dir"]', "output-3e-4")
    page.goto(f"{server.url}#chat")
    page.fill("#chat .compose textarea", "一个问题")
    page.goto(f"{server.url}#watch?run={RUN}")
    page.wait_for_selector("#watch canvas")
    wait_for_newer(page, shown_step(page))
    step, began = shown_step(page), time.perf_counter()
    server.kill_and_restart()
    wait_for_newer(page, step + 1)  # one may have been under way
    seconds = time.perf_counter() - began
    page.reload()
    page.goto(f"{server.url}#train")
    draft = page.input_value('#train [name="output_dir"]') == "output-3e-4"
    page.goto(f"{server.url}#chat")
    chat = page.input_value("#chat .compose textarea") == "一个问题"
    page.context.close()
    return {"seconds": seconds, "draft_kept": draft, "chat_kept": chat}


def median_of(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def main(argv: Sequence[str] | None = None) -> None:
    """Print each figure, then JSON."""
    options = section(PageOptions, read_command_line(PROGRAM, argv))
    root = Path(options.work_dir).resolve()
    metrics = write_run(root, options.steps)
    os.environ["OMP_NUM_THREADS"] = "1"
    server = Server(root)
    results: dict[str, Any] = {}
    with chromium() as browser:
        try:
            for name, warm in (("cold", False), ("warm", True)):
                results[name] = median_of([first_use(browser, server.url, warm=warm) for _ in range(options.repeats)])
                print(name, results[name], flush=True)
            with growing(metrics, options.steps):
                results["drawing"] = drawing(browser, server.url, options.seconds)
                print("drawing", results["drawing"], flush=True)
                results["tabs"] = many_tabs(browser, server, options.tabs)
                print("tabs", results["tabs"], flush=True)
                kills = [after_kill(browser, server) for _ in range(options.repeats)]
            results["after_kill"] = {
                **median_of([{"seconds": kill["seconds"]} for kill in kills]),
                **{name: all(kill[name] for kill in kills) for name in ("draft_kept", "chat_kept")},
            }
            print("after SIGKILL", results["after_kill"], flush=True)
        finally:
            server.close()
    settings = {name: value for name, value in asdict(options).items() if name not in ("output", "work_dir")}
    report({"benchmark": "page", **settings, "results": results}, options.output)


if __name__ == "__main__":
    run_program(main)
