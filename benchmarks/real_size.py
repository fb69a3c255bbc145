"""What a card does with the 6B models: memory against 2023, throughput, all parameters, and every command once.

python benchmarks/real_size.py --work_dir /data/real --output real_size.json          # ten minutes on one GPU of 80 GB
python benchmarks/real_size.py --work_dir /data/real --minutes 120 --modes glm glm3   # every row
python benchmarks/real_size.py --work_dir /data/real --rows memory throughput --modes glm3 --methods lora
python benchmarks/real_size.py --work_dir /data/real --rows full --steps 4
python benchmarks/real_size.py --work_dir /data/real --modes glm glm3 --methods lora ptuning --quantization_bit 4
python benchmarks/real_size.py --work_dir /tmp/plan --plan --gpu_memory 80 --ram 200  # only estimates: no card, no base
python benchmarks/real_size.py --work_dir /tmp/small --num_layers 2 --hidden_size 128 --vocab_size 4096 --max_len 128

Makes each base once, of random weights (12 GB, official layout, float16, a small tokenizer), and trains it with
train.py under `deepspeed`, bf16 where the card has it. --rows:

memory      the table of 2023 (A40, batch 1, ZeRO-2): every sample has as many tokens as there. On the card is what
            nvidia-smi would show at most, CUDA's own memory included; estimated is the peak of tensors.
throughput  --packing with as many rows as fill the card, of data/spo_0.json as it is (short) and of samples as long as
            a row (long). Model FLOPs utilisation is the rate of the operations that forward and backward need
            (benchmarks/arithmetic.py, nothing that is computed again) divided by the card's rate in a large product.
full        all parameters, with each DeepSpeed file that fits by estimate.
ask         train, save, merge, ask, at the options of the last group of --help.

Rows run in the order of what they tell; one that no longer fits into --minutes is not started. A line per row; what
fails says why and the next row follows (a row that fills the card is tried again with half the batch). Tables as
Markdown and JSON last. Rows of the first three kinds write no checkpoint.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
import torch  # noqa: E402

from terminal import protect_output  # noqa: E402

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # as train.py

from benchmarks.bases import VOCABULARY, freeze_names, make_base  # noqa: E402
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
from benchmarks.runs import deepspeed, flags, run  # noqa: E402
from memory.available import GIB, free_ram, usable  # noqa: E402
from methods import METHODS  # noqa: E402
from modes import MODES  # noqa: E402
from training.guards import space_problem  # noqa: E402
from training.quantization import BITS  # noqa: E402

KINDS = ("memory", "throughput", "full", "ask")
NO_ROOM = "GPU memory is full"  # of training/guards.py
# Kind and method of the rows that tell most, first; the others follow.
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


def recompute(layers: int) -> dict:
    """Flags to compute so many layers again."""
    return {"gradient_checkpointing": True, "checkpoint_layers": layers} if layers else {}


def plan(row: dict, card: dict, options: argparse.Namespace) -> dict:
    """The row with how it will be run, or with why not ("failed")."""
    shape = prepared(row["mode"], row["method"], options.num_layers, options.hidden_size, options.vocab_size)
    samples = make_records(row["samples"], 5000 if row["samples"] == "short" else POOL, row["max_len"])
    row = {**row, "real": is_real(options) and card["on_gpu"]}
    chosen = choose(row, shape, encode(row["mode"], samples, row["max_len"]), card, options.share)
    return {**row, "failed": chosen} if isinstance(chosen, str) else {**row, **chosen}


def train(row: dict, base: Path, card: dict, options: argparse.Namespace) -> dict:
    """The row with what train.py measured, or with why it did not ("failed")."""
    output = options.work_dir / f"{row['mode']}-{row['method']}-{row['kind']}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    records, planned = plan_steps(row, row, options.steps)
    write_json_lines(records, output / "records.json")
    (output / "ds.json").write_text(json.dumps(ds_file(row["file"])))
    given = {
        "mode": row["mode"], "train_type": row["method"], "model_name_or_path": base, "ds_file": output / "ds.json",
        "train_path": output / "records.json", "max_len": row["max_len"], "max_src_len": longest_prompt(row["max_len"]),
        "per_device_train_batch_size": row["batch"], "gradient_accumulation_steps": row["accumulation"],
        "max_steps": options.steps, "show_loss_step": 1, "learning_rate": 1e-5, "seed": 1234,
        "resume_from_checkpoint": "none", "output_dir": output / "run", "data_cache_dir": output / "cache",
        **method_flags(row["method"], options.num_layers),
        **({"packing": True} if row["packing"] else {}),
        **recompute(row["recomputed"]),
    }  # fmt: skip
    problem = run(deepspeed("benchmarks/card_run.py", given), output / "train.log", options.row_minutes)
    if problem:
        return {**row, "failed": problem}
    metrics = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    found = json.loads((output / "run" / "card.json").read_text())
    shutil.rmtree(output)
    config, _ = prepared(row["mode"], row["method"], options.num_layers, options.hidden_size, options.vocab_size)
    return {**row, **figures(row, metrics, found, planned, config, card, options.warm_up)}


def train_until_it_fits(row: dict, base: Path, card: dict, options: argparse.Namespace) -> dict:
    """`train`; where the card has no room for a batch, against the estimate, a batch of half the size or less.

    Args:
        row: of `plan`.
    """
    tried: list[dict] = []
    while True:
        found = train(row, base, card, options)
        smaller = [batch for batch in row["batches"] if batch <= row["batch"] // 2]
        if NO_ROOM not in found.get("failed", "") or not smaller:
            return {**found, "tried": tried}
        tried.append({"batch": row["batch"], "failed": found["failed"]})
        row = plan({**row, "batches": smaller}, card, options)
        if "failed" in row:
            return {**row, "tried": tried}


def ask(row: dict, base: Path, card: dict, options: argparse.Namespace) -> dict:
    """The row after train, save, merge, ask; what that wrote is gone, but for the logs."""
    output = options.work_dir / f"{row['mode']}-{row['method']}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        return {**row, **ask_in(output, row["mode"], row["method"], base, card, options)}
    finally:  # of all parameters 100 GB, which the next row needs
        for name in ("run", "merged"):
            shutil.rmtree(output / name, ignore_errors=True)


def ask_in(output: Path, mode: str, method: str, base: Path, card: dict, options: argparse.Namespace) -> dict:
    """What a row of `ask` says, or why it failed ("failed"); its files are in `output`."""
    layers = {"gradient_checkpointing": True} if options.gradient_checkpointing else {}
    file = options.ds_file or ZERO2
    if not options.ds_file and method == "all":  # the only method that may not fit without offload
        whole = {**next(full_rows([mode], options.max_len)), "files": FILES, "batches": [options.batch_size]}
        chosen = plan(whole, card, options)
        if "failed" in chosen:
            return {"failed": chosen["failed"]}
        file = output / "ds.json"
        file.write_text(json.dumps(ds_file(chosen["file"])))
        layers = recompute(chosen["recomputed"]) or layers
    given = {
        "mode": mode, "train_type": method, "model_name_or_path": base,
        "train_path": REPOSITORY / "data" / "spo_0.json", "max_len": options.max_len,
        "max_src_len": options.max_len * 2 // 3, "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": 1, "max_steps": options.max_steps, "show_loss_step": 5,
        "output_dir": output / "run", "learning_rate": 1e-5, "freeze_module_name": freeze_names(options.num_layers),
        "resume_from_checkpoint": "none", "save_state_step": 10**9, "ds_file": file, **layers,
        **({"quantization_bit": options.quantization_bit} if options.quantization_bit else {}),
    }  # fmt: skip
    problem = run(deepspeed("train.py", given), output / "train.log", options.row_minutes)
    if problem:
        return {"failed": problem}
    metrics = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    (checkpoint,) = (output / "run").glob("epoch-*-step-*")
    merged = output / "merged"
    merge = {"ori_model_dir": base, "model_dir": checkpoint, "output_dir": merged}
    question = {"model_path": merged, "instruction": "抽取三元组：", "input": "水泵渗漏。", "max_new_tokens": 16}
    for name, asked in (("merge_lora", merge), ("predict", question)):
        command = [sys.executable, f"{name}.py", *flags(asked)]
        problem = run(command, output / f"{name}.log", options.row_minutes)
        if problem:
            return {"failed": f"{name}.py: {problem}"}
    return {
        "loss": metrics[-1]["loss"],
        "allocated": max(one["peak_memory_bytes"] for one in metrics),
        "tokens_per_second": metrics[-1]["tokens_per_second"],
    }


def is_real(options: argparse.Namespace) -> bool:
    """Whether the shapes are those that the targets are about."""
    shape = options.num_layers, options.hidden_size, options.vocab_size, options.max_len
    return shape == (28, 4096, None, LENGTH_2023)


def wanted_rows(options: argparse.Namespace) -> list[dict]:
    """The rows that the command line asks for: those of a base together, in the order of ORDER."""
    return [row for mode in options.modes for row in sorted(rows_of(mode, options), key=rank_of)]


def rank_of(row: dict) -> int:
    """Where ORDER has a row."""
    kind = row["kind"], row["method"]
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def rows_of(mode: str, options: argparse.Namespace) -> list[dict]:
    """The rows of a generation."""
    rows = []
    if "memory" in options.rows:
        rows += memory_rows([mode], options.methods, options.max_len)
    if "throughput" in options.rows:
        rows += throughput_rows(
            [mode], options.methods, options.max_len, options.samples, options.largest_batch, options.accumulation
        )
    if "full" in options.rows and "all" in options.methods:
        rows += full_rows([mode], options.max_len)
    if "ask" in options.rows:
        rows += [{"kind": "ask", "mode": mode, "method": method} for method in options.methods]
    return rows


def measure(row: dict, card: dict, options: argparse.Namespace) -> dict:
    """One row with the seconds that it took, after its base where that does not exist yet."""
    planned = row if row["kind"] == "ask" else plan(row, card, options)
    if "failed" in planned or options.plan:
        return planned
    vocabulary = options.vocab_size or VOCABULARY[row["mode"]]
    base = options.work_dir / f"{row['mode']}-base-{options.num_layers}x{options.hidden_size}x{vocabulary}"
    if not (base / "config.json").is_file():
        shutil.rmtree(base, ignore_errors=True)
        problem = space_problem(options.work_dir, base_bytes(row["mode"], options), "the base")
        if problem:
            return {**planned, "failed": problem}
        apart(make_base, base, row["mode"], options.num_layers, options.hidden_size, options.vocab_size)
    begun = time.monotonic()
    found = ask(row, base, card, options) if row["kind"] == "ask" else train_until_it_fits(planned, base, card, options)
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def base_bytes(mode: str, options: argparse.Namespace) -> int:
    """Size of a base's weight files: float16."""
    _, parameters = prepared(mode, "all", options.num_layers, options.hidden_size, options.vocab_size)
    return 2 * sum(one.size for one in parameters)


def measure_in_time(rows: list[dict], card: dict, options: argparse.Namespace) -> Iterator[dict]:
    """Yield every row after it was measured, or, where the time left is shorter than any row took, with that."""
    end, longest = time.monotonic() + 60 * options.minutes, FIRST_GUESS
    for row in rows:
        left = end - time.monotonic()
        if left < longest and not options.plan:
            yield {**row, "failed": f"not run: {max(left, 0):.0f} s of --minutes {options.minutes:g} were left"}
            continue
        bounded = {**vars(options), "row_minutes": min(options.row_minutes, left / 60)}
        found = measure(row, card, argparse.Namespace(**bounded))
        longest = max(longest, found.get("seconds", 0))
        yield found


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="bases (12 GB each) and logs; bases stay there")
    parser.add_argument("--rows", nargs="+", choices=KINDS, help="default: all; with --quantization_bit: ask")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["glm3"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--num_layers", type=int, default=28)
    parser.add_argument("--hidden_size", type=int, default=4096)
    parser.add_argument("--vocab_size", type=int, help="default: the real one")
    parser.add_argument("--max_len", type=int, default=1560)
    parser.add_argument("--plan", action="store_true", help="print what would be run, with estimates, and leave")
    parser.add_argument("--gpu_memory", type=float, help="GiB, with --plan: of a card that is not here")
    parser.add_argument("--ram", type=float, help="GiB free on that card's machine, with --gpu_memory; default: here")
    parser.add_argument("--minutes", type=float, default=10, help="for all rows; those that do not fit are not run")
    parser.add_argument("--row_minutes", type=float, default=30, help="a command that takes longer is stopped")
    parser.add_argument("--output", type=Path, help="write the JSON there, too")
    measured = parser.add_argument_group("rows of memory, throughput and full")
    measured.add_argument("--steps", type=int, default=6, help="of a run")
    measured.add_argument("--warm_up", type=int, default=2, help="the first of them, not counted for speed")
    measured.add_argument("--samples", nargs="+", choices=["short", "long"], default=["long", "short"])
    measured.add_argument("--largest_batch", type=int, default=32, help="rows, at most, of a micro-batch")
    measured.add_argument("--accumulation", type=int, default=8, help="micro-batches of a step that is offloaded")
    measured.add_argument("--share", type=float, default=0.8, help="of the card's memory, to fill by estimate")
    asked = parser.add_argument_group("rows of ask")
    asked.add_argument("--batch_size", type=int, default=1)
    asked.add_argument("--max_steps", type=int, default=20)
    asked.add_argument("--ds_file", help="default: ds_zero2_no_offload.json; for all parameters what fits")
    asked.add_argument("--gradient_checkpointing", action="store_true")
    asked.add_argument("--quantization_bit", type=int, choices=BITS, help="with --methods lora ptuning")
    options = parser.parse_args()
    if options.quantization_bit and set(options.rows or ["ask"]) != {"ask"}:
        parser.error("--quantization_bit is for --rows ask")
    if options.gpu_memory and not options.plan:
        parser.error("--gpu_memory is for --plan")
    if not 0 <= options.warm_up < options.steps:
        parser.error("--warm_up must leave a step of --steps")
    options.rows = options.rows or (["ask"] if options.quantization_bit else list(KINDS))
    return options


def main() -> None:
    """Run every row; print its line, the tables, and JSON."""
    options = read_options()
    if options.gpu_memory:
        total, ram = int(options.gpu_memory * GIB), int(options.ram * GIB) if options.ram else free_ram()
        card = {"name": f"{options.gpu_memory:g} GiB", "on_gpu": True, "total_bytes": total, "memory": usable(total),
                "ram": ram, "precision": "bf16", "matrix_rate": None}  # fmt: skip
    else:
        card = apart(look_at_card)
    rate = f", {card['matrix_rate'] / 1e12:,.2f} TFLOP/s in large products" if card["matrix_rate"] else ""
    print(f"{card['name']}: {card['total_bytes'] / GIB:.1f} GiB, {card['precision']}{rate}", flush=True)
    rows = []
    try:
        for row in measure_in_time(wanted_rows(options), card, options):
            rows.append(row)
            print(line_of(row), flush=True)
    finally:  # Ctrl-C loses no row that is done
        print("\n".join(tables(rows)))
        report({"benchmark": "real_size", "card": card, "options": vars(options), "results": rows}, options.output)


if __name__ == "__main__":
    protect_output()
    main()
