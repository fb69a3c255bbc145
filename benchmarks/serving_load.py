"""Load serve.py for minutes with clients that stream, wait or disconnect: nothing may be lost, wrong or left over.

python benchmarks/serving_load.py --work_dir /tmp/serving-load
python benchmarks/serving_load.py --work_dir /tmp/serving-load --mode glm --clients 8 --seconds 20
python benchmarks/serving_load.py --work_dir /tmp/serving-load --model_path output-glm3/best --output load.json

A third of the requests stream, a tenth disconnect in the middle, and all have random lengths. Every answer that was
waited for is compared with the one to the same question asked alone, before the load. At the end no request may be left
in the server, its memory may not have grown since a quarter of the time, and its log may have no traceback. Prints a
summary and JSON; the exit code is 1 if anything of this fails.
"""

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import (  # noqa: E402
    benchmark,
    mode_flag,
    output_flag,
    seed_flag,
    size_flag,
    work_dir_flag,
)
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

MIB = 2**20
GROWTH = 0.05  # share of the memory after a quarter of the time that it may grow by
LEAST_GROWTH = 32 * MIB  # which counts as none
QUESTIONS = 64
LEFT_SECONDS = 20  # for disconnected requests to end


@dataclass(frozen=True)
class LoadOptions:
    """The model and the load."""

    TITLE: ClassVar[str] = "load"

    work_dir: str = work_dir_flag(
        "Path to a directory for a base, which stays there, and a log.", "存放基座和日志的目录。"
    )
    model_path: str = flag(
        "",
        help="Path to a base or checkpoint (default: a small random base of --mode).",
        zh="基座或检查点的路径（默认用 --mode 的随机小基座）。",
        metavar="DIR",
    )
    mode: str = mode_flag("glm3")
    clients: int = size_flag(32, "Number of clients.", "客户端的个数。")
    seconds: float = flag(120.0, help="Seconds of load.", zh="持续的秒数。", above=0)
    threads: int = size_flag(1, "Number of threads of the server.", "服务的线程数。")
    seed: int = seed_flag(0)
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, LoadOptions)

if __name__ == "__main__":
    run_program(lambda: section(LoadOptions, read_command_line(PROGRAM)))  # before torch is loaded

import httpx  # noqa: E402

from benchmarks import runs  # noqa: E402
from benchmarks.pairs import report  # noqa: E402
from benchmarks.serving_clients import TIMEOUT, Question, chunks, make_questions, run_clients  # noqa: E402
from benchmarks.serving_sides import Server, make_talking_base, our_server  # noqa: E402


@dataclass
class Load:
    """The state of a load. counts: of requests, by what became of them. memory: bytes of the server by moment."""

    url: str
    model: str
    questions: list[Question]
    expected: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    async def one_client(self, client: httpx.AsyncClient, seed: int, end: float) -> None:
        """Ask until the end."""
        pick = random.Random(seed)
        while time.monotonic() < end:
            place, stream, stay = pick.randrange(len(self.questions)), pick.random() < 1 / 3, pick.random() >= 0.1
            body = self.questions[place].body(self.model, stream)
            try:
                text = await (streamed if stream else waited)(client, body, None if stay else pick)
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.problems.append(f"lost: {type(error).__name__} {error}")
                continue
            kind = ("streamed" if stream else "waited for") if text is not None else "disconnected"
            self.counts[kind] += 1
            if text is not None:
                self.tokens += self.questions[place].max_tokens
                if text != self.expected[place]:
                    self.problems.append(f"wrong: {text!r} in place of {self.expected[place]!r}")

    async def watch(self, process: Popen, seconds: float) -> None:
        """Read the server's memory at a quarter, half and the end of the time."""
        for moment, share in (("a quarter", 0.25), ("half", 0.25), ("the end", 0.5)):
            await asyncio.sleep(seconds * share)
            self.memory[moment] = resident_bytes(process)


async def streamed(client: httpx.AsyncClient, body: dict, leave: random.Random | None) -> str | None:
    """The text of a streamed answer; None after leaving at a random place."""
    parts: list[str] = []
    most = leave.randint(0, 8) if leave else None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for chunk in chunks(response):
            parts += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
            if most is not None and len(parts) > most:
                return None
    return None if leave else "".join(parts)


async def waited(client: httpx.AsyncClient, body: dict, leave: random.Random | None) -> str | None:
    """The text of an answer that is not streamed; None after leaving after a random time."""
    request = client.post("/v1/chat/completions", json=body)
    if leave:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(request, leave.uniform(0, 0.5))
        return None
    response = await request
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


async def put_on(load: Load, process: Popen, options: LoadOptions) -> None:
    """Run all clients."""
    end = time.monotonic() + options.seconds
    limits = httpx.Limits(max_connections=options.clients)
    async with (
        httpx.AsyncClient(base_url=load.url, timeout=TIMEOUT, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(load.watch(process, options.seconds))
        for number in range(options.clients):
            group.create_task(load.one_client(client, 1000 * options.seed + number, end))


def resident_bytes(process: Popen) -> int:
    """Memory that a process has in RAM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def left_over(url: str) -> int:
    """Number of requests in the server, once there are none, or after LEFT_SECONDS."""
    give_up = time.monotonic() + LEFT_SECONDS
    while True:
        text = httpx.get(f"{url}/metrics", timeout=TIMEOUT).text
        left = int(sum(metric(text, f"vllm:num_requests_{state}") for state in ("running", "waiting")))
        if not left or time.monotonic() > give_up:
            return left
        time.sleep(0.1)


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels, from the text of /metrics."""
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    if not values:
        raise ValueError(f"the server has no metric {name}")
    return sum(map(float, values))


def check(load: Load, server: Server) -> None:
    """Add what is left over, has grown, or is in the log."""
    left = left_over(load.url)
    if left:
        load.problems.append(f"left over: {left} requests")
    early, late = load.memory["a quarter"], load.memory["the end"]
    if late - early > max(GROWTH * early, LEAST_GROWTH):
        load.problems.append(f"memory grew from {early / MIB:.0f} to {late / MIB:.0f} MiB")
    if "Traceback" in server.log.read_text(encoding="utf-8", errors="replace"):
        load.problems.append(f"traceback in {server.log}")
    for kind in ("streamed", "waited for", "disconnected"):
        if not load.counts[kind]:
            load.problems.append(f"no request was {kind}: give more --seconds")


def run_load(base: Path, options: LoadOptions) -> Load:
    """Start a server, ask every question alone, and put the load on."""
    precision = "auto" if options.model_path else "fp32"
    server = our_server(base, Path(options.work_dir) / "server.log", options.threads, 512, precision)
    with server:
        assert server.process is not None
        questions = make_questions(QUESTIONS, options.seed)
        answers, _ = run_clients(server.url, server.model, questions, clients=1)
        load = Load(server.url, server.model, questions, [answer.text for answer in answers])
        load.memory["the start"] = resident_bytes(server.process)
        asyncio.run(put_on(load, server.process, options))
        check(load, server)
    return load


def main(argv: Sequence[str] | None = None) -> None:
    """Print a summary and JSON; exit code 1 if something failed."""
    options = section(LoadOptions, read_command_line(PROGRAM, argv))
    runs.exit_on_sigterm()
    Path(options.work_dir).mkdir(parents=True, exist_ok=True)
    base = Path(options.model_path or Path(options.work_dir) / f"{options.mode}-small")
    if not base.exists() and not options.model_path:
        make_talking_base(base, options.mode, 2, 128)
    load = run_load(base, options)
    counted = ", ".join(f"{number:,} {kind}" for kind, number in sorted(load.counts.items()))
    print(f"{sum(load.counts.values()):,} requests of {options.clients} clients in {options.seconds:g} s: {counted}")
    print(f"{load.tokens / options.seconds:,.0f} tokens/s in answers that were waited for or streamed to the end")
    print("memory: " + ", ".join(f"{size / MIB:,.0f} MiB at {moment}" for moment, size in load.memory.items()))
    for problem, number in Counter(load.problems).most_common(20):
        print(f"{number} times {problem}")
    print("failed" if load.problems else "nothing lost, no other answer than alone, nothing left over, memory flat")
    settings = {name: value for name, value in asdict(options).items() if name not in ("output", "work_dir")}
    result = {
        "counts": dict(load.counts),
        "tokens": load.tokens,
        "memory_bytes": load.memory,
        "problems": load.problems,
    }
    report({"benchmark": "serving_load", **settings, **result}, options.output)
    sys.exit(1 if load.problems else 0)


if __name__ == "__main__":
    run_program(main)
