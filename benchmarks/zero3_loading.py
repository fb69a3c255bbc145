"""Peak host memory per rank of loading a base under ZeRO-3: ours against transformers' own way.

python benchmarks/zero3_loading.py --layers 28 --hidden_size 1024 --ranks 2 --repeats 3

Makes a random ChatGLM2 base of the asked shape in a temporary directory (float16, shards of 100 MB), then loads it in
alternation with `build_partitioned` and with HfDeepSpeedConfig + from_pretrained, each in new `torchrun` processes, and
prints what each rank's resident memory rose to above what it was before loading, and the time. Prints JSON last.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, repeats_flag, size_flag  # noqa: E402
from benchmarks.runs import flags, output_of, torchrun  # noqa: E402
from benchmarks.watch import Peak  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

SIDES = ("ours", "transformers")


def load(side: str, base_dir: str, result_dir: Path) -> None:
    """One rank of one side: load the base, write peak and time."""
    import psutil
    import torch
    import torch.distributed as dist

    from modes import MODES
    from modes.directory import iterate_shards, read_base
    from parallel import ranks
    from parallel.zero import build_partitioned
    from training.ds_config import find_ds_file, read_ds_file, resolve

    config, _, _ = resolve(
        read_ds_file(find_ds_file("ds_zero3_no_offload.json")),
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        world_size=int(os.environ["WORLD_SIZE"]),
        precision="auto",
        explicit=frozenset(),
        max_grad_norm=1.0,
        device_type="cpu",
        bf16_supported=False,
    )
    ranks.start_ranks()
    mode, base = MODES["glm2"], read_base(base_dir)
    model_config = mode.config_class.from_pretrained(base.path)
    dist.barrier()
    process, started = psutil.Process(), time.perf_counter()
    with Peak(lambda: process.memory_info().rss, 0.001) as memory:
        if side == "ours":
            model = build_partitioned(mode.model_class, model_config, config, iterate_shards(base))
        else:
            from transformers.integrations import HfDeepSpeedConfig

            keep = HfDeepSpeedConfig(config)  # transformers looks for it while loading
            model = mode.model_class.from_pretrained(base.path, config=model_config, dtype=torch.float32)
            del keep
        seconds = time.perf_counter() - started
    values = sum(parameter.ds_numel for parameter in model.parameters())
    result = {"rank": ranks.rank(), "peak_bytes": memory.peak, "seconds": seconds, "values": values}
    (result_dir / f"{ranks.rank()}.json").write_text(json.dumps(result))
    ranks.stop_ranks()


@dataclass(frozen=True)
class LoadingOptions:
    """The base, and who loads it how often."""

    TITLE: ClassVar[str] = "loading under ZeRO-3"

    layers: int = size_flag(28, "Number of layers.", "层数。")
    hidden_size: int = size_flag(1024, "Hidden size.", "隐藏层大小。")
    vocab_size: int = size_flag(
        16256,
        "Size of the vocabulary: by default a quarter of the released one, as the hidden size is.",
        "词表大小：默认是正式发布的四分之一，与隐藏层一致。",
    )
    ranks: int = size_flag(2, "Number of ranks.", "进程数。")
    repeats: int = repeats_flag(3)
    side: str | None = flag(
        None, help="Internal: load once, as a rank of this side.", zh="内部使用：作为这一方的一个进程加载一次。",
        choices=SIDES,
    )  # fmt: skip
    base_dir: str = flag("", help="Internal: path to the base.", zh="内部使用：基座的路径。", metavar="DIR")
    result_dir: str = flag("", help="Internal: path to the results.", zh="内部使用：结果的路径。", metavar="DIR")


PROGRAM = benchmark(__file__, __doc__, LoadingOptions)


def main(argv: Sequence[str] | None = None) -> None:
    """Alternate the two sides and print their medians."""
    options = section(LoadingOptions, read_command_line(PROGRAM, argv))
    if options.side:
        load(options.side, options.base_dir, Path(options.result_dir))
        return
    from benchmarks.bases import make_base

    results = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as directory:
        base_dir = Path(directory) / "base"
        shape = options.layers, options.hidden_size, options.vocab_size
        size = make_base(base_dir, "glm2", *shape, head_size=64, max_shard_bytes=100 * 10**6)
        for _ in range(options.repeats):
            for side in SIDES:
                result_dir = Path(tempfile.mkdtemp(dir=directory))
                words = {"side": side, "base_dir": base_dir, "result_dir": result_dir}
                output_of(torchrun(options.ranks, __file__, *flags(words)), OMP_NUM_THREADS="1")
                results[side].append([json.loads(p.read_text()) for p in sorted(result_dir.glob("*.json"))])
    print(f"base: {size / 1e6:,.0f} MB of float16 weights, loaded as float32 by {options.ranks} ranks, "
          f"median of {options.repeats} runs in alternation")  # fmt: skip
    summary = {}
    for side, runs in results.items():
        peaks = [statistics.median(run[rank]["peak_bytes"] for run in runs) for rank in range(options.ranks)]
        seconds = statistics.median(max(rank["seconds"] for rank in run) for run in runs)
        summary[side] = {"peak_bytes": peaks, "seconds": seconds}
        print(f"{side:13s} peak above start: {', '.join(f'{p / 1e6:,.0f} MB' for p in peaks)}; {seconds:.1f} s")
    print(json.dumps({"weights_bytes": size, **summary}))


if __name__ == "__main__":
    run_program(main)
