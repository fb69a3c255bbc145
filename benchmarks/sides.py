"""Shared by benchmarks/loop_of_2023.py and benchmarks/trl_side.py: flags, order of rows, metrics.jsonl."""

import json
import random
from dataclasses import dataclass
from typing import TextIO

from benchmarks.command import seed_flag, size_flag
from flags import flag


@dataclass(frozen=True)
class SideOptions:
    """The flags of every side; each gives --mode and --train_type its choices."""

    model_name_or_path: str = flag("", help="Path to the base.", zh="基座的路径。", metavar="DIR", required="the base")
    rows: str = flag(
        "",
        help="Path to JSON with pad_id, and steps of micro-batches of rows.",
        zh="JSON 文件：pad_id，以及按优化步、微批排列的行。",
        metavar="FILE",
        required="the file of rows",
    )
    output_dir: str = flag(
        "", help="Path to the output directory.", zh="输出目录。", metavar="DIR", required="the directory to write to"
    )
    learning_rate: float = flag(1e-3, help="Peak learning rate.", zh="学习率的峰值。", above=0)
    warmup_ratio: float = flag(
        0.1, help="Fraction of steps used for linear warm-up.", zh="线性预热占总步数的比例。", at_least=0, at_most=1
    )
    seed: int = seed_flag(1234)
    lora_dim: int = size_flag(8, "Rank of the LoRA matrices.", "LoRA 矩阵的秩。")
    lora_alpha: int = flag(30, help="The LoRA update is scaled by alpha / dim.", zh="LoRA 的更新量乘以 alpha / dim。")


def in_order(steps: list, order: str, seed: int) -> list:
    """Steps of micro-batches of rows, as they are or with rows of like length together, in as large micro-batches."""
    if order == "given":
        return steps
    size = len(steps[0][0])
    rows = sorted((row for step in steps for batch in step for row in batch), key=lambda row: -len(row["input_ids"]))
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    random.Random(seed).shuffle(batches)
    count = len(steps[0])
    return [batches[start : start + count] for start in range(0, len(batches), count)]


def write_step(file: TextIO, step: int, loss: float, tokens_per_second: float) -> None:
    """Add a row to metrics.jsonl."""
    from training.metrics import peak_memory_bytes  # here: flags need no torch

    row = {"step": step, "epoch": 1, "loss": loss, "tokens_per_second": tokens_per_second}
    file.write(json.dumps({**row, "peak_memory_bytes": peak_memory_bytes()}) + "\n")
