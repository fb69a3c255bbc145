"""Time of a linear layer for few rows on a CPU: torch's own, and modes/linear.py.

python benchmarks/linear.py --output benchmarks/results/linear.json

The matrices are those of a layer of the 6B models, in float32. Both sides alternate; the table has the median of the
paired ratios. JSON last.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, output_flag, repeats_flag, size_flag  # noqa: E402
from errors import run_program  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

SIZES = {"query_key_value": (4608, 4096), "dense": (4096, 4096), "dense_h_to_4h": (27392, 4096),
         "dense_4h_to_h": (4096, 13696)}  # fmt: skip
CALLS = 4  # per measurement
ROWS = (1, 4, 7, 8, 11, 13, 15, 16, 17, 20, 24, 29, 32, 33)


@dataclass(frozen=True)
class LinearOptions:
    """How often and with how many threads."""

    TITLE: ClassVar[str] = "linear"

    threads: int | None = size_flag(None, "Number of threads (default: one per core).", "线程数（默认每个核心一个）。")
    repeats: int = repeats_flag(9)
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, LinearOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from benchmarks.pairs import alternate, report  # noqa: E402
from modes.linear import linear  # noqa: E402


def measure(size: tuple[int, int], rows: int, repeats: int) -> float:
    """How many times as fast ours is."""
    weight, x = torch.randn(size), torch.randn(rows, size[1])

    @torch.inference_mode()
    def ours() -> None:
        for _ in range(CALLS):
            linear(x, weight)

    @torch.inference_mode()
    def other() -> None:
        for _ in range(CALLS):
            F.linear(x, weight)

    return alternate(ours, other, repeats)["ratio"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, then JSON."""
    options = section(LinearOptions, read_command_line(PROGRAM, argv))
    torch.set_num_threads(options.threads or torch.get_num_threads())
    print("| rows | " + " | ".join(SIZES) + " |\n|---|" + "---|" * len(SIZES))
    ratios: dict[str, dict[int, float]] = {name: {} for name in SIZES}
    for rows in ROWS:
        for name, size in SIZES.items():
            ratios[name][rows] = measure(size, rows, options.repeats)
        print(f"| {rows} | " + " | ".join(f"{of_size[rows]:.2f}" for of_size in ratios.values()) + " |", flush=True)
    settings = {name: value for name, value in asdict(options).items() if name != "output"}
    report({"benchmark": "linear", **settings, "threads": torch.get_num_threads(), "ratios": ratios}, options.output)


if __name__ == "__main__":
    run_program(main)
