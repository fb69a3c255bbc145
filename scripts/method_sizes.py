"""The table of docs/methods.md with the number of values that each method trains, and the size of its checkpoint.

    python scripts/method_sizes.py

Computed from the shapes of the released configurations; no weights are read or made (torch's meta device).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from errors import run_program  # noqa: E402
from options.parser import Program, read_command_line  # noqa: E402

PROGRAM = Program("method_sizes.py", __doc__.split("\n")[0], ())

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import parameters  # noqa: E402
from benchmarks.shapes import RELEASED, plan, released  # noqa: E402

METHOD_OPTIONS = {
    "lora": ("lora", {"lora_dim": 16, "lora_alpha": 64, "lora_dropout": 0.1, "lora_module_name": ("query_key_value",)}),
    "ptuning": ("ptuning", {"pre_seq_len": 16, "prefix_projection": True, "prefix_layers": "all"}),
    "ptuning, no MLP": ("ptuning", {"pre_seq_len": 16, "prefix_projection": False, "prefix_layers": "all"}),
    "ptuning, embedding": ("ptuning", {"pre_seq_len": 16, "prefix_projection": False, "prefix_layers": "embedding"}),
    "freeze": (
        "freeze",
        {"freeze_module_name": ("layers.27.", "layers.26.", "layers.25.", "layers.24.")},
    ),
    "all": ("all", {}),
}
BYTES = 2  # a value in bf16 or fp16


def trained_values(mode: str, train_type: str, options: dict) -> int:
    """Number of values that the method trains on the released model of a mode."""
    return parameters.trained_values(plan(mode, released(mode), train_type, options))


def size(values: int) -> str:
    """The size of this many values, with unit."""
    number = values * BYTES
    for unit, least in (("GB", 10**9), ("MB", 10**6)):
        if number >= least:
            return f"{number / least:.3g} {unit}"
    return f"{number / 10**3:.3g} kB"


def table() -> list[str]:
    """The rows, as Markdown."""
    rows = ["| | ChatGLM-6B | | ChatGLM2-6B, ChatGLM3-6B | |", "|---|---:|---:|---:|---:|"]
    for name, (train_type, options) in METHOD_OPTIONS.items():
        counts = [trained_values(mode, train_type, options) for mode in RELEASED]
        rows.append(f"| {name} | " + " | ".join(f"{count:,} | {size(count)}" for count in counts) + " |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    read_command_line(PROGRAM, argv)
    print("\n".join(table()))


if __name__ == "__main__":
    run_program(main)
