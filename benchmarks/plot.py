"""Draw the ratios of benchmarks/results/*.json, how many times as fast ours is, and print the table of training.

python benchmarks/plot.py
python benchmarks/plot.py --results benchmarks/results --targets 1,2 --output docs/performance.png
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark  # noqa: E402
from errors import UserError, run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

SIDE_NAMES = {"alone": "one at a time", "transformers": "transformers serve"}
# benchmark -> its result -> (label, ratio) of everything that was compared.
RATIOS = {
    "train": lambda result: [
        (f"{row['mode']} {row['row']} / {'loop of 2023' if side == 'loop' else side}", ratio)
        for row in result["results"]
        for side, ratio in row["speed_ratio"].items()
    ],
    "tokenization": lambda result: [
        (f"tokenization, {row['mode']} / 2023, one by one", row["ratio"]) for row in result["results"]
    ],
    "prediction": lambda result: [(f"predicting, {result['mode']} / one by one", result["ratio"])],
    "serving": lambda result: [
        (f"serving {row['clients']} clients, {mode} {result['precision']} / {SIDE_NAMES[side]}", ratio)
        for mode, rows in result["results"].items()
        for row in rows
        if row["clients"] >= 16  # a single request is no faster than alone
        for side, ratio in row["ratios"].items()
    ],
    "real_size": lambda result: [
        (f"memory, {row['mode']} {row['method']}, {row['recomputed']} recomputed / 2023, inverse", 1 / row["ratio"])
        for row in result["results"]
        if "ratio" in row
    ],
    "page": lambda result: [],  # nothing is compared
    "linear": lambda result: [(f"{name}, 16 rows / torch", ratios["16"]) for name, ratios in result["ratios"].items()],
    "load": lambda result: [
        (f"loading {row['format']} as {row['dtype']} / torch.load", row["empty"]["seconds"] / row["ours"]["seconds"])
        for row in result["results"]
    ],
}


def bars(files: list[Path]) -> list[tuple[str, float]]:
    """(label, ratio) of everything that was compared, in the order of the files."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [bar for result in results for bar in RATIOS[result["benchmark"]](result)]


def training_table(files: list[Path]) -> list[str]:
    """What runs of benchmarks/train.py wrote, as Markdown: a row for each mode and method."""
    rows = [
        "| | tokens/s | GiB | loop of 2023: tokens/s | GiB | times as fast | by operations | trl: times as fast | "
        "loss: ours, loop, trl |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["results"]]:
        speeds = {side: statistics.median(of_side) for side, of_side in row["tokens_per_second"].items()}
        memory = {side: size / 2**30 for side, size in row["peak_memory_bytes"].items()}
        limit = row["gflops_per_token"]["loop"] / row["gflops_per_token"]["ours"]
        trl = f"{row['speed_ratio']['trl']:.2f}" if "trl" in row["speed_ratio"] else ""
        losses = ", ".join(f"{loss:.4f}" for loss in row["last_loss"].values())
        rows.append(
            f"| {row['mode']} {row['row']} | {speeds['ours']:,.0f} | {memory['ours']:.2f} | {speeds['loop']:,.0f} | "
            f"{memory['loop']:.2f} | {row['speed_ratio']['loop']:.2f} | {limit:.2f} | {trl} | {losses} |"
        )
    return rows


def draw(ratios: list[tuple[str, float]], targets: Sequence[float], output: Path) -> None:
    """Horizontal bars, and a line for each target."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.28 * len(ratios)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="times as fast", title="ours / others, same machine, in alternation")
    labels = [label for label, _ in ratios]
    drawn = axes.barh(range(len(ratios)), [ratio for _, ratio in ratios], color="tab:blue")
    axes.bar_label(drawn, fmt="%.2f", padding=3)
    axes.set_yticks(range(len(ratios)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    for target in targets:
        axes.axvline(target, color="tab:red", linestyle="--", linewidth=1)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        ValueError: one is none.
    """
    try:
        return tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise ValueError(f"{text!r} holds something else than numbers; separate them by commas") from None


@dataclass(frozen=True)
class PlotOptions:
    """What is drawn, and where to."""

    TITLE: ClassVar[str] = "picture"

    results: str = flag(
        str(REPOSITORY / "benchmarks" / "results"),
        help="Path to a directory with the JSON of benchmarks.",
        zh="存放基准测试 JSON 的目录。",
        metavar="DIR",
    )
    targets: tuple[float, ...] = flag(
        (1.0,), help="Ratios to draw a line at.", zh="在哪些比值处画线。", parse=numbers, metavar="NUMBERS"
    )
    output: str = flag(
        str(REPOSITORY / "docs" / "performance.png"), help="Path to the picture.", zh="图片的路径。", metavar="FILE"
    )


PROGRAM = benchmark(__file__, __doc__, PlotOptions)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the results of a directory, and print the table of training."""
    options = section(PlotOptions, read_command_line(PROGRAM, argv))
    results, output = Path(options.results), Path(options.output)
    ratios = bars(sorted(results.glob("*.json")))
    if not ratios:
        raise UserError(f"--results {results} holds no ratio: run a benchmark with --output there.")
    draw(ratios, options.targets, output)
    print(output)
    trained = sorted(results.glob("train_*.json"))
    if trained:
        print("\n".join(training_table(trained)))


if __name__ == "__main__":
    run_program(main)
