"""Compare the memory estimate with real training steps.

python benchmarks/memory.py                     # middle-size random models on the CPU, every method, ZeRO-2 and ZeRO-3
python benchmarks/memory.py --ranks 2           # the same on two ranks; reports the rank with the higher peak
python benchmarks/memory.py --gpu --modes glm3  # 28 layers of the 6B shapes with random weights, on one GPU
python benchmarks/memory.py --table             # the table of docs/memory.md: estimates, nothing is run

On a CPU torch's profiler counts every byte that torch's allocator gives and takes; on a GPU
torch.cuda.max_memory_allocated says it. ZeRO-2 and ZeRO-3 run in processes of their own: the latter changes torch's
linear function for good. The last line is JSON.
"""

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.command import benchmark, modes_flag, size_flag  # noqa: E402
from benchmarks.runs import free_port  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from methods import METHODS  # noqa: E402
from modes import MODES  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class MemoryOptions:
    """Which cases are measured, and where."""

    TITLE: ClassVar[str] = "cases"

    gpu: bool = flag(False, help="Measure the 6B shapes in bf16 on one GPU.", zh="在一块显卡上用 bf16 测量 6B 的形状。")
    ranks: int = size_flag(1, "Number of ranks.", "进程数。")
    modes: tuple[str, ...] = modes_flag("glm", "glm2")
    train_types: tuple[str, ...] = flag(
        ("freeze", "ptuning", "lora", "all"),
        help="Comma-separated methods.",
        zh="哪些训练方法，用逗号分隔。",
        choices=tuple(METHODS),
    )
    table: bool = flag(False, help="Print estimates for the 6B models and exit.", zh="只打印 6B 模型的估计。")
    cases: str = flag(
        "", help="Internal: JSON of cases for one rank.", zh="内部使用：一个进程的用例（JSON）。", metavar="JSON",
        free_text=True,
    )  # fmt: skip
    results: str = flag(
        "", help="Internal: path of the results of --cases, without the rank.",
        zh="内部使用：--cases 结果的路径，不含进程号。", metavar="FILE",
    )  # fmt: skip


PROGRAM = benchmark(__file__, __doc__, MemoryOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from benchmarks.shapes import RELEASED, TITLES, plan, released  # noqa: E402
from data.collate import collate, to_device  # noqa: E402
from memory.activations import read_sizes  # noqa: E402
from memory.available import GIB  # noqa: E402
from memory.estimate import estimate  # noqa: E402
from memory.setup import Setup, read_setup  # noqa: E402
from memory.step import blocks_in_graph, largest_batch  # noqa: E402
from memory.suggestions import BUCKET, CHOICES  # noqa: E402
from options.sections import OptimizerOptions  # noqa: E402
from parameters import trained_values  # noqa: E402

COMMANDS = {"bos_token_id": 1004, "eos_token_id": 1005, "mask_token_id": 1000, "gmask_token_id": 1001}
SHAPES = {
    "small": {
        "glm": dict(num_layers=4, hidden_size=128, num_attention_heads=4, vocab_size=1024, inner_hidden_size=512),
        "glm2": dict(num_layers=4, hidden_size=128, ffn_hidden_size=428, kv_channels=32, num_attention_heads=4,
                     multi_query_group_num=2, padded_vocab_size=512),
    },
    "middle": {
        "glm": dict(num_layers=8, hidden_size=512, num_attention_heads=8, vocab_size=16384, inner_hidden_size=2048),
        "glm2": dict(num_layers=8, hidden_size=768, ffn_hidden_size=2568, kv_channels=96, num_attention_heads=8,
                     multi_query_group_num=2, padded_vocab_size=12288),
    },
    "6b": RELEASED,
}  # fmt: skip
TRAINED = 2  # layers, for freeze
ALL = 10**6  # layers: as many as there are
METHOD_OPTIONS = {
    "lora": {"lora_dim": 8, "lora_alpha": 16, "lora_dropout": 0.1, "lora_module_name": ("query_key_value",)},
    "ptuning": {"pre_seq_len": 16, "prefix_projection": True, "prefix_layers": "all"},
    "all": {},
}
CASE = {
    "shapes": "small", "mode": "glm2", "train_type": "lora", "stage": 2, "precision": "fp32", "checkpoint_layers": 0,
    "rows": 2, "length": 256, "supervised": 64, "common": 0, "accumulation": 1, "bucket": 100_000,
    "offload_optimizer": False, "offload_param": False, "options": None, "gpu": False, "ranks": 1, "zero": {},
}  # fmt: skip
COLLECTIVES = ("broadcast", "all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather")


def wait_after_collectives() -> None:
    """Sleep after each collective: gloo's thread may free a tensor last, where the profiler does not count it."""

    def waiting(collective):
        def call(*args, **kwargs):
            result = collective(*args, **kwargs)
            time.sleep(0.002)
            return result

        return call

    for name in COLLECTIVES:
        setattr(dist, name, waiting(getattr(dist, name)))
    dist.Work.wait = waiting(dist.Work.wait)  # of those that are started and waited for later


def method_options(case: dict, layers: int) -> dict:
    """The method's options, as the command line would give them."""
    if case["options"] is not None:
        return case["options"]
    if case["train_type"] == "freeze":
        return {"freeze_module_name": tuple(f"layers.{layers - 1 - i}." for i in range(TRAINED))}
    return METHOD_OPTIONS[case["train_type"]]


def resolve_case(case: dict) -> tuple[dict, str]:
    """(DeepSpeed configuration, precision), as train.py makes them before its ranks start."""
    from training.ds_config import resolve

    cpu = {"device": "cpu", "pin_memory": case["gpu"]}
    zero = {"stage": case["stage"], "overlap_comm": True, "reduce_bucket_size": case["bucket"], **case["zero"]}
    zero |= {name: cpu for name in ("offload_optimizer", "offload_param") if case[name]}
    file = {"zero_optimization": zero} | ({} if case["precision"] == "fp32" else {case["precision"]: {"enabled": True}})
    ds_config, precision, _ = resolve(
        file, micro_batch_size=case["rows"], gradient_accumulation_steps=case["accumulation"], world_size=case["ranks"],
        precision="auto" if case["gpu"] else case["precision"], explicit=frozenset(), max_grad_norm=1.0,
        device_type="cuda" if case["gpu"] else "cpu", bf16_supported=True,
    )  # fmt: skip
    return ds_config, precision


def random_samples(case: dict, glm_config) -> list[dict]:
    """Samples with the last tokens of each supervised; they have the first `common` ones in common.

    Args:
        glm_config: ChatGLM's, whose answers begin with a token of their own; None for the others.
    """
    samples, start = [], case["length"] - case["supervised"]
    common = torch.randint(10, 400, (case["common"],)).numpy()
    for _ in range(case["rows"]):
        ids = torch.randint(10, 400, (case["length"],)).numpy()
        ids[: case["common"]] = common
        if glm_config:
            ids[start - 1], ids[start] = glm_config.gmask_token_id, glm_config.bos_token_id
        labels = ids.copy()
        labels[:start] = -100
        samples.append({"input_ids": ids, "labels": labels})
    return samples


def config_of(case: dict):
    """The configuration of a case's model."""
    glm = case["mode"] == "glm"
    commands = COMMANDS if glm and case["shapes"] != "6b" else {}
    config = MODES[case["mode"]].config_class(**SHAPES[case["shapes"]]["glm" if glm else "glm2"], **commands)
    if not glm:
        config.add_qkv_bias = True
    return config


def random_model(case: dict, config, ds_config: dict, precision: str):
    """A model with random weights, partitioned from the start at ZeRO-3."""
    from parallel.zero import build_partitioned
    from shards import DTYPES

    mode = MODES[case["mode"]]
    if case["stage"] != 3:
        return mode.model_class(config).to(DTYPES[precision])
    empty = {
        parameter.name: torch.zeros(()).expand(parameter.shape) for parameter in plan(case["mode"], config, "all", {})
    }
    return build_partitioned(mode.model_class, config, ds_config, [(Path("random"), empty)])


def train_steps(case: dict, config, options: dict, batch: dict, ds_config: dict, precision: str) -> int:
    """Two steps of a random model, in phases that `peaks` tells apart; returns how many layers are recomputed."""
    from parallel.zero import trained_tensors
    from training.ds_config import DeepSpeedSetup
    from training.engine import checkpoint_blocks, start_engine

    with record_function("phase: build"):
        model = random_model(case, config, ds_config, precision)
        model = METHODS[case["train_type"]](**options).prepare(model)
        recomputed = checkpoint_blocks(model, model.blocks, case["checkpoint_layers"])
    with record_function("phase: engine"):
        optimizer = OptimizerOptions(learning_rate=1e-4, weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=1)
        engine = start_engine(model, DeepSpeedSetup(ds_config, precision), optimizer, total_steps=10)
        engine.train()
        if case["gpu"]:
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
    for step in range(2):
        for i in range(case["accumulation"]):
            with record_function(f"phase: loss {step}"):
                tokens = case["supervised"] * case["rows"]
                loss = engine(**batch, num_items_in_batch=tokens, use_cache=False).loss
            engine.set_gradient_accumulation_boundary(i == case["accumulation"] - 1)
            with record_function(f"phase: backward {step}"):
                engine.backward(loss, scale_wrt_gas=False)
            with record_function(f"phase: optimizer {step}"):
                engine.step()
            del loss
            gc.collect()
    with record_function("phase: save"):
        for _ in trained_tensors(model):
            pass
    return recomputed


def run_case(case: dict, ds_config: dict, precision: str) -> dict:
    """Train two steps of a random model; returns measured and estimated peaks in bytes."""
    mode, config = MODES[case["mode"]], config_of(case)
    options = method_options(case, config.num_hidden_layers)
    parameters = plan(case["mode"], config, case["train_type"], options)
    device = torch.device("cuda" if case["gpu"] else "cpu")
    samples = random_samples(case, config if case["mode"] == "glm" else None)
    batch = to_device(collate(samples, partial(mode.layout, config)), device)
    gc.collect()
    gc.freeze()  # all modules: the collections between the phases then take a hundredth of the time
    if case["gpu"]:
        recomputed = train_steps(case, config, options, batch, ds_config, precision)
        measured, moments = torch.cuda.max_memory_allocated(), {}
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            recomputed = train_steps(case, config, options, batch, ds_config, precision)
        moments = peaks(profiler)
        measured = max(size for name, size in moments.items() if name not in ("build", "engine"))
    lengths, supervised = [case["length"]] * case["rows"], [case["supervised"]] * case["rows"]
    setup = read_setup(
        ds_config, precision=precision, ranks=case["ranks"], recomputed=recomputed, accumulation=case["accumulation"],
        batch=largest_batch(lengths, supervised, case["rows"]), lora_dropout=bool(options.get("lora_dropout")),
        on_gpu=case["gpu"],
    )  # fmt: skip
    result = estimate(parameters, read_sizes(config, gated=mode.gated), setup)
    estimated = result.gpu_peak + (0 if case["gpu"] else sum(result.host.values()))
    return {"measured": measured, "estimated": estimated, "error": estimated / measured - 1, "moments": moments,
            "estimated_moments": result.moments, "recomputed": recomputed}  # fmt: skip


def peaks(profiler: profile) -> dict[str, int]:
    """The most bytes that torch's CPU allocator had given out, in each phase."""
    counted = (e for e in profiler.profiler.kineto_results.events() if e.name().startswith(("phase: ", "[memory]")))
    events = sorted((e.start_ns(), e.name(), e.nbytes()) for e in counted)
    held, phase, most = 0, None, {}
    for _, name, size in events:
        if name.startswith("phase: "):
            phase = name.removeprefix("phase: ")
        elif name == "[memory]":
            held += size
        if phase:
            most[phase] = max(most.get(phase, 0), held)
    return most


def run_cases(cases: list[dict]) -> list[dict]:
    """In this process, one after the other; only cases of one ZeRO stage go together."""
    from parallel import ranks

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    wait_after_collectives()
    resolved = [resolve_case(case) for case in cases]
    ranks.start_ranks()
    results = [run_case(case, *settings) for case, settings in zip(cases, resolved, strict=True)]
    ranks.stop_ranks()
    return results


def measure(cases: list[dict], ranks: int = 1) -> list[dict]:
    """`run_cases` in processes of their own, one per rank; the results of the rank with the highest peak."""
    port = free_port()
    processes = []
    for rank in range(ranks):
        of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_PORT": port}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, "--cases", json.dumps([{**case, "ranks": ranks} for case in cases])],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=environment | {name: str(value) for name, value in of_rank.items()},
            )
        )  # fmt: skip
    results = []
    for process in processes:
        output, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(errors)
        results.append(json.loads(output.splitlines()[-1]))
    return highest(results)


def highest(results: list[list[dict]]) -> list[dict]:
    """For each case the result of the rank with the highest peak; `results` are in rank order."""
    return [max(of_case, key=lambda result: result["measured"]) for of_case in zip(*results, strict=True)]


def settings_of(train_type: str, ranks: int) -> Iterator[tuple[str, int, bool, bool, bool]]:
    """(file, stage, optimizer offloaded, parameters offloaded, checkpointing) of the rows that make sense."""
    for (ds_file, stage, optimizer, param), checkpointing in product(CHOICES, (False, True)):
        if param and not checkpointing:
            continue
        if ranks > 1 or not (stage == 3 and not param or train_type != "all" and optimizer):
            yield ds_file, stage, optimizer, param, checkpointing


def table() -> list[str]:
    """Estimates for the 6B models in bf16, rows of 1,560 tokens, 512 of them supervised, as Markdown."""
    lines = ["| model | method | GPUs | ds_file | checkpointing | GPU | RAM |", "|---|---|---:|---|---|---:|---:|"]
    batch = largest_batch([1560], [512], 1)
    for (mode, title), train_type in product(TITLES.items(), ("lora", "ptuning", "freeze", "all")):
        config = released(mode)
        options = method_options({"options": None, "train_type": train_type}, config.num_hidden_layers)
        parameters = plan(mode, config, train_type, options)
        bucket = min(BUCKET, trained_values(parameters))
        sizes = read_sizes(config, gated=MODES[mode].gated)
        for ranks in (1, 8) if train_type == "all" else (1,):
            for ds_file, stage, optimizer, param, checkpointing in settings_of(train_type, ranks):
                setup = Setup(
                    precision="bf16", stage=stage, ranks=ranks, batch=batch,
                    recomputed=blocks_in_graph(parameters, sizes) if checkpointing else 0,
                    offload_optimizer=optimizer, offload_param=param, reduce_bucket_size=bucket,
                )  # fmt: skip
                estimated = estimate(parameters, sizes, setup)
                yes = "yes" if checkpointing else "no"
                lines.append(f"| {title} | {train_type} | {ranks} | {ds_file} | {yes} | "
                             f"{estimated.gpu_peak / GIB:.1f} | {estimated.host_peak / GIB:.1f} |")  # fmt: skip
    return lines


def measured_table(results: list[dict]) -> list[str]:
    """The first table of docs/memory.md, or its second: a row for each mode and method, as Markdown."""
    columns = [(stage, layers) for stage in (2, 3) for layers in (0, ALL)]
    titles = [f"ZeRO-{stage}{', checkpointing' if layers else ''} | error" for stage, layers in columns]
    lines = [f"| | | {' | '.join(titles)} |", "|---|---|" + "---:|" * 2 * len(columns)]
    by_row: dict[tuple, dict] = {}
    for result in results:
        of_row = by_row.setdefault((result["mode"], result["train_type"]), {})
        error = f"{result['error']:+.1%}".replace("+0.0%", "0.0%").replace("-0.0%", "0.0%")
        of_row[result["stage"], result["checkpoint_layers"]] = f"{result['measured'] / 1e6:,.0f} | {error}"
    names = {"glm": "ChatGLM", "glm2": "ChatGLM2", "glm3": "ChatGLM3"}
    for (mode, train_type), cells in by_row.items():
        lines.append(f"| {names[mode]} | {train_type} | {' | '.join(cells[column] for column in columns)} |")
    return lines


def line_of(case: dict, result: dict) -> str:
    """A case in a line."""
    checkpointing = "checkpointing" if case["checkpoint_layers"] else ""
    name = f"{case['mode']:5s} {case['train_type']:8s} ZeRO-{case['stage']} {checkpointing:13s}"
    measured, estimated = (f"{result[key] / 1e6:,.1f} MB" for key in ("measured", "estimated"))
    return f"{name} measured {measured}, estimated {estimated}, {result['error']:+.1%}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per case, all of them as a Markdown table, and as JSON."""
    options = section(MemoryOptions, read_command_line(PROGRAM, argv))
    if options.cases:
        results = json.dumps(run_cases(json.loads(options.cases)))
        if options.results:
            Path(f"{options.results}.{os.environ['RANK']}").write_text(results, encoding="utf-8")
        else:
            print(results)
        return
    if options.table:
        print("\n".join(table()))
        return
    shape = {"shapes": "middle", "rows": 2, "length": 256, "supervised": 160, "bucket": 2_000_000}
    if options.gpu:
        shape = {"shapes": "6b", "rows": 1, "length": 1560, "supervised": 512, "bucket": 2 * 10**8, "precision": "bf16",
                 "gpu": True}  # fmt: skip
    summary = []
    for stage in (2, 3):
        cases = [
            CASE | shape | {"mode": mode, "train_type": train_type, "stage": stage, "checkpoint_layers": layers}
            for mode in options.modes
            for train_type in options.train_types
            for layers in (0, ALL)
        ]
        groups = [[case] for case in cases] if options.gpu else [cases]
        for group in groups:
            for case, result in zip(group, measure(group, options.ranks), strict=True):
                print(line_of(case, result), flush=True)
                summary.append({**case, **result})
    print("\n".join(measured_table(summary)))
    print(json.dumps(summary))


if __name__ == "__main__":
    run_program(main)
