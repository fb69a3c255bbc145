"""Throughput of serve.py with 1 to 32 clients, against one answer after another and `transformers serve`.

python benchmarks/serving.py --work_dir /tmp/serving --output benchmarks/results/serving.json
python benchmarks/serving.py --work_dir /tmp/serving --modes glm3 --clients 1,16 --repeats 1 --precision bf16
python benchmarks/serving.py --work_dir /tmp/serving --modes glm --num_layers 4 --hidden_size 512 --sides alone,ours

A random base with the proportions of 6B answers chat requests of random lengths, which are streamed: questions of 8 to
150 characters, answers of 64 to 192 tokens. The sides alternate, and the processes of the others are paused:

alone           model.generate for one request after another, without HTTP, for the first 8 requests of each load.
                With several clients, the time to the first token follows from its times and the queue.
ours            serve.py.
transformers    `transformers serve --continuous-batching` on the directory of merge_lora.py --format hf, with a cache
                as large as ours: its default takes most of the memory, and each step on a CPU then a second. Not for
                ChatGLM-6B, which transformers does not have.

Prints a table of tokens per second and of the time to the first token, the median of the paired ratios, and whether the
targets hold: 16 clients at least 4 times as fast as alone (ChatGLM-6B: 2.5 times), no load more than 5% slower than
transformers. JSON last.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, modes_flag, output_flag, repeats_flag, size_flag, work_dir_flag  # noqa: E402
from errors import UserError, run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

SIDES = ("alone", "ours", "transformers")
PAGE = 64  # tokens of a cache block on both sides
AT_ONCE = 32  # answers
LONGEST = 512  # tokens of a prompt with its answer
TARGETS = {True: 4.0, False: 2.5}  # by whether transformers has the model: least ratio to alone with CLIENTS
CLIENTS = 16
ALONE = 8  # requests
ANSWER_TOKENS = (64, 192)  # least and most, as in chats; with few, prompts would take most of the time
SLOWEST = 0.95  # least ratio to transformers
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # of --precision, as transformers names them


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas."""
    try:
        numbers = tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{text!r} holds something else than numbers from 1; separate them by commas")
    return numbers


@dataclass(frozen=True)
class ServingOptions:
    """The model, the sides and the loads."""

    TITLE: ClassVar[str] = "serving"

    work_dir: str = work_dir_flag(
        "Path to a directory of bases, which stay there, and logs.", "存放基座（会保留）和日志的目录。"
    )
    modes: tuple[str, ...] = modes_flag("glm3", "glm")
    sides: tuple[str, ...] = flag(
        SIDES, help="Comma-separated sides to measure.", zh="测量哪几方，用逗号分隔。", choices=SIDES
    )
    clients: tuple[int, ...] = flag(
        (1, 4, 16, 32), help="Numbers of clients.", zh="客户端的个数。", parse=counts, metavar="NUMBERS"
    )
    precision: str = flag(
        "auto",
        help="Precision of the weights on all sides. auto: bf16 on a GPU, fp32 on a CPU.",
        zh="各方权重的精度。auto：GPU 上用 bf16，CPU 上用 fp32。",
        choices=("auto", *DTYPES),
    )
    per_client: int = size_flag(
        4, "Number of requests per client, at least 8 together.", "每个客户端的请求数，合计至少 8 个。"
    )
    num_layers: int = size_flag(8, "Number of layers.", "层数。")
    hidden_size: int = size_flag(1024, "Hidden size.", "隐藏层大小。")
    threads: int | None = size_flag(
        None, "Number of threads of each side (default: one per core).", "每一方的线程数（默认每个核心一个）。"
    )
    repeats: int = repeats_flag(3)
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, ServingOptions)

if __name__ == "__main__":
    run_program(lambda: section(ServingOptions, read_command_line(PROGRAM)))  # before torch is loaded

import torch  # noqa: E402

from benchmarks import runs  # noqa: E402
from benchmarks.pairs import ratio, report  # noqa: E402
from benchmarks.serving_clients import Answered, Question, in_a_queue, make_questions, run_clients  # noqa: E402
from benchmarks.serving_sides import (  # noqa: E402
    Server,
    answer_alone,
    make_talking_base,
    our_server,
    transformers_server,
)
from generation.answerer import Answerer  # noqa: E402
from generation.models import load_answerer  # noqa: E402
from modes import MODES  # noqa: E402


@dataclass(frozen=True)
class Measured:
    """One side under one load. first: seconds to the first text of each answer. texts: the answers.

    per_processor_second: tokens per second of processor time, which a busy machine affects less.
    """

    tokens_per_second: float
    per_processor_second: float
    first: list[float]
    texts: list[str]


def bases(mode: str, options: ServingOptions) -> tuple[Path, Path]:
    """(the base, its export for transformers), made where they do not exist yet."""
    base = Path(options.work_dir) / f"{mode}-{options.num_layers}x{options.hidden_size}"
    exported = Path(f"{base}-hf")
    if not base.exists():
        make_talking_base(base, mode, options.num_layers, options.hidden_size)
    if MODES[mode].hf and "transformers" in options.sides and not exported.exists():
        given = {"ori_model_dir": base, "format": "hf", "output_dir": exported, "verify": "False"}
        problem = runs.run([sys.executable, "merge_lora.py", *runs.flags(given)], Path(f"{base}-hf.log"), 30)
        if problem:
            raise UserError(problem)
    return base, exported


def precision_of(options: ServingOptions) -> str:
    """The precision of all sides."""
    return options.precision if options.precision in DTYPES else "bf16" if torch.cuda.is_available() else "fp32"


def start_servers(mode: str, options: ServingOptions, threads: int, stack: ExitStack) -> dict[str, Server]:
    """The servers by their sides, paused."""
    base, exported = bases(mode, options)
    precision = precision_of(options)
    log = Path(options.work_dir) / f"{mode}-ours.log"
    made = {"ours": our_server(base, log, threads, LONGEST, precision)}
    if MODES[mode].hf:
        log = Path(options.work_dir) / f"{mode}-transformers.log"
        dtype = DTYPES[precision]
        made["transformers"] = transformers_server(exported, log, threads, LONGEST, dtype, PAGE, AT_ONCE)
    servers = {}
    for name, server in made.items():
        if name in options.sides:
            servers[name] = stack.enter_context(server)
            run_clients(server.url, server.model, make_questions(4, seed=999, tokens=(4, 8)), clients=4)  # warm up
            server.pause()
    return servers


def questions_for(clients: int, turn: int, options: ServingOptions) -> list[Question]:
    """The questions of a load: the same on every side, but others in each turn, because servers cache prompts."""
    return make_questions(max(options.per_client * clients, ALONE), seed=1000 * turn + clients, tokens=ANSWER_TOKENS)


def measure_server(server: Server, questions: Sequence[Question], clients: int) -> Measured:
    """Ask the questions of a load."""
    server.resume()
    before = server.processor_seconds()
    answers, seconds = run_clients(server.url, server.model, questions, clients)
    processor = server.processor_seconds() - before
    server.pause()
    return measured(answers, seconds, processor, [answer.first for answer in answers])


def measured(answers: Sequence[Answered], seconds: float, processor: float, first: list[float]) -> Measured:
    """The figures of some answers."""
    tokens = sum(answer.tokens for answer in answers)
    return Measured(tokens / seconds, tokens / processor, first, [answer.text for answer in answers])


def measure_alone(answerer: Answerer, questions: Sequence[Question], clients: int) -> Measured:
    """The figures of a load, with the first answers in place of the others."""
    begun, processor = time.perf_counter(), time.process_time()
    answers = answer_alone(answerer, questions[:ALONE])
    share = (time.process_time() - processor) / (time.perf_counter() - begun)
    repeated = (answers * len(questions))[: len(questions)]
    first, seconds = in_a_queue(repeated, clients)
    return measured(repeated, seconds, seconds * share, first)


def measure_turn(
    answerer: Answerer, servers: dict[str, Server], turn: int, options: ServingOptions
) -> dict[int, dict[str, Measured]]:
    """Clients -> side -> figures; the order of the sides alternates."""
    by_load: dict[int, dict[str, Measured]] = {}
    for clients in options.clients:
        questions, found = questions_for(clients, turn, options), {}
        for name in options.sides if turn % 2 == 0 else reversed(options.sides):
            if name == "alone":
                found[name] = measure_alone(answerer, questions, clients)
            elif name in servers:
                found[name] = measure_server(servers[name], questions, clients)
        by_load[clients] = found
    return by_load


def row_of(clients: int, repeats: Sequence[dict[str, Measured]]) -> dict:
    """The result of a load: per side the figures of each repeat, and the medians of the paired ratios."""
    sides = [name for name in SIDES if name in repeats[0]]
    speeds = {name: [round(found[name].tokens_per_second, 2) for found in repeats] for name in sides}
    efforts = {name: [round(found[name].per_processor_second, 2) for found in repeats] for name in sides}
    firsts = {name: sorted(first for found in repeats for first in found[name].first) for name in sides}
    others = [name for name in sides if name != "ours" and "ours" in sides]
    return {
        "clients": clients,
        "tokens_per_second": speeds,
        "first_token_seconds": {
            name: {"median": round(statistics.median(values), 4), "p95": round(values[int(0.95 * len(values))], 4)}
            for name, values in firsts.items()
        },
        "tokens_per_processor_second": efforts,
        "ratios": {name: ratio(speeds[name], speeds["ours"]) for name in others},
        "processor_ratios": {name: ratio(efforts[name], efforts["ours"]) for name in others},
        "equal_answers": {name: equal_answers(repeats[0]["ours"], repeats[0][name]) for name in others},
    }


def equal_answers(ours: Measured, other: Measured) -> str:
    """How many answers are the same, of those to the same questions."""
    pairs = list(zip(ours.texts[:ALONE], other.texts[:ALONE], strict=True))
    return f"{sum(mine == theirs for mine, theirs in pairs)} of {len(pairs)}"


def table(mode: str, rows: Sequence[dict]) -> str:
    """The results of a generation in Markdown; ours: how many times as fast it is, also in processor time."""
    lines = [f"{mode}:", "", "| clients | side | tokens/s | first token, median | 95% | ours | in processor time |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        for name, speeds in row["tokens_per_second"].items():
            first = row["first_token_seconds"][name]
            ratios = [f"{row[key][name]:.2f}" if name in row[key] else "" for key in ("ratios", "processor_ratios")]
            lines.append(
                f"| {row['clients']} | {name} | {statistics.median(speeds):.1f} | {first['median']:.2f} s | "
                f"{first['p95']:.2f} s | {' | '.join(ratios)} |"
            )
    return "\n".join([*lines, ""])


def targets(mode: str, rows: Sequence[dict]) -> list[str]:
    """A line for each target: whether it holds."""
    least, lines = TARGETS[MODES[mode].hf is not None], []
    for row in rows:
        clients, ratios = row["clients"], row["ratios"]
        if clients == CLIENTS and "alone" in ratios:
            lines.append(f"{mode}, {clients} clients, against alone: {ratios['alone']:.2f}, target {least}")
            lines[-1] += ": " + ("met" if ratios["alone"] >= least else "missed")
        if "transformers" in ratios:
            lines.append(f"{mode}, {clients} clients, against transformers: {ratios['transformers']:.2f}, "
                         f"target {SLOWEST}: {'met' if ratios['transformers'] >= SLOWEST else 'missed'}")  # fmt: skip
    return lines


def measure(mode: str, options: ServingOptions, threads: int) -> list[dict]:
    """The rows of a generation."""
    with ExitStack() as stack:
        servers = start_servers(mode, options, threads, stack)
        answerer = load_answerer(bases(mode, options)[0], precision=precision_of(options))
        found = [measure_turn(answerer, servers, turn, options) for turn in range(options.repeats)]
    return [row_of(clients, [by_load[clients] for by_load in found]) for clients in options.clients]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every generation; print tables, targets and JSON."""
    options = section(ServingOptions, read_command_line(PROGRAM, argv))
    runs.exit_on_sigterm()
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    Path(options.work_dir).mkdir(parents=True, exist_ok=True)
    results, lines = {}, []
    for mode in options.modes:
        results[mode] = measure(mode, options, threads)
        print(table(mode, results[mode]), flush=True)
        lines += targets(mode, results[mode])
    print("\n".join(lines))
    settings = {name: value for name, value in asdict(options).items() if name not in ("output", "work_dir")}
    settings |= {"precision": precision_of(options), "threads": threads}
    report({"benchmark": "serving", **settings, "targets": lines, "results": results}, options.output)


if __name__ == "__main__":
    run_program(main)
