"""Peak host memory per rank of loading a base under ZeRO-3: ours against transformers' own way.

python benchmarks/zero3_loading.py --layers 28 --hidden_size 1024 --ranks 2 --repeats 3

Makes a random ChatGLM2 base of the asked shape in a temporary directory (float16, shards of 100 MB), then loads it by
turns with `build_partitioned` and with HfDeepSpeedConfig + from_pretrained, each in fresh `torchrun` processes, and
prints what each rank's resident memory rose to above what it was before loading, and the time. Prints JSON last.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
import psutil  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from benchmarks.bases import make_base  # noqa: E402
from benchmarks.runs import flags, output_of, torchrun  # noqa: E402
from terminal import protect_output  # noqa: E402

SIDES = ("ours", "transformers")


class PeakMemory(threading.Thread):
    """Samples this process's resident memory until stopped: (anonymous + mapped) bytes above the start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.process, self.running, self.peak = psutil.Process(), True, 0
        self.before = self.process.memory_info().rss

    def run(self):
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss - self.before)
            time.sleep(0.001)


def load(side: str, base_dir: Path, result_dir: Path) -> None:
    """One rank of one side: load the base, write peak and time."""
    from modes import MODES
    from modes.directory import iterate_shards, read_base
    from training import ranks
    from training.ds_config import find_ds_file, read_ds_file, resolve
    from training.engine import build_partitioned

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
    memory, started = PeakMemory(), time.perf_counter()
    memory.start()
    if side == "ours":
        model = build_partitioned(mode.model_class, model_config, config, iterate_shards(base))
    else:
        from transformers.integrations import HfDeepSpeedConfig

        keep = HfDeepSpeedConfig(config)  # transformers looks for it while loading
        model = mode.model_class.from_pretrained(base.path, config=model_config, dtype=torch.float32)
        del keep
    seconds = time.perf_counter() - started
    memory.running = False
    memory.join()
    values = sum(parameter.ds_numel for parameter in model.parameters())
    result = {"rank": ranks.rank(), "peak_bytes": memory.peak, "seconds": seconds, "values": values}
    (result_dir / f"{ranks.rank()}.json").write_text(json.dumps(result))
    ranks.stop_ranks()


def main() -> None:
    """Alternate the two sides and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--vocab_size", type=int, default=16256, help="a quarter of the real one, as the width is")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="internal: one rank of one side")
    parser.add_argument("--base_dir", type=Path, help="internal")
    parser.add_argument("--result_dir", type=Path, help="internal")
    options = parser.parse_args()
    if options.side:
        load(options.side, options.base_dir, options.result_dir)
        return

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
          f"median of {options.repeats} runs by turns")  # fmt: skip
    summary = {}
    for side, runs in results.items():
        peaks = [statistics.median(run[rank]["peak_bytes"] for run in runs) for rank in range(options.ranks)]
        seconds = statistics.median(max(rank["seconds"] for rank in run) for run in runs)
        summary[side] = {"peak_bytes": peaks, "seconds": seconds}
        print(f"{side:13s} peak above start: {', '.join(f'{p / 1e6:,.0f} MB' for p in peaks)}; {seconds:.1f} s")
    print(json.dumps({"weights_bytes": size, **summary}))


if __name__ == "__main__":
    protect_output()
    main()
