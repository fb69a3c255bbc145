"""Seconds and peak memory of loading a base: ours, against what was usual in 2023, each in a process of its own.

python benchmarks/load.py --output benchmarks/results/load.json
python benchmarks/load.py --modes glm3 --num_layers 8 --hidden_size 2048 --vocab_size 16384 --repeats 5

Makes a random float16 base of the asked shape in both file formats, then lets the sides load it in alternation:

ours    what train.py and predict.py do (`load_base`)
plain   every weight file read into memory, a model with random float32 values, `load_state_dict`, then the asked dtype
empty   the same without drawing the random values, as the official ChatGLM classes of 2023 did

Prints the medians. `peak` is what resident memory rose by while loading, above the process as it was before it; it
counts pages of mapped files, which the system takes back when it needs them. `own` leaves these out; a model that lies
in a mapped file has its weights among them until they are changed. All sides end with the same weights, which is
checked by their sums. The files are in the system's cache, so that seconds do not depend on the disk. JSON last.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, modes_flag, output_flag, repeats_flag, size_flag  # noqa: E402
from benchmarks.runs import output_of  # noqa: E402
from benchmarks.watch import Peak  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

SIDES = ("ours", "plain", "empty")
FORMATS = ("safetensors", "bin")
DTYPES = ("float32", "float16", "bfloat16")


def to_bin(source: Path, target: Path) -> None:
    """A copy of a base with .bin files, as the official releases have them."""
    import torch
    from safetensors.torch import load_file

    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
            torch.save(load_file(file), target / name)
        elif file.name == "model.safetensors.index.json":
            index = file.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
            (target / "pytorch_model.bin.index.json").write_text(index)
        else:
            shutil.copy(file, target / file.name)


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def plain_load(mode, config, base, dtype, draw: bool):
    """As in 2023: the files in memory, a float32 model, its values replaced, then another dtype."""
    import torch
    from safetensors.torch import load
    from transformers.initialization import no_init_weights

    tensors = {}
    for file in base.weight_files:
        if file.suffix == ".bin":
            tensors.update(torch.load(file, map_location="cpu", weights_only=True))
        else:
            tensors.update(load(file.read_bytes()))
    if draw:
        model = mode.model_class(config)
    else:
        with no_init_weights():
            model = mode.model_class(config)
    model.load_state_dict(tensors, strict=False)
    return model.to(dtype)


def load_once(side: str, directory: Path, dtype_name: str) -> dict:
    """In a fresh process: one side's seconds, peaks and the sum of its weights."""
    import torch

    from modes import MODES
    from modes.directory import read_base
    from modes.loading import load_base

    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype_name]
    base = read_base(directory)
    mode = MODES[base.mode]
    config = mode.config_class.from_pretrained(base.path)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size
    before, started = status("VmRSS"), time.perf_counter()
    with Peak(lambda: status("RssAnon"), 0.002) as memory:  # no file stands behind it
        if side == "ours":
            model = load_base(mode, base, config, dtype)
        else:
            model = plain_load(mode, config, base, dtype, draw=side == "plain")
        seconds = time.perf_counter() - started
    peak = status("VmHWM") - before
    started = time.perf_counter()
    total = sum(parameter.detach().double().sum().item() for parameter in model.parameters())
    return {
        "seconds": seconds,
        "first_pass_seconds": time.perf_counter() - started,  # weights that are still in their file are read here
        "peak_bytes": peak,
        "own_bytes": memory.peak,
        "weight_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "sum": total,
    }


def measure(directory: Path, dtype: str, repeats: int) -> dict:
    """The medians of all sides on one base."""
    runs = {side: [] for side in SIDES}
    for turn in range(repeats):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            command = [sys.executable, __file__, "--side", side, "--bases", str(directory), "--dtypes", dtype]
            runs[side].append(json.loads(output_of(command, PYTHONWARNINGS="ignore").splitlines()[-1]))
    sums = {run["sum"] for side in SIDES for run in runs[side]}
    if len(sums) != 1:
        sys.exit(f"the sides loaded different weights: {sums}")
    return {
        side: {
            name: round(statistics.median(run[name] for run in of_side), 4)
            for name in of_side[0]
            if name not in ("sum", "weight_bytes")
        }
        for side, of_side in runs.items()
    } | {"weight_bytes": runs["ours"][0]["weight_bytes"], "runs": runs}


@dataclass(frozen=True)
class LoadOptions:
    """The bases, and who loads them how often."""

    TITLE: ClassVar[str] = "loading"

    modes: tuple[str, ...] = modes_flag("glm", "glm3")
    num_layers: int = size_flag(8, "Number of layers.", "层数。")
    hidden_size: int = size_flag(1024, "Hidden size.", "隐藏层大小。")
    vocab_size: int = size_flag(32768, "Size of the vocabulary.", "词表大小。")
    dtypes: tuple[str, ...] = flag(
        ("float32", "float16"),
        help="Comma-separated data types to load the weights as.",
        zh="加载成哪些数据类型，用逗号分隔。",
        choices=DTYPES,
    )
    max_shard_size: str = flag(
        "200MB", help="Size of a weight file at most.", zh="单个权重文件的最大体积。", metavar="SIZE"
    )
    repeats: int = repeats_flag(3)
    output: str = output_flag()
    side: str | None = flag(
        None,
        help="Internal: load once in this process, as this side.",
        zh="内部使用：以这一方的方式在本进程加载一次。",
        choices=SIDES,
    )
    bases: tuple[str, ...] = flag(
        (), help="Internal: comma-separated paths to the bases.", zh="内部使用：基座的路径，用逗号分隔。", metavar="DIR"
    )


PROGRAM = benchmark(__file__, __doc__, LoadOptions)


def make_bases(directory: Path, mode: str, shape: dict[str, int], max_shard_bytes: int) -> tuple[dict[str, Path], int]:
    """(format -> path of the same random base, bytes of its weight files).

    Args:
        shape: num_layers, hidden_size, vocab_size.
    """
    from benchmarks.bases import make_base

    bases = {name: directory / name for name in FORMATS}
    file_bytes = make_base(bases["safetensors"], mode, **shape, max_shard_bytes=max_shard_bytes)
    to_bin(bases["safetensors"], bases["bin"])
    return bases, file_bytes


def show(row: dict) -> None:
    """A row as lines for people."""
    sizes = f"{row['file_bytes'] / 1e6:,.0f} MB as {row['dtype']} ({row['weight_bytes'] / 1e6:,.0f} MB)"
    print(f"{row['mode']} {row['format']} {sizes}")
    for side in SIDES:
        medians = row[side]
        print(
            f"  {side:6s} {medians['seconds']:6.2f} s, peak {medians['peak_bytes'] / 1e6:6,.0f} MB, own "
            f"{medians['own_bytes'] / 1e6:6,.0f} MB; first pass {medians['first_pass_seconds']:.2f} s",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every base in every format and data type, and report the result."""
    options = section(LoadOptions, read_command_line(PROGRAM, argv))
    if options.side:
        for base, dtype in product(options.bases, options.dtypes):
            print(json.dumps(load_once(options.side, Path(base), dtype)))
        return
    from benchmarks.pairs import report
    from shards import parse_size

    max_shard_bytes = parse_size(options.max_shard_size)
    settings = {name: asdict(options)[name] for name in ("num_layers", "hidden_size", "vocab_size", "repeats")}
    shape = {name: value for name, value in settings.items() if name != "repeats"}
    rows = []
    for mode in options.modes:
        with tempfile.TemporaryDirectory() as directory:
            bases, file_bytes = make_bases(Path(directory), mode, shape, max_shard_bytes)
            for name, base in bases.items():
                for dtype in options.dtypes:
                    measured = measure(base, dtype, options.repeats)
                    rows.append({"mode": mode, "format": name, "dtype": dtype, "file_bytes": file_bytes, **measured})
                    show(rows[-1])
    report({"benchmark": "load", **settings, "results": rows}, options.output)


if __name__ == "__main__":
    run_program(main)
