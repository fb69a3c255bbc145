"""Print the rows of benchmarks/real_size.py: one line each, and Markdown tables."""

from benchmarks.card_rows import TARGET_MFU, TARGET_RATIO, UNPINNED
from memory.available import GIB

NAMES = {"glm": "ChatGLM-6B", "glm2": "ChatGLM2-6B", "glm3": "ChatGLM3-6B"}
METHOD_NAMES = {"freeze": "freeze of 4 layers", "ptuning": "P-Tuning", "lora": "LoRA", "all": "all parameters"}


def name_of(row: dict) -> str:
    """ "ChatGLM-6B, LoRA"."""
    return f"{NAMES[row['mode']]}, {METHOD_NAMES[row['method']]}"


def way_of(row: dict) -> str:
    """How a row is run: "zero2, offload, unpinned, batch 4 x 8, 3 layers recomputed"."""
    file = row["file"].removesuffix(UNPINNED).removeprefix("ds_").removesuffix(".json").replace("_no_offload", "")
    unpinned = ", unpinned" if row["file"].endswith(UNPINNED) else ""
    return (
        f"{file.replace('_', ', ')}{unpinned}, batch {row['batch']} x {row['accumulation']}, "
        f"{row['recomputed']} layers recomputed"
    )


def verdict(row: dict, target: str, met: bool) -> str:
    """Whether a target is met, in brackets; nothing where the shapes or the card are not those that it is about."""
    return f" ({target}: {'met' if met else 'missed'})" if row["real"] else ""


def line_of(row: dict) -> str:
    """A row in a line."""
    start = f"{row['kind']:10s} {row['mode']:5s} {row['method']:8s} "
    if "max_len" in row:
        start += f"{row['max_len']} tokens, {row['samples']} samples: "
    if "failed" in row:
        return f"{start}{way_of(row) + ': ' if 'batch' in row else ''}{row['failed']}"
    if row["kind"] == "ask" and "loss" not in row:  # only planned
        return f"{start}train, save, merge, ask"
    if row["kind"] == "ask":
        return (
            f"{start}loss {row['loss']:.4f}, peak {row['allocated'] / GIB:.1f} GiB, "
            f"{row['tokens_per_second']:,.0f} tokens/s; merged and asked"
        )
    start += f"{way_of(row)}: estimated {row['estimated'] / GIB:.2f} GiB"
    if row["estimated_ram"]:
        start += f" and {row['estimated_ram'] / GIB:.1f} GiB of RAM"
    if "allocated" not in row:  # only planned
        return start + (f", 2023: {row['gb_2023']} GB" if "gb_2023" in row else "")
    line = (
        f"{start}, measured {row['allocated'] / GIB:.2f} GiB ({row['error']:+.1%}), on the card "
        f"{row['on_card'] / 1e9:.2f} GB"
    )
    if row["kind"] == "memory":
        line += f", 2023: {row['gb_2023']} GB, ratio {row['ratio']:.2f}"
        line += verdict(row, f"<= {TARGET_RATIO}", row["ratio"] <= TARGET_RATIO)
        line += f", of tensors {row['ratio_of_tensors']:.2f}"
    line += (
        f", {row['tokens_per_second']:,.0f} tokens/s, {row['operations_per_second'] / 1e12:.3g} TFLOP/s, "
        f"utilization {row['utilization']:.1%}"
    )
    if row["kind"] == "throughput" and row["method"] in ("lora", "all"):
        line += verdict(row, f">= {TARGET_MFU:.0%}", row["utilization"] >= TARGET_MFU)
    tried = "".join(f"; batch {attempt['batch']}: {attempt['failed']}" for attempt in row["tried"])
    return f"{line} ({row['hardware_utilization']:.1%} with recomputation), loss {row['loss']:.4f}{tried}"


def tables(rows: list[dict]) -> list[str]:
    """Memory against 2023 (by estimate where rows were only planned), and speed."""
    done = [row for row in rows if "allocated" in row]
    planned = [row for row in rows if row["kind"] == "memory" and "estimated" in row and "failed" not in row]
    planned = [row for row in planned if "allocated" not in row]
    memory = [row for row in done if row["kind"] == "memory"]
    speed = [row for row in done if row["kind"] in ("throughput", "full")]
    lines = []
    if planned:
        lines += [
            "",
            "| memory, batch 1 | layers recomputed | 2023, GB | its tokens | tokens | estimated, GB | ratio |",
            "|---|" + "---:|" * 6,
        ]
    for row in planned:
        gigabytes = row["estimated"] / 1e9
        lines.append(
            f"| {name_of(row)} | {row['recomputed']} | {row['gb_2023']} | {row['length_2023']} | {row['max_len']} | "
            f"{gigabytes:.1f} | {gigabytes / row['gb_2023']:.2f} |"
        )
    if memory:
        lines += [
            "",
            "| memory, batch 1 | layers recomputed | 2023, GB | its tokens | tokens | GB on the card | ratio | "
            "GiB of tensors | ratio | estimated | error | tokens/s |",
            "|---|" + "---:|" * 11,
        ]
    for row in memory:
        lines.append(
            f"| {name_of(row)} | {row['recomputed']} | {row['gb_2023']} | {row['length_2023']} | {row['max_len']} | "
            f"{row['on_card'] / 1e9:.1f} | {row['ratio']:.2f} | {row['allocated'] / GIB:.1f} | "
            f"{row['ratio_of_tensors']:.2f} | "
            f"{row['estimated'] / GIB:.1f} | {row['error']:+.1%} | {row['tokens_per_second']:,.0f} |"
        )
    if speed:
        lines += [
            "",
            "| speed | how | samples | tokens/s | TFLOP/s | utilization | with recomputation | "
            "GiB of tensors | error of the estimate |",
            "|---|---|---|" + "---:|" * 6,
        ]
    for row in speed:
        packed = "packed, " if row["packing"] else ""
        lines.append(
            f"| {name_of(row)} | {way_of(row)} | {packed}{row['samples']} | {row['tokens_per_second']:,.0f} | "
            f"{row['operations_per_second'] / 1e12:,.3g} | {row['utilization']:.1%} | "
            f"{row['hardware_utilization']:.1%} | {row['allocated'] / GIB:.1f} | {row['error']:+.1%} |"
        )
    return lines
