"""Measure the 6B models on a GPU: memory compared with 2023, throughput, full fine-tuning, every command once.

python benchmarks/real_size.py --work_dir /data/real --output real_size.json          # ten minutes on one GPU of 80 GB
python benchmarks/real_size.py --work_dir /data/real --minutes 120 --modes glm,glm3   # every row
python benchmarks/real_size.py --work_dir /data/real --rows memory,throughput --modes glm3 --methods lora
python benchmarks/real_size.py --work_dir /data/real --rows full --steps 4
python benchmarks/real_size.py --work_dir /data/real --modes glm,glm3 --methods lora,ptuning --quantization_bit 4
python benchmarks/real_size.py --work_dir /tmp/plan --plan --gpu_memory 80 --ram 200  # only estimates: no card, no base
python benchmarks/real_size.py --work_dir /tmp/small --num_layers 2 --hidden_size 128 --vocab_size 4096 --max_len 128

Makes each base once, of random weights (12 GB, official layout, float16, a small tokenizer), and trains it with
train.py under `deepspeed`, bf16 where the card has it. --rows:

memory      the table of 2023 (A40, batch 1, ZeRO-2): every sample has as many tokens as there. On the card is what
            nvidia-smi would show at most, CUDA's own memory included; estimated is the peak of tensors.
throughput  --packing with as many rows as fill the card, of data/spo_0.json as it is (short) and of samples as long as
            a row (long). Model FLOPs utilization is the rate of the operations that forward and backward need
            (benchmarks/arithmetic.py, without recomputation) divided by the card's rate in a large product.
full        all parameters, with each DeepSpeed file that fits by estimate.
ask         train, save, merge, ask, with the flags of the last group of --help.

The most informative rows run first; one that no longer fits into --minutes is not started. A line per row; what
fails says why and the next row follows (a row that fills the card is tried again with half the batch). Tables as
Markdown and JSON last. Rows of the first three kinds write no checkpoint.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.bases import VOCABULARY, freeze_names, make_base  # noqa: E402
from benchmarks.command import benchmark, modes_flag, output_flag, size_flag, work_dir_flag  # noqa: E402
from benchmarks.runs import deepspeed, flags  # noqa: E402
from errors import UserError, run_program  # noqa: E402
from flags import flag, flags_of  # noqa: E402
from methods import METHODS  # noqa: E402
from options.parser import parse_and_check, section  # noqa: E402
from options.sections import ModelOptions  # noqa: E402

KINDS = ("memory", "throughput", "full", "ask")
NO_ROOM = "GPU memory is full"  # of training/guards.py
# Kind and method of the most informative rows, in order; the other rows follow.
ORDER = (
    ("throughput", "lora"),
    ("memory", "lora"),
    ("full", "all"),
    ("memory", "freeze"),
    ("memory", "ptuning"),
    ("throughput", "all"),
    ("ask", "lora"),
)
FIRST_GUESS = 60  # seconds of a row, before one has run
POOL = 64  # long samples that an estimate looks at: all are alike


@dataclass(frozen=True)
class RunOptions:
    """Which rows run, of which model, and for how long."""

    TITLE: ClassVar[str] = "rows"

    work_dir: str = work_dir_flag(
        "Path to a directory of bases (12 GB each), which stay there, and logs.",
        "存放基座（每个 12 GB，会保留）和日志的目录。",
    )
    rows: tuple[str, ...] | None = flag(
        None,
        help="Comma-separated kinds of rows (default: all; with --quantization_bit: ask).",
        zh="哪些类别，用逗号分隔（默认全部；给了 --quantization_bit 时为 ask）。",
        choices=KINDS,
    )
    modes: tuple[str, ...] = modes_flag("glm3")
    methods: tuple[str, ...] = flag(
        tuple(METHODS), help="Comma-separated methods.", zh="哪些训练方法，用逗号分隔。", choices=tuple(METHODS)
    )
    num_layers: int = size_flag(28, "Number of layers.", "层数。")
    hidden_size: int = size_flag(4096, "Hidden size.", "隐藏层大小。")
    vocab_size: int | None = size_flag(
        None, "Size of the vocabulary (default: the released one).", "词表大小（默认与正式发布的相同）。"
    )
    max_len: int = size_flag(1560, "Number of tokens per row.", "每行的 token 数。")
    plan: bool = flag(False, help="Print the rows with their estimates and exit.", zh="只打印各行及其估计。")
    gpu_memory: float | None = flag(
        None,
        help="Memory in GiB of a GPU that this machine lacks.",
        zh="假定的显卡显存（GiB）。",
        above=0,
        needs="plan",
    )
    ram: float | None = flag(
        None,
        help="Free RAM in GiB of that card's machine (default: of this one).",
        zh="那台机器的空闲内存（GiB；默认取本机的）。",
        above=0,
        needs="gpu_memory",
    )
    minutes: float = flag(
        10,
        help="Minutes for all rows; those that do not fit are not run.",
        zh="全部行的时间（分钟），放不下的不运行。",
        above=0,
    )
    row_minutes: float = flag(
        30,
        help="Minutes for a command; one that takes longer is stopped.",
        zh="单条命令的时间（分钟），超时即终止。",
        above=0,
    )
    output: str = output_flag()


@dataclass(frozen=True)
class MeasuredOptions:
    """How the rows of memory, throughput and full run."""

    TITLE: ClassVar[str] = "rows of memory, throughput and full"

    steps: int = size_flag(6, "Number of optimizer steps.", "优化步数。")
    warm_up: int = flag(
        2, help="Number of first steps that do not count for speed.", zh="开头不计入速度的步数。", at_least=0
    )
    samples: tuple[str, ...] = flag(
        ("long", "short"),
        help="Comma-separated lengths of samples.",
        zh="样本的长短，用逗号分隔。",
        choices=("short", "long"),
    )
    largest_batch: int = size_flag(32, "Number of rows of a micro-batch at most.", "微批最多几行。")
    accumulation: int = size_flag(
        8, "Number of micro-batches per step with an offloaded optimizer.", "优化器 offload 时每步的微批数。"
    )
    share: float = flag(
        0.8, help="Fraction of the card's memory to fill by estimate.", zh="按估计用满显存的比例。", above=0, at_most=1
    )


@dataclass(frozen=True)
class AskOptions:
    """How the rows of ask run."""

    TITLE: ClassVar[str] = "rows of ask"

    batch_size: int = size_flag(1, "Number of rows per micro-batch.", "每个微批的行数。")
    max_steps: int = size_flag(20, "Number of optimizer steps.", "优化步数。")
    ds_file: str = flag(
        "",
        help="DeepSpeed file (default: ds_zero2_no_offload.json; for all parameters the one that fits).",
        zh="DeepSpeed 配置文件（默认 ds_zero2_no_offload.json；训练全部参数时取放得下的）。",
        metavar="FILE",
    )
    gradient_checkpointing: bool = flag(False, help="Recompute activations during backward.", zh="反向时重算激活值。")
    quantization_bit: int | None = flag(
        None,
        help="Bits of the frozen weights; with --methods lora,ptuning.",
        zh="冻结权重的位数；配合 --methods lora,ptuning。",
        choices=flags_of(ModelOptions)["quantization_bit"].choices,
    )


@dataclass(frozen=True)
class Options:
    """A command line."""

    run: RunOptions
    measured: MeasuredOptions = MeasuredOptions()
    ask: AskOptions = AskOptions()


PROGRAM = benchmark(__file__, __doc__, RunOptions, MeasuredOptions, AskOptions)


def read_options(argv: Sequence[str] | None = None) -> Options:
    """The command line.

    Raises:
        UserError: everything that is wrong with it.
    """
    given = parse_and_check(PROGRAM, argv)
    options = Options(section(RunOptions, given), section(MeasuredOptions, given), section(AskOptions, given))
    problems, run, bits = given.problems, options.run, options.ask.quantization_bit
    if bits and set(run.rows or ["ask"]) != {"ask"}:
        problems.append(f"--quantization_bit {bits} is for --rows ask: give no other rows.")
    if not options.measured.warm_up < options.measured.steps:
        problems.append(
            f"--warm_up {options.measured.warm_up} must leave a step of --steps {options.measured.steps}: lower it."
        )
    if problems:
        raise UserError(*problems)
    return replace(options, run=replace(run, rows=run.rows or (("ask",) if bits else KINDS)))


if __name__ == "__main__":
    run_program(read_options)  # before torch is loaded

import torch  # noqa: E402

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # as train.py

from benchmarks import runs  # noqa: E402
from benchmarks.card_rows import (  # noqa: E402
    FILES,
    LENGTH_2023,
    ZERO2,
    choose,
    ds_file,
    encode,
    full_rows,
    longest_prompt,
    make_records,
    memory_rows,
    method_flags,
    plan_steps,
    prepared,
    throughput_rows,
    write_json_lines,
)
from benchmarks.card_run import apart, figures, look_at_card  # noqa: E402
from benchmarks.card_tables import line_of, tables  # noqa: E402
from benchmarks.pairs import report  # noqa: E402
from checkpoints.space import space_problem  # noqa: E402
from memory.available import GIB, free_ram, usable  # noqa: E402


def recompute(layers: int) -> dict:
    """Flags to recompute this many layers."""
    return {"gradient_checkpointing": True, "checkpoint_layers": layers} if layers else {}


def plan(row: dict, card: dict, options: Options) -> dict:
    """The row with how it will be run, or with why not ("failed")."""
    shape = shape_of(row["mode"], row["method"], options.run)
    samples = make_records(row["samples"], 5000 if row["samples"] == "short" else POOL, row["max_len"])
    row = {**row, "real": is_real(options) and card["on_gpu"]}
    chosen = choose(row, shape, encode(row["mode"], samples, row["max_len"]), card, options.measured.share)
    return {**row, "failed": chosen} if isinstance(chosen, str) else {**row, **chosen}


def shape_of(mode: str, method: str, run: RunOptions) -> tuple:
    """(config, parameters) of `prepared` at the size that a command line asks for."""
    return prepared(mode, method, run.num_layers, run.hidden_size, run.vocab_size)


def train(row: dict, base: Path, card: dict, options: Options) -> dict:
    """The row with what train.py measured, or with why it did not ("failed")."""
    output = Path(options.run.work_dir) / f"{row['mode']}-{row['method']}-{row['kind']}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    records, planned = plan_steps(row, row, options.measured.steps)
    write_json_lines(records, output / "records.json")
    (output / "ds.json").write_text(json.dumps(ds_file(row["file"])))
    given = {
        "mode": row["mode"], "train_type": row["method"], "model_name_or_path": base, "ds_file": output / "ds.json",
        "train_path": output / "records.json", "max_len": row["max_len"], "max_src_len": longest_prompt(row["max_len"]),
        "per_device_train_batch_size": row["batch"], "gradient_accumulation_steps": row["accumulation"],
        "max_steps": options.measured.steps, "show_loss_step": 1, "learning_rate": 1e-5, "seed": 1234,
        "resume_from_checkpoint": "none", "output_dir": output / "run", "data_cache_dir": output / "cache",
        **method_flags(row["method"], options.run.num_layers),
        **({"packing": True} if row["packing"] else {}),
        **recompute(row["recomputed"]),
    }  # fmt: skip
    problem = runs.run(deepspeed("benchmarks/card_run.py", given), output / "train.log", options.run.row_minutes)
    if problem:
        return {**row, "failed": problem}
    metrics = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    peaks = json.loads((output / "run" / "card.json").read_text())
    shutil.rmtree(output)
    config, _ = shape_of(row["mode"], row["method"], options.run)
    return {**row, **figures(row, metrics, peaks, planned, config, card, options.measured.warm_up)}


def train_until_it_fits(row: dict, base: Path, card: dict, options: Options) -> dict:
    """`train`; where the card has no room for a batch, against the estimate, a batch of half the size or less.

    Args:
        row: of `plan`.
    """
    tried: list[dict] = []
    while True:
        measured = train(row, base, card, options)
        smaller = [batch for batch in row["batches"] if batch <= row["batch"] // 2]
        if NO_ROOM not in measured.get("failed", "") or not smaller:
            return {**measured, "tried": tried}
        tried.append({"batch": row["batch"], "failed": measured["failed"]})
        row = plan({**row, "batches": smaller}, card, options)
        if "failed" in row:
            return {**row, "tried": tried}


def ask(row: dict, base: Path, card: dict, options: Options) -> dict:
    """The row after train, save, merge, ask; what that wrote is gone, but for the logs."""
    output = Path(options.run.work_dir) / f"{row['mode']}-{row['method']}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        return {**row, **ask_in(output, row["mode"], row["method"], base, card, options)}
    finally:  # of all parameters 100 GB, which the next row needs
        for name in ("run", "merged"):
            shutil.rmtree(output / name, ignore_errors=True)


def ask_in(output: Path, mode: str, method: str, base: Path, card: dict, options: Options) -> dict:
    """What a row of `ask` says, or why it failed ("failed"); its files are in `output`."""
    asked = options.ask
    layers = {"gradient_checkpointing": True} if asked.gradient_checkpointing else {}
    file = asked.ds_file or ZERO2
    if not asked.ds_file and method == "all":  # the only method that may not fit without offload
        full_row = {**next(full_rows([mode], options.run.max_len)), "files": FILES, "batches": [asked.batch_size]}
        chosen = plan(full_row, card, options)
        if "failed" in chosen:
            return {"failed": chosen["failed"]}
        file = output / "ds.json"
        file.write_text(json.dumps(ds_file(chosen["file"])))
        layers = recompute(chosen["recomputed"]) or layers
    given = {
        "mode": mode, "train_type": method, "model_name_or_path": base,
        "train_path": REPOSITORY / "data" / "spo_0.json", "max_len": options.run.max_len,
        "max_src_len": options.run.max_len * 2 // 3, "per_device_train_batch_size": asked.batch_size,
        "gradient_accumulation_steps": 1, "max_steps": asked.max_steps, "show_loss_step": 5,
        "output_dir": output / "run", "learning_rate": 1e-5, "freeze_module_name": freeze_names(options.run.num_layers),
        "resume_from_checkpoint": "none", "save_state_step": 10**9, "ds_file": file, **layers,
        **({"quantization_bit": asked.quantization_bit} if asked.quantization_bit else {}),
    }  # fmt: skip
    problem = runs.run(deepspeed("train.py", given), output / "train.log", options.run.row_minutes)
    if problem:
        return {"failed": problem}
    metrics = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    (checkpoint,) = (output / "run").glob("epoch-*-step-*")
    merged = output / "merged"
    merge = {"ori_model_dir": base, "model_dir": checkpoint, "output_dir": merged}
    question = {"model_path": merged, "instruction": "抽取三元组：", "input": "水泵渗漏。", "max_new_tokens": 16}
    for name, words in (("merge_lora", merge), ("predict", question)):
        command = [sys.executable, f"{name}.py", *flags(words)]
        problem = runs.run(command, output / f"{name}.log", options.run.row_minutes)
        if problem:
            return {"failed": f"{name}.py: {problem}"}
    return {
        "loss": metrics[-1]["loss"],
        "allocated": max(step["peak_memory_bytes"] for step in metrics),
        "tokens_per_second": metrics[-1]["tokens_per_second"],
    }


def is_real(options: Options) -> bool:
    """Whether the shapes are those that the targets are about."""
    shape = options.run.num_layers, options.run.hidden_size, options.run.vocab_size, options.run.max_len
    return shape == (28, 4096, None, LENGTH_2023)


def wanted_rows(options: Options) -> list[dict]:
    """The rows that the command line asks for: those of a base together, in the order of ORDER."""
    return [row for mode in options.run.modes for row in sorted(rows_of(mode, options), key=rank_of)]


def rank_of(row: dict) -> int:
    """Where ORDER has a row."""
    kind = row["kind"], row["method"]
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def rows_of(mode: str, options: Options) -> list[dict]:
    """The rows of a generation."""
    rows = []
    if "memory" in options.run.rows:
        rows += memory_rows([mode], options.run.methods, options.run.max_len)
    if "throughput" in options.run.rows:
        measured = options.measured
        rows += throughput_rows(
            [mode], options.run.methods, options.run.max_len, measured.samples, measured.largest_batch,
            measured.accumulation,
        )  # fmt: skip
    if "full" in options.run.rows and "all" in options.run.methods:
        rows += full_rows([mode], options.run.max_len)
    if "ask" in options.run.rows:
        rows += [{"kind": "ask", "mode": mode, "method": method} for method in options.run.methods]
    return rows


def measure(row: dict, card: dict, options: Options) -> dict:
    """One row with the seconds that it took, after its base where that does not exist yet."""
    planned = row if row["kind"] == "ask" else plan(row, card, options)
    if "failed" in planned or options.run.plan:
        return planned
    run, vocabulary = options.run, options.run.vocab_size or VOCABULARY[row["mode"]]
    base = Path(run.work_dir) / f"{row['mode']}-base-{run.num_layers}x{run.hidden_size}x{vocabulary}"
    if not (base / "config.json").is_file():
        shutil.rmtree(base, ignore_errors=True)
        problem = space_problem(Path(run.work_dir), base_bytes(row["mode"], run), "the base")
        if problem:
            return {**planned, "failed": problem}
        apart(make_base, base, row["mode"], run.num_layers, run.hidden_size, run.vocab_size)
    begun = time.monotonic()
    measured = (
        ask(row, base, card, options) if row["kind"] == "ask" else train_until_it_fits(planned, base, card, options)
    )
    return {**measured, "seconds": round(time.monotonic() - begun, 1)}


def base_bytes(mode: str, run: RunOptions) -> int:
    """Size of a base's weight files: float16."""
    _, parameters = shape_of(mode, "all", run)
    return 2 * sum(parameter.size for parameter in parameters)


def measure_in_time(rows: list[dict], card: dict, options: Options) -> Iterator[dict]:
    """Yield every row after it was measured, or, where the time left is shorter than any row took, with that."""
    end, longest = time.monotonic() + 60 * options.run.minutes, FIRST_GUESS
    for row in rows:
        left = end - time.monotonic()
        if left < longest and not options.run.plan:
            yield {**row, "failed": f"not run: {max(left, 0):.0f} s of --minutes {options.run.minutes:g} were left"}
            continue
        bounded = replace(options.run, row_minutes=min(options.run.row_minutes, left / 60))
        measured = measure(row, card, replace(options, run=bounded))
        longest = max(longest, measured.get("seconds", 0))
        yield measured


def look(run: RunOptions) -> dict:
    """The card that rows are planned for."""
    if not run.gpu_memory:
        return apart(look_at_card)
    total, ram = int(run.gpu_memory * GIB), int(run.ram * GIB) if run.ram else free_ram()
    return {"name": f"{run.gpu_memory:g} GiB", "on_gpu": True, "total_bytes": total, "memory": usable(total),
            "ram": ram, "precision": "bf16", "matrix_rate": None}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run every row; print its line, the tables, and JSON."""
    options = read_options(argv)
    card = look(options.run)
    rate = f", {card['matrix_rate'] / 1e12:,.2f} TFLOP/s in large products" if card["matrix_rate"] else ""
    print(f"{card['name']}: {card['total_bytes'] / GIB:.1f} GiB, {card['precision']}{rate}", flush=True)
    rows = []
    try:
        for row in measure_in_time(wanted_rows(options), card, options):
            rows.append(row)
            print(line_of(row), flush=True)
    finally:  # Ctrl-C loses no row that is done
        print("\n".join(tables(rows)))
        flat = {**asdict(options.run), **asdict(options.measured), **asdict(options.ask)}
        report({"benchmark": "real_size", "card": card, "options": flat, "results": rows}, options.run.output)


if __name__ == "__main__":
    run_program(main)
