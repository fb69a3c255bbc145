"""The table of docs/performance.md: flags that fit for the 6B models on several GPUs.

    python scripts/card_flags.py

For each GPU and method it has the fastest configuration that fits by estimate (docs/memory.md): the suggestion of
`train.py … --dry_run --gpu_memory GIB` for records of the full length of --max_len 1560 and --max_src_len 1024, in
steps of 16. No weights are read or created.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from errors import run_program  # noqa: E402
from options.parser import Program, read_command_line  # noqa: E402

PROGRAM = Program("card_flags.py", __doc__.split("\n")[0], ())

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import numpy as np  # noqa: E402

from benchmarks.shapes import TITLES, plan, released  # noqa: E402
from memory.activations import read_sizes  # noqa: E402
from memory.available import GIB, usable  # noqa: E402
from memory.setup import Setup  # noqa: E402
from memory.suggestions import smaller_batches, suggest  # noqa: E402
from modes import MODES  # noqa: E402
from scripts.method_sizes import METHOD_OPTIONS  # noqa: E402

CARDS = ((1, 16), (1, 24), (1, 40), (1, 80), (4, 24), (4, 40), (8, 80))  # number, GiB per GPU
SHOWN = ("freeze", "ptuning", "lora", "all")
SAMPLES, LONGEST, SUPERVISED = 16, 1560, 536


def cell(mode: str, name: str, cards: int, gib: int) -> str:
    """The flags for a method on this many GPUs, and their memory per GPU."""
    train_type, options = METHOD_OPTIONS[name]
    config = released(mode)
    parameters = plan(mode, config, train_type, options)
    lengths, supervised = np.full(SAMPLES, LONGEST), np.full(SAMPLES, SUPERVISED)
    samples_per_gpu = SAMPLES // cards
    batches = smaller_batches(lengths, supervised, samples_per_gpu)
    setup = Setup(precision="bf16", stage=2, ranks=cards, batch=batches[samples_per_gpu])
    suggestion = suggest(
        parameters, read_sizes(config, gated=MODES[mode].gated), setup, usable(gib * GIB), batches=batches
    )
    if not suggestion.fits:
        return "does not fit"
    file = suggestion.ds_file.removeprefix("ds_").removesuffix(".json").replace("_no_offload", "").replace("_", ", ")
    layers = f"{suggestion.setup.recomputed} layers recomputed, " if suggestion.setup.recomputed else ""
    return (
        f"{file}, {layers}batch {suggestion.micro_batch_size} × {suggestion.setup.accumulation}: "
        f"{suggestion.estimate.gpu_peak / GIB:.0f} GiB"
    )


def table() -> list[str]:
    """The rows, as Markdown."""
    rows = []
    for mode, title in TITLES.items():
        rows += [f"| {title} | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
        for cards, gib in CARDS:
            rows.append(f"| {cards} × {gib} GiB | " + " | ".join(cell(mode, name, cards, gib) for name in SHOWN) + " |")
        rows.append("")
    return rows[:-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    read_command_line(PROGRAM, argv)
    print("\n".join(table()))


if __name__ == "__main__":
    run_program(main)
