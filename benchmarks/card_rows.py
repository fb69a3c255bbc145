"""Plan the rows of benchmarks/real_size.py: method, samples, steps, estimated memory and operations of each.

Everything is computed from shapes: nothing is trained, and no weights are created.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.arithmetic import Trained, end_to_end, flops_of, read_shape
from benchmarks.bases import base_config, freeze_names
from benchmarks.runs import GOLDEN, REPOSITORY
from benchmarks.shapes import plan
from data.collate import collate
from data.loading import plan_epoch
from data.records import read_records
from data.tokenize import IGNORE
from memory.activations import read_sizes
from memory.available import GIB
from memory.checkpointing import bytes_of_rank, layers_to_recompute
from memory.estimate import Estimate, estimate
from memory.setup import read_setup
from memory.step import blocks_in_graph, largest_batch
from modes import MODES
from parameters import trained_values
from training.ds_config import find_ds_file, fit_buckets, read_ds_file, resolve

# GB on an A40 in 2023: batch 1, ZeRO-2, rows of 1,560 tokens; with gradient checkpointing, without.
GB_2023 = {
    ("ChatGLM", "freeze"): (36, 38),
    ("ChatGLM", "ptuning"): (43, 44),
    ("ChatGLM", "lora"): (20, 45),
    ("ChatGLM2", "freeze"): (35, 36),
    ("ChatGLM2", "ptuning"): (20, 40),
    ("ChatGLM2", "lora"): (20, 43),
}
LENGTH_2023 = 1560
SHORTER_2023 = {("ChatGLM", "ptuning"): (768, 300)}  # tokens, where the rows of 2023 had fewer
TARGET_RATIO, TARGET_MFU = 0.7, 0.5
ZERO2 = "ds_zero2_no_offload.json"
OFFLOADS = ("ds_zero2_offload.json", "ds_zero3_offload.json")
UNPINNED = " unpinned"  # behind the name of a file: its offloaded blocks are not rounded up to powers of two
FILES = (ZERO2, *(file + suffix for file in OFFLOADS for suffix in ("", UNPINNED)))  # the fastest first
RAM_LEFT = 6 * GIB  # for Python, its libraries and the launcher
SEED = 1234
PREFIX, LORA_DIM = 16, 16


def family(mode: str) -> str:
    """The model of the table of 2023; ChatGLM3-6B has ChatGLM2-6B's shapes."""
    return "ChatGLM" if mode == "glm" else "ChatGLM2"


def memory_rows(modes: Sequence[str], methods: Sequence[str], max_len: int) -> Iterator[dict]:
    """The memory table of 2023: every layer recomputed, and none; at its length, where that was shorter, and in full.

    Args:
        max_len: stands for the 1,560 tokens of 2023; shorter rows shrink alike.
    """
    for mode in modes:
        for method in methods:
            figures = GB_2023.get((family(mode), method))
            shorter = SHORTER_2023.get((family(mode), method), (LENGTH_2023, LENGTH_2023))
            for every, gigabytes, tokens in zip((True, False), figures or (), shorter, strict=False):
                for length in sorted({tokens, LENGTH_2023}):
                    yield {
                        "kind": "memory", "mode": mode, "method": method, "samples": "long", "packing": False,
                        "max_len": length * max_len // LENGTH_2023, "files": [ZERO2], "batches": [1],
                        "accumulation": 1, "recompute": "every" if every else "none", "gb_2023": gigabytes,
                        "length_2023": tokens,
                    }  # fmt: skip


def throughput_rows(
    modes: Sequence[str],
    methods: Sequence[str],
    max_len: int,
    samples: Sequence[str],
    largest: int,
    accumulation: int,
) -> Iterator[dict]:
    """--packing with as many rows as fill the card; layers are recomputed only where not even one row fits.

    Args:
        samples: "short", "long", see `make_records`.
        largest: rows of a micro-batch, at most.
        accumulation: micro-batches per step with an offloaded optimizer, so that it waits less often.
    """
    for mode in modes:
        for method in methods:
            for kind in samples:
                yield {
                    "kind": "throughput", "mode": mode, "method": method, "samples": kind, "packing": True,
                    "max_len": max_len, "files": list(FILES), "batches": list(range(largest, 0, -1)),
                    "accumulation": accumulation, "recompute": "none, else few",
                }  # fmt: skip


def full_rows(modes: Sequence[str], max_len: int) -> Iterator[dict]:
    """All parameters with each way to spread them over card and RAM; as few layers recomputed as must be."""
    for mode in modes:
        for file in (ZERO2, *OFFLOADS):
            yield {
                "kind": "full", "mode": mode, "method": "all", "samples": "long", "packing": False, "max_len": max_len,
                "files": [file] if file == ZERO2 else [file, file + UNPINNED], "batches": [16, 8, 4, 2, 1],
                "accumulation": 1, "recompute": "few",
            }  # fmt: skip


def method_flags(method: str, num_layers: int) -> dict:
    """Flags of train.py for a method, those of the recipes."""
    return {
        "freeze": {"freeze_module_name": freeze_names(num_layers)},
        "ptuning": {"pre_seq_len": PREFIX, "prefix_projection": True, "prefix_layers": "all"},
        "lora": {"lora_dim": LORA_DIM, "lora_alpha": 64, "lora_dropout": 0.1, "lora_module_name": "query_key_value"},
        "all": {},
    }[method]


def prepared(mode: str, method: str, num_layers: int, hidden_size: int, vocab_size: int | None) -> tuple:
    """(config, parameters) of the model with what the method trains."""
    flags = method_flags(method, num_layers)
    names = ("freeze_module_name", "lora_module_name")
    given = {name: tuple(value.split(",")) if name in names else value for name, value in flags.items()}
    config = MODES[mode].config_class(**base_config(mode, num_layers, hidden_size, vocab_size))
    return config, plan(mode, config, method, given)


def make_records(samples: str, count: int, max_len: int) -> list[dict]:
    """Records to train on.

    Args:
        samples: "short": those of data/spo_0.json, repeated; "long": their texts joined, so that question and
            answer are cut to the limits and a row has `max_len` tokens. Each begins elsewhere in the file.
    """
    records = [record for _, record in read_records(REPOSITORY / "data" / "spo_0.json")]
    if samples == "short":
        return list(islice(cycle(records), count))

    def text(key, start):
        joined, at = "", start
        while len(joined) < 4 * max_len:  # characters: more than as many tokens
            joined, at = joined + records[at % len(records)][key], at + 1
        return joined

    starts = [7 * i % len(records) for i in range(count)]
    return [{"instruction": "", "input": text("input", at), "output": text("output", at)} for at in starts]


def encode(mode: str, records: list[dict], max_len: int) -> list[dict]:
    """The rows that train.py makes of records: {"input_ids": list, "labels": list}."""
    tokenizer = MODES[mode].tokenizer_class.from_pretrained(GOLDEN / mode / "base")
    rows = MODES[mode].encode_batch(
        tokenizer, records, loss_on="all", max_len=max_len, max_src_len=longest_prompt(max_len)
    )
    return [{name: list(map(int, row[name])) for name in ("input_ids", "labels")} for row in rows]


def longest_prompt(max_len: int) -> int:
    """--max_src_len beside --max_len, as in the recipes."""
    return max_len * 1024 // LENGTH_2023


def counts(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """int [n]: tokens of each row, and those of them that count in the loss."""
    supervised = [sum(label != IGNORE for label in row["labels"][1:]) for row in rows]
    return np.array([len(row["input_ids"]) for row in rows]), np.array(supervised)


def ds_file(name: str) -> dict:
    """The content of one of FILES."""
    config = read_ds_file(find_ds_file(name.removesuffix(UNPINNED)))
    if name.endswith(UNPINNED):
        zero = config["zero_optimization"]
        for section in ("offload_optimizer", "offload_param"):
            if section in zero:
                zero[section]["pin_memory"] = False
    return config


def choose(row: dict, shape: tuple, rows: list[dict], card: dict, share: float) -> dict | str:
    """How a row is run, with the estimated bytes of card and RAM, or a sentence if nothing fits.

    Rows of the memory table are run as they are. Of others the first file with which the largest batch fits is taken.

    Args:
        row: of `memory_rows` and the like. shape: of `prepared`. rows: samples, of `encode`.
        card: {"on_gpu", "memory": bytes for tensors, "ram": bytes, "precision"}.
        share: of that memory, for an estimate.
    """
    config, parameters = shape
    sizes, (lengths, supervised) = read_sizes(config, gated=MODES[row["mode"]].gated), counts(rows)
    trained = trained_values(parameters)
    limit, smallest = int(share * card["memory"]), None

    def setup_of(file, batch, accumulation):
        resolved, _, _ = resolve(
            ds_file(file), micro_batch_size=batch, gradient_accumulation_steps=accumulation, world_size=1,
            precision=card["precision"], explicit=frozenset(), max_grad_norm=1.0,
            device_type="cuda" if card["on_gpu"] else "cpu", bf16_supported=True,
        )  # fmt: skip
        return read_setup(
            fit_buckets(resolved, trained), precision=card["precision"], ranks=1, accumulation=accumulation,
            batch=largest_batch(lengths, supervised, batch, row["max_len"] if row["packing"] else None),
            lora_dropout=row["method"] == "lora", on_gpu=card["on_gpu"],
        )  # fmt: skip

    for file, accumulation in ways(row):
        for batch in row["batches"]:
            setup = setup_of(file, batch, accumulation)
            layers = blocks_in_graph(parameters, sizes) if row["recompute"] == "every" else 0
            estimated = estimate(parameters, sizes, replace(setup, recomputed=layers))
            fits = fits_into(estimated, setup, limit, card)
            last = batch == row["batches"][-1]
            if not fits and (row["recompute"] == "few" or row["recompute"] == "none, else few" and last):
                layers, estimated = layers_to_recompute(parameters, sizes, setup, limit)
                fits = fits_into(estimated, setup, limit, card)
            if fits or row["kind"] == "memory":
                return {"file": file, "batch": batch, "accumulation": accumulation, "recomputed": layers,
                        "estimated": bytes_of_rank(estimated, setup), "estimated_ram": estimated.host_peak}  # fmt: skip
            over = max(bytes_of_rank(estimated, setup) / max(limit, 1), estimated.host_peak / max(card["ram"], 1))
            if smallest is None or over < smallest[0]:
                smallest = over, file, estimated
    _, file, estimated = smallest
    return (
        f"nothing fits by estimate: the least is {estimated.gpu_peak / GIB:.1f} GiB where the card has "
        f"{limit / GIB:.1f}, and {estimated.host_peak / GIB:.1f} GiB where RAM has {card['ram'] / GIB:.1f} ({file})"
    )


def ways(row: dict) -> list[tuple[str, int]]:
    """(file, micro-batches in a step) in the order in which they are tried: more than one only where the optimizer is
    offloaded, and one there, too, where RAM has no room for their sums."""
    first = [(file, 1) for file in row["files"] if file == ZERO2]
    offloaded = [file for file in row["files"] if file != ZERO2]
    return first + [(file, count) for count in dict.fromkeys((row["accumulation"], 1)) for file in offloaded]


def fits_into(estimated: Estimate, setup, limit: int, card: dict) -> bool:
    """Whether an estimate stays below `limit` bytes on the card, and what is offloaded below the free RAM."""
    host = estimated.host_peak if card["on_gpu"] else 0  # on a CPU it is in bytes_of_rank
    return bytes_of_rank(estimated, setup) <= limit and host <= max(card["ram"] - RAM_LEFT, 0)


def plan_steps(row: dict, chosen: dict, steps: int) -> tuple[list[dict], list]:
    """(records for so many full steps, [(tokens, micro-batches of rows), …]) as train.py will plan them."""
    wanted = steps * chosen["batch"] * chosen["accumulation"]
    count = wanted
    while True:  # a packed row takes as many samples as go into it
        records = make_records(row["samples"], count, row["max_len"])
        rows = encode(row["mode"], records, row["max_len"])
        lengths, supervised = counts(rows)
        planned = plan_epoch(
            lengths, supervised, epoch=1, seed=SEED, micro_batch_size=chosen["batch"], world_size=1, rank=0,
            accumulation=chosen["accumulation"], row_length=row["max_len"] if row["packing"] else None,
        )  # fmt: skip
        if sum(step.num_rows for step in planned) >= wanted:
            break
        count *= 2
    full = planned[:steps]
    return records, [(step.num_tokens, [[rows[i] for i in batch] for batch in step.micro_batches]) for step in full]


def operations(mode: str, method: str, config, batches: list[list[dict]], recomputed: int) -> tuple[int, int]:
    """Operations of the matrix products in micro-batches: as the model needs them, and including recomputation.

    Args:
        config: of `prepared`. batches: micro-batches of rows. recomputed: layers.
    """
    trained = Trained.by(method, config.num_hidden_layers, lora_dim=LORA_DIM, prefix_length=PREFIX)
    passes, logits = [], 0
    for rows in batches:
        batch = collate(rows, partial(MODES[mode].layout, config))
        passes.append(end_to_end(batch["segments"], trained.prefix_length))
        logits += len(batch["supervised"])
    count = partial(
        flops_of, read_shape(config, gated=MODES[mode].gated), passes, trained, logits=logits, last=logits,
        embeddings_in_backward=method == "all", lowest=trained.layers[0] if method == "freeze" else 0,
    )  # fmt: skip
    return count(), count(recomputed=recomputed)


def write_json_lines(records: list[dict], path: Path) -> None:
    """A file of records for --train_path."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
