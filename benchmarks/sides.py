"""What benchmarks/loop_of_2023.py and benchmarks/trl_side.py have in common: flags, and the rows that they write."""

import argparse
import json
from pathlib import Path
from typing import TextIO

from training.metrics import peak_memory_bytes


def side_parser(description: str, modes: list[str], methods: list[str]) -> argparse.ArgumentParser:
    """The flags of every side."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--mode", choices=modes, required=True)
    parser.add_argument("--train_type", choices=methods, required=True)
    parser.add_argument("--model_name_or_path", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="JSON: pad_id, and steps of micro-batches of rows")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--warmup_ratio", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--lora_dim", type=int, default=8)
    parser.add_argument("--lora_alpha", type=int, default=30)
    return parser


def write_step(file: TextIO, step: int, loss: float, tokens_per_second: float) -> None:
    """Add a row to metrics.jsonl."""
    row = {"step": step, "epoch": 1, "loss": loss, "tokens_per_second": tokens_per_second}
    file.write(json.dumps({**row, "peak_memory_bytes": peak_memory_bytes()}) + "\n")
