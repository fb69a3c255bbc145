"""The table of docs/methods.md with the number of values that each variant trains on the 6B models.

    python scripts/variant_sizes.py

Computed from the shapes of the released configurations, as in scripts/method_sizes.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from errors import run_program  # noqa: E402
from options.parser import Program, read_command_line  # noqa: E402

PROGRAM = Program("variant_sizes.py", __doc__.split("\n")[0], ())

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

from benchmarks.shapes import RELEASED  # noqa: E402
from scripts.method_sizes import METHOD_OPTIONS, size, trained_values  # noqa: E402

LORA = {**METHOD_OPTIONS["lora"][1], "adalora_target_r": 8}
EMBEDDING = {"glm": ("word_embeddings",), "glm2": ("word_embeddings", "output_layer")}
FREEZE = {"freeze_module_name": ("layers.27.",)}
# name: (train_type, options)
VARIANTS = {
    "`lora`, `rslora`, `loraplus`": ("lora", LORA),
    "`pissa`": ("lora", {**LORA, "lora_variant": "pissa"}),
    "`dora`": ("lora", {**LORA, "lora_variant": "dora"}),
    "`adalora`": ("lora", {**LORA, "lora_variant": "adalora"}),
    "`lora`, `all-linear`": ("lora", {**LORA, "lora_module_name": ("all-linear",)}),
    "`lora`, embedding and head whole": ("lora", {**LORA, "modules_to_save": EMBEDDING}),
    "`--freeze_last_n 4`": ("freeze", {**FREEZE, "freeze_last_n": 4}),
    "`layers.27.` and the head": ("freeze", {"glm": ("lm_head",), "glm2": ("output_layer",)}),
}


def options_of(name: str, mode: str) -> tuple[str, dict]:
    """train_type and options of a row, with the module names of the generation."""
    train_type, options = VARIANTS[name]
    if train_type == "freeze" and mode in options:
        return train_type, {"freeze_module_name": ("layers.27.", *options[mode])}
    saved_modules = options.get("modules_to_save")
    return train_type, {**options, "modules_to_save": saved_modules[mode]} if saved_modules else options


def saved_values(name: str, mode: str, trained: int) -> int:
    """Number of values in a checkpoint, which may be more than the trained ones."""
    options = options_of(name, mode)[1]
    if options.get("lora_variant") == "pissa":  # also its initial values
        return 2 * trained
    if mode == "glm" and options.get("modules_to_save"):  # the tied embedding, under both of its names
        return 2 * trained - trained_values(mode, "lora", LORA)
    return trained


def table() -> list[str]:
    """The rows, as Markdown."""
    rows = ["| | ChatGLM-6B | | ChatGLM2-6B, ChatGLM3-6B | |", "|---|---:|---:|---:|---:|"]
    for name in VARIANTS:
        counts = {mode: trained_values(mode, *options_of(name, mode)) for mode in RELEASED}
        cells = [f"{count:,} | {size(saved_values(name, mode, count))}" for mode, count in counts.items()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    read_command_line(PROGRAM, argv)
    print("\n".join(table()))


if __name__ == "__main__":
    run_program(main)
