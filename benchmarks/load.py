"""Seconds and peak memory of loading a base: ours, against what was usual in 2023, each in a process of its own.

python benchmarks/load.py --output benchmarks/results/load.json
python benchmarks/load.py --modes glm3 --num_layers 8 --hidden_size 2048 --vocab_size 16384 --repeats 5

Makes a random float16 base of the asked shape in both file formats, then lets the sides load it by turns:

ours    what train.py and predict.py do (`load_base`)
plain   every weight file read into memory, a model with random float32 values, `load_state_dict`, then the asked dtype
empty   the same without drawing the random values, as the official ChatGLM classes of 2023 did

Prints the medians. `peak` is what resident memory rose by while loading, above the process as it was before it; it
counts pages of mapped files, which the system takes back when it needs them. `own` leaves these out; a model that lies
in a mapped file has its weights among them until they are changed. All sides end with the same weights, which is
checked by their sums. The files are in the system's cache, so that seconds do not depend on the disk. JSON last.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.runs import output_of  # noqa: E402
from terminal import protect_output  # noqa: E402

SIDES = ("ours", "plain", "empty")
FORMATS = ("safetensors", "bin")


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


class OwnMemory(threading.Thread):
    """Watches the memory of this process that no file stands behind; `peak` in bytes above the start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.running, self.peak, self.before = True, 0, status("RssAnon")

    def run(self):
        while self.running:
            self.peak = max(self.peak, status("RssAnon") - self.before)
            time.sleep(0.002)


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
    from training.quantization import load_base

    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype_name]
    base = read_base(directory)
    mode = MODES[base.mode]
    config = mode.config_class.from_pretrained(base.path)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is counted anew
    before, memory, started = status("VmRSS"), OwnMemory(), time.perf_counter()
    memory.start()
    if side == "ours":
        model = load_base(mode, base, config, dtype)
    else:
        model = plain_load(mode, config, base, dtype, draw=side == "plain")
    seconds = time.perf_counter() - started
    memory.running = False
    memory.join()
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
            command = [sys.executable, __file__, "--side", side, "--base", str(directory), "--dtypes", dtype]
            runs[side].append(json.loads(output_of(command, PYTHONWARNINGS="ignore").splitlines()[-1]))
    sums = {run["sum"] for side in SIDES for run in runs[side]}
    if len(sums) != 1:
        sys.exit(f"the sides loaded different weights: {sums}")
    return {
        side: {
            name: round(statistics.median(run[name] for run in found), 4)
            for name in found[0]
            if name not in ("sum", "weight_bytes")
        }
        for side, found in runs.items()
    } | {"weight_bytes": runs["ours"][0]["weight_bytes"], "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modes", nargs="+", choices=["glm", "glm2", "glm3"], default=["glm", "glm3"])
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--vocab_size", type=int, default=32768)
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "float16", "bfloat16"], default=["float32", "float16"]
    )
    parser.add_argument("--max_shard_size", default="200MB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the JSON there, too")
    parser.add_argument("--side", choices=SIDES, help="internal: load once in this process")
    parser.add_argument("--base", type=Path, help="internal")
    options = parser.parse_args()
    if options.side:
        for dtype in options.dtypes:
            print(json.dumps(load_once(options.side, options.base, dtype)))
        return

    from benchmarks.bases import make_base
    from benchmarks.pairs import report
    from modes.directory import iterate_shards, read_base
    from shards import parse_size, write_shards

    shape = {name: vars(options)[name] for name in ("num_layers", "hidden_size", "vocab_size")}
    rows = []
    for mode in options.modes:
        with tempfile.TemporaryDirectory() as directory:
            whole, bases = Path(directory) / "whole", {name: Path(directory) / name for name in FORMATS}
            make_base(whole, mode, **shape)
            tensors = (pair for _, shard in iterate_shards(read_base(whole)) for pair in shard.items())
            bases["safetensors"].mkdir()
            file_bytes = write_shards(tensors, bases["safetensors"], max_shard_bytes=parse_size(options.max_shard_size))
            for file in whole.iterdir():
                if file.suffix != ".safetensors":
                    shutil.copy(file, bases["safetensors"] / file.name)
            to_bin(bases["safetensors"], bases["bin"])
            shutil.rmtree(whole)
            for name, base in bases.items():
                for dtype in options.dtypes:
                    found = measure(base, dtype, options.repeats)
                    rows.append({"mode": mode, "format": name, "dtype": dtype, "file_bytes": file_bytes, **found})
                    print(
                        f"{mode} {name} {file_bytes / 1e6:,.0f} MB as {dtype} ({found['weight_bytes'] / 1e6:,.0f} MB)"
                    )
                    for side in SIDES:
                        one = found[side]
                        print(
                            f"  {side:6s} {one['seconds']:6.2f} s, peak {one['peak_bytes'] / 1e6:6,.0f} MB, own "
                            f"{one['own_bytes'] / 1e6:6,.0f} MB; first pass {one['first_pass_seconds']:.2f} s",
                            flush=True,
                        )
    settings = {name: vars(options)[name] for name in ("num_layers", "hidden_size", "vocab_size", "repeats")}
    report({"benchmark": "load", **settings, "results": rows}, options.output)


if __name__ == "__main__":
    protect_output()
    main()
