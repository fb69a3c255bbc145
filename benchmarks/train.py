"""Speed and memory of training: train.py against the loop of 2023 and against trl's SFTTrainer, on a CPU.

python benchmarks/train.py --modes glm --output benchmarks/results/train_glm.json
python benchmarks/train.py --modes glm3 --rows lora,all --sides ours,trl --steps 6 --repeats 5
python benchmarks/train.py --modes glm2 --rows freeze_cached --train_path my_records.json

Each row (ROWS) is trained by each side (benchmarks/loop_of_2023.py, benchmarks/trl_side.py) in its own process, in
alternation, on the same records, batch and rate, from the same random base with the proportions of the 6B models. Speed
is in tokens of records per second, without padding and without the first step; for a row with cached features, of the
second epoch. Printed are the medians of the paired ratios, the peak memory of a process with its libraries, the losses
of the last step (of the first epoch), which show that the work is the same (trl's are from another run with batches as
given; dropout is off, except for the 0.1 of P-Tuning), and the operations per token of each side's matrix products;
JSON last.
"""

import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.bases import VOCABULARY, freeze_names, make_base  # noqa: E402
from benchmarks.command import benchmark, modes_flag, output_flag, repeats_flag, seed_flag, size_flag  # noqa: E402
from benchmarks.runs import flags, output_of, torchrun  # noqa: E402
from benchmarks.sides import in_order  # noqa: E402
from errors import UserError, run_program  # noqa: E402
from flags import flag  # noqa: E402
from modes import GENERATIONS, MODES  # noqa: E402
from options.parser import parse_and_check, section  # noqa: E402

LAYERS = 28
RECOMPUTE = {"gradient_checkpointing": True, "checkpoint_layers": LAYERS}
# What a row trains, and the flags that train.py and trl_side.py get for it beside those of all.
ROWS = {
    "freeze": {"train_type": "freeze", "ours": {}},
    "freeze_cached": {"train_type": "freeze", "ours": {"cache_frozen_features": True, "num_train_epochs": 2}},
    "ptuning": {"train_type": "ptuning", "ours": {}},
    "lora": {"train_type": "lora", "ours": {}, "trl": {}},
    "lora_recomputed": {"train_type": "lora", "ours": RECOMPUTE, "trl": {"gradient_checkpointing": True}},
    "all": {"train_type": "all", "ours": {}, "trl": {}},
    "all_recomputed": {"train_type": "all", "ours": RECOMPUTE, "trl": {"gradient_checkpointing": True}},
}
METHOD_FLAGS = {
    "freeze": {"freeze_module_name": freeze_names(LAYERS)},
    "ptuning": {"pre_seq_len": 16},
    "lora": {"lora_dim": 16, "lora_alpha": 64},
    "all": {},
}
HEAD_SIZE = 32  # 128 in the 6B models, which leaves a narrow one no heads to group
LENGTHS = {"max_len": 1560, "max_src_len": 1024}
SIDES = ("ours", "loop", "trl")


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained, by which sides and how."""

    TITLE: ClassVar[str] = "training"

    modes: tuple[str, ...] = modes_flag(*GENERATIONS)
    rows: tuple[str, ...] = flag(
        ("freeze", "ptuning", "lora", "all"),
        help="Comma-separated rows of the table.",
        zh="表中的哪些行，用逗号分隔。",
        choices=tuple(ROWS),
    )
    sides: tuple[str, ...] = flag(
        SIDES, help="Comma-separated sides, ours among them.", zh="哪几方，用逗号分隔，其中必须有 ours。", choices=SIDES
    )
    train_path: str = flag(
        str(REPOSITORY / "data" / "spo_0.json"),
        help="Path to a file of records.",
        zh="数据文件的路径。",
        metavar="FILE",
    )
    hidden_size: int = flag(
        256,
        help="Hidden size; the other sizes keep the proportions of the 6B models.",
        zh="隐藏层大小；其余大小按 6B 模型的比例。",
        at_least=HEAD_SIZE,
    )
    batch_size: int = size_flag(16, "Number of rows per micro-batch.", "每个微批的行数。")
    accumulation: int = size_flag(1, "Number of micro-batches per step.", "每步的微批数。")
    steps: int = flag(
        5, help="Number of optimizer steps; the first is not counted.", zh="优化步数；第一步不计入。", at_least=2
    )
    repeats: int = repeats_flag(3)
    learning_rate: float = flag(1e-4, help="Peak learning rate.", zh="学习率的峰值。", above=0)
    seed: int = seed_flag(1234)
    threads: int | None = flag(
        os.cpu_count(), help="Number of threads per process.", zh="每个进程的线程数。", at_least=1
    )
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, TrainingOptions)


def read_options(argv: Sequence[str] | None = None) -> TrainingOptions:
    """The command line.

    Raises:
        UserError: everything that is wrong with it.
    """
    given = parse_and_check(PROGRAM, argv)
    options, problems = section(TrainingOptions, given), given.problems
    if "trl" in options.sides and importlib.util.find_spec("trl") is None:
        problems.append(
            '--sides trl needs trl: pip install -c constraints.txt -e ".[benchmark]", or give --sides ours,loop.'
        )
    if "ours" not in options.sides:
        problems.append("--sides lacks ours, with which everything is compared: add it.")
    if problems:
        raise UserError(*problems)
    return options


if __name__ == "__main__":
    run_program(read_options)  # before torch is loaded

import numpy as np  # noqa: E402

from benchmarks.arithmetic import Trained, end_to_end, flops_of, padded, read_shape  # noqa: E402
from benchmarks.pairs import report  # noqa: E402
from data.formats import Columns  # noqa: E402
from data.loading import plan_epoch  # noqa: E402
from data.records import read_records  # noqa: E402
from data.sources import Source, read_rows  # noqa: E402
from data.tokenize import IGNORE  # noqa: E402


def write_records(path: str, count: int, output: Path) -> None:
    """The first records of a file.

    Raises:
        UserError: there are fewer.
    """
    records = [record for _, record in islice(read_records(path), count)]
    if len(records) < count:
        raise UserError(
            f"--train_path {path} holds {len(records)} records, but --steps x --batch_size x --accumulation is "
            f"{count}: lower one of them."
        )
    output.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def plan(mode: str, base: Path, records: Path, epoch: int, options: TrainingOptions) -> tuple[list, int]:
    """(steps of micro-batches of rows as train.py trains on them in an epoch, the id for padding)."""
    made = MODES[mode]
    tokenizer = made.tokenizer_class.from_pretrained(base)
    source = Source(str(records), Columns())
    samples = [record for _, record in read_rows(source, roles=made.roles, apart=made.one_answer)]
    rows = made.encode_batch(tokenizer, samples, loss_on="all", **LENGTHS)
    rows = [{name: list(map(int, row[name])) for name in ("input_ids", "labels")} for row in rows]
    planned = plan_epoch(
        np.array([len(row["input_ids"]) for row in rows]),
        np.array([supervised(row) for row in rows]),
        epoch=epoch, seed=options.seed, micro_batch_size=options.batch_size, accumulation=options.accumulation,
        world_size=1, rank=0,
    )  # fmt: skip
    return [[[rows[i] for i in batch] for batch in step.micro_batches] for step in planned], tokenizer.pad_token_id


def supervised(row: dict) -> int:
    """Supervised tokens of a row."""
    return sum(label != IGNORE for label in row["labels"][1:])


def as_drawn(steps: list, seed: int) -> list:
    """The steps as the loop of 2023 had them: rows of any length beside one another in the micro-batches of a step.

    Where a step is one batch, the order in it changes nothing and is left as it is.
    """
    if len(steps[0]) == 1:
        return steps
    drawn, generator = [], np.random.default_rng(seed)
    for step in steps:
        rows, size = [row for batch in step for row in batch], len(step[0])
        rows = [rows[i] for i in generator.permutation(len(rows))]
        drawn.append([rows[start : start + size] for start in range(0, len(rows), size)])
    return drawn


def tokens_of(steps: list) -> list[int]:
    """Tokens of records in each step."""
    return [sum(len(row["input_ids"]) for batch in step for row in batch) for step in steps]


def speed(rows: list[dict], tokens: list[int]) -> float:
    """Tokens per second over the rows of a metrics.jsonl, which hold those of a step each.

    Args:
        tokens: of the steps that `rows` are about.
    """
    return sum(tokens) / sum(count / row["tokens_per_second"] for count, row in zip(tokens, rows, strict=True))


def train(command: list[str], directory: Path, threads: int | None) -> list[dict]:
    """Run a side on the CPU; returns the rows of its metrics.jsonl. Ends the program where it fails."""
    output_of(command, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(directory)
    return rows


def commands(mode: str, row: dict, base: Path, records: Path, work: Path, options: TrainingOptions) -> dict:
    """{side: command}; each writes work/SIDE/metrics.jsonl."""
    train_type = row["train_type"]
    shared = {"mode": mode, "train_type": train_type, "model_name_or_path": base, "seed": options.seed}
    shared |= {"learning_rate": options.learning_rate, "warmup_ratio": 0.1, **METHOD_FLAGS[train_type]}
    ours = {
        "train_path": records,
        **LENGTHS,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "weight_decay": 0.1,
        "show_loss_step": 1,
        "resume_from_checkpoint": "none",
        "data_cache_dir": work / "cache",
        **({} if "num_train_epochs" in row["ours"] else {"max_steps": options.steps}),
        **({"lora_dropout": 0} if train_type == "lora" else {}),
        **row["ours"],
    }
    peers = {**shared, "rows": work / "rows.json"}
    total_steps = options.steps * row["ours"].get("num_train_epochs", 1)
    programs = {
        "ours": torchrun(1, "train.py", *flags({**shared, **ours})),
        "loop": [
            sys.executable,
            "benchmarks/loop_of_2023.py",
            *flags({**peers, "total_steps": total_steps}),
        ],
        "trl": [sys.executable, "benchmarks/trl_side.py", *flags({**peers, **row.get("trl", {})})],
    }
    return {side: [*program, "--output_dir", str(work / side)] for side, program in programs.items()}


def arithmetic(mode: str, base: Path, row: dict, side: str, steps: list) -> float:
    """Operations (10^9) per token of records that a side's matrix products take in `steps`.

    Ours: samples end to end, common prompts once, logits and the last feed-forward part where something is supervised,
    backward down to the lowest trained layer. The others: padded to the longest row, all logits; trl makes them twice.
    """
    from data.collate import collate

    config, train_type = MODES[mode].config_class.from_pretrained(base), row["train_type"]
    asked = row.get("ours" if side == "ours" else "trl", {})
    ours, recomputes = side == "ours", side == "loop" or "gradient_checkpointing" in asked
    parts = {"lora_dim": METHOD_FLAGS["lora"]["lora_dim"], "lora_parts": 3 if side == "trl" else 1}
    parts |= {"prefix_length": METHOD_FLAGS["ptuning"]["pre_seq_len"]}
    trained = Trained.by(train_type, LAYERS, **parts)
    lowest, prefix_length = trained.layers[0] if ours and train_type == "freeze" else 0, trained.prefix_length
    if "cache_frozen_features" in asked:  # the frozen layers are not computed
        config.num_layers, lowest = len(trained.layers), 0
        trained = Trained.by(train_type, config.num_layers, **parts)
    passes, logits, again = [], 0, 0
    for rows in (rows for step in steps for rows in step):
        if ours:
            passes.append(end_to_end(collate(rows, partial(MODES[mode].layout, config))["segments"], prefix_length))
            logits += sum(supervised(sample) for sample in rows)
        else:
            causal = side == "loop" and MODES[mode].causal_prompt and not prefix_length
            passes.append(padded(len(rows), max(len(sample["input_ids"]) for sample in rows), prefix_length, causal))
            logits, again = logits + passes[-1][0], again + (passes[-1][0] if side == "trl" else 0)
    total = flops_of(
        read_shape(config, gated=MODES[mode].gated),
        passes,
        trained,
        logits=logits,
        logits_again=again,
        last=logits if ours else None,
        embeddings_in_backward=train_type == "all" or recomputes and not ours,
        lowest=lowest,
        recomputed=LAYERS - lowest if recomputes else 0,
    )
    return total / sum(tokens_of(steps)) / 1e9


def measure(mode: str, name: str, base: Path, work: Path, options: TrainingOptions) -> dict:
    """One row: all sides in alternation."""
    row, records = ROWS[name], work / "records.jsonl"
    steps, pad_id = plan(mode, base, records, 1, options)
    steps = steps[: options.steps]
    sides = [side for side in options.sides if side != "trl" or "trl" in row and mode != "glm"]
    steps_of = {"ours": steps, "loop": as_drawn(steps, options.seed), "trl": in_order(steps, "by_length", options.seed)}
    made = commands(mode, row, base, records, work, options)
    speeds, memory, losses = {side: [] for side in sides}, {side: 0 for side in sides}, {}
    epochs = row["ours"].get("num_train_epochs", 1)
    last = plan(mode, base, records, epochs, options)[0] if epochs > 1 else steps
    for turn in range(options.repeats):
        for side in sides if turn % 2 == 0 else reversed(sides):
            given = steps_of["loop"] if side == "loop" else steps  # trl's side brings them in order itself
            (work / "rows.json").write_text(json.dumps({"pad_id": pad_id, "steps": given}))
            if side == "trl" and turn == 0:
                metrics = train([*made[side], "--order", "given"], work / side, options.threads)
                losses[side] = [step["loss"] for step in metrics]
            metrics = train(made[side], work / side, options.threads)
            memory[side] = max(memory[side], *(step["peak_memory_bytes"] for step in metrics))
            losses.setdefault(side, [step["loss"] for step in metrics if step["epoch"] == 1])
            if side == "ours" and epochs > 1:
                speeds[side].append(speed([step for step in metrics if step["epoch"] == epochs], tokens_of(last)))
            else:
                speeds[side].append(speed(metrics[1:], tokens_of(steps_of[side])[1:]))
    peers = [side for side in sides if side != "ours"]
    ratios = {side: [ours / other for ours, other in zip(speeds["ours"], speeds[side], strict=True)] for side in peers}
    return {
        "mode": mode,
        "row": name,
        "flags": row["ours"],
        "tokens_per_second": {
            side: [round(speed_of_run, 1) for speed_of_run in of_side] for side, of_side in speeds.items()
        },
        "speed_ratio": {side: round(statistics.median(of_side), 2) for side, of_side in ratios.items()},
        "peak_memory_bytes": memory,
        "memory_ratio": {side: round(memory["ours"] / memory[side], 2) for side in peers},
        "first_loss": {side: losses[side][0] for side in sides},
        "last_loss": {side: losses[side][-1] for side in sides},
        "gflops_per_token": {side: round(arithmetic(mode, base, row, side, steps_of[side]), 4) for side in sides},
    }


def show(row: dict) -> None:
    """A row as lines for people."""
    print(f"{row['mode']:5s} {row['row']}")
    for side, speeds in row["tokens_per_second"].items():
        ratio = f", ours is {row['speed_ratio'][side]:.2f} times as fast" if side in row["speed_ratio"] else ""
        memory = row["peak_memory_bytes"][side] / 2**30
        print(
            f"      {side:5s} {statistics.median(speeds):9,.0f} tokens/s, {memory:.2f} GiB, "
            f"{row['gflops_per_token'][side]:.3f} GFLOP a token, loss {row['last_loss'][side]:.5f}{ratio}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Train every row, print it, and report the result."""
    options = read_options(argv)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        count = options.steps * options.batch_size * options.accumulation
        write_records(options.train_path, count, work / "records.jsonl")
        for mode in options.modes:
            base, heads = work / f"{mode}-base", options.hidden_size // HEAD_SIZE
            vocabulary = max(VOCABULARY[mode] * options.hidden_size // 4096, 2432)  # no less than the tokenizer's
            make_base(base, mode, LAYERS, options.hidden_size, vocabulary, HEAD_SIZE, max(heads // 16, 1))
            for name in options.rows:
                rows.append(measure(mode, name, base, work, options))
                show(rows[-1])
    settings = {name: value for name, value in asdict(options).items() if name != "output"}
    settings["train_path"] = Path(options.train_path).name
    report({"benchmark": "train", **settings, "layers": LAYERS, "results": rows}, options.output)


if __name__ == "__main__":
    run_program(main)
