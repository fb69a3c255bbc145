"""Seconds and peak memory of writing a model of real size in each format of merge_lora.py.

python benchmarks/export.py --work_dir /tmp/exports

Makes a random base in float16 (by default of the shapes of ChatGLM3-6B: 12.5 GB of disk, and as much again for the
largest result), and converts it once in each format. Resident memory includes pages of mapped files, which the system
takes back when it needs them; anonymous memory does not. Prints JSON last.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, mode_flag, output_flag, size_flag, work_dir_flag  # noqa: E402
from benchmarks.watch import Peak  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

FORMATS = {
    "hf": ["--format", "hf"],
    "official-int8": ["--quantization_bit", "8"],
    "official-int4": ["--quantization_bit", "4"],
    **{f"gguf-{kind}": ["--format", "gguf", "--quantize", kind] for kind in ("f16", "q8_0", "q5_1", "q4_0")},
}


@dataclass(frozen=True)
class ExportOptions:
    """The base, and the formats."""

    TITLE: ClassVar[str] = "exporting"

    work_dir: str = work_dir_flag("Directory for the base and the results.", "基座和结果的目录。")
    mode: str = mode_flag("glm3")
    layers: int = size_flag(28, "Number of layers.", "层数。")
    hidden_size: int = size_flag(4096, "Hidden size.", "隐藏层大小。")
    formats: tuple[str, ...] = flag(
        tuple(FORMATS), help="Comma-separated formats.", zh="哪些格式，用逗号分隔。", choices=tuple(FORMATS)
    )
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, ExportOptions)


def export(base: Path, name: str, mode: str, directory: Path) -> dict[str, float]:
    """Run merge_lora.py in a process of its own, remove what it wrote, and return what it took."""
    import psutil

    command = [sys.executable, "merge_lora.py", "--ori_model_dir", base, "--output_dir", directory, "--mode", mode]
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in (*command, *FORMATS[name], "--verify", "False")],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watched = psutil.Process(process.pid)

    def resident() -> int:
        return watched.memory_info().rss if process.poll() is None else 0

    def anonymous() -> int:
        if process.poll() is not None:
            return 0
        memory = watched.memory_info()
        return memory.rss - memory.shared

    with Peak(resident, 0.02) as whole, Peak(anonymous, 0.02) as own:
        _, problems = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"merge_lora.py ended with {process.returncode}: {problems}")
    size = sum(file.stat().st_size for file in directory.iterdir())
    shutil.rmtree(directory)
    return {"seconds": seconds, "bytes": size, "resident_bytes": whole.peak, "anonymous_bytes": own.peak}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the base, write each format, print what it took."""
    options = section(ExportOptions, read_command_line(PROGRAM, argv))
    from benchmarks.bases import make_base

    work = Path(options.work_dir)
    base, results = work / "base", {}
    if not (base / "config.json").exists():
        size = make_base(base, options.mode, options.layers, options.hidden_size, None)
        print(f"base: {size / 1e9:.2f} GB of float16 weights")
    for name in options.formats:
        results[name] = result = export(base, name, options.mode, work / name)
        print(
            f"{name:14s} {result['seconds']:5.0f} s, {result['bytes'] / 1e9:6.2f} GB written, peak "
            f"{result['resident_bytes'] / 1e9:.2f} GB resident, {result['anonymous_bytes'] / 1e9:.2f} GB anonymous",
            flush=True,
        )
    print(json.dumps(results))
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
