"""The training loop of 2023, rewritten with our model classes and plain torch, as a baseline.

python benchmarks/loop_of_2023.py --mode glm3 --train_type lora --model_name_or_path BASE --rows rows.json \
    --output_dir /tmp/loop

As then: batches padded to their longest row, logits of all positions in float32, cross entropy of each against the
next id, all layers recomputed in backward, inputs that require gradients, so that backward runs through frozen layers
down to the embeddings, a mean of micro-batch means, `loss.item()` at every step. Attention as the official models of
that year have it under torch 2: ChatGLM-6B writes its scores out under a mask; ChatGLM2 and ChatGLM3 call torch's sdpa,
causal without a mask (with a P-Tuning prefix under one).

In its favor: it ran under DeepSpeed ZeRO-2, here plain torch AdamW (fused) has no engine around it; norms, GELU and
rotary positions were made of several operations, here they are those of our models; gradients are clipped once, not
twice; the schedule is the one of train.py. On CPU everything is float32, so that the copy of the logits costs nothing.

Writes metrics.jsonl: step, epoch, loss, tokens_per_second (padding is not counted), peak_memory_bytes.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, size_flag  # noqa: E402
from benchmarks.sides import SideOptions, write_step  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from methods import METHODS  # noqa: E402
from modes import GENERATIONS, MODES  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class LoopOptions(SideOptions):
    """What the loop trains."""

    TITLE: ClassVar[str] = "training"

    mode: str | None = flag(
        None, help="Generation of the base.", zh="基座是哪一代。", choices=GENERATIONS, required="the generation"
    )
    train_type: str | None = flag(None, help="Method.", zh="训练方法。", choices=tuple(METHODS), required="the method")
    total_steps: int | None = size_flag(
        None,
        "Number of steps of the learning-rate schedule (default: those of --rows).",
        "学习率曲线的总步数（默认是 --rows 的步数）。",
    )
    lora_module_name: tuple[str, ...] = flag(
        ("query_key_value",), help="Comma-separated modules with LoRA.", zh="加 LoRA 的模块，用逗号分隔。"
    )
    freeze_module_name: tuple[str, ...] = flag(
        ("layers.27.",),
        help="Comma-separated substrings of parameter names to train; the rest is frozen.",
        zh="要训练的参数名片段，用逗号分隔；其余冻结。",
    )
    pre_seq_len: int = size_flag(16, "Length of the trainable prefix.", "可训练前缀的长度。")


PROGRAM = benchmark(__file__, __doc__, LoopOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import peft  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402

from compatibility import enable_activation_checkpointing  # noqa: E402

IGNORED = -100


def load(options: LoopOptions):
    """The base in float32 with what the method trains; the same new values as train.py draws from the seed."""
    mode, train_type, base = options.mode, options.train_type, options.model_name_or_path
    config = MODES[mode].config_class.from_pretrained(base)
    if train_type == "ptuning":
        config.pre_seq_len, config.prefix_projection = options.pre_seq_len, True
    attention = "eager" if mode == "glm" else "sdpa"
    model = MODES[mode].model_class.from_pretrained(
        base, config=config, dtype=torch.float32, attn_implementation=attention
    )
    torch.manual_seed(options.seed)
    if train_type == "lora":
        lora = peft.LoraConfig(
            r=options.lora_dim,
            lora_alpha=options.lora_alpha,
            lora_dropout=0.0,
            target_modules=list(options.lora_module_name),
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, lora)
    trained = {"freeze": options.freeze_module_name, "ptuning": ["prefix_encoder"], "all": [""]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained[train_type]))
    if train_type == "ptuning":
        model.init_prefix()
    return model


def pad(rows: list[dict], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [b, s] of a micro-batch, s that of its longest row."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [pad_id] * (width - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows]
    return torch.tensor(ids), torch.tensor(labels)


def loss_of(model, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats over the supervised positions of a micro-batch, from the logits of all positions."""
    logits = model(input_ids=ids, use_cache=False).logits  # [b, s, v]
    logits = logits.to(torch.float32)[:, :-1].contiguous()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def recompute_everything(model) -> None:
    """Checkpoint all layers, and make the embeddings part of backward, which reentrant checkpointing needs."""
    enable_activation_checkpointing(model, {"use_reentrant": True})
    model.enable_input_require_grads()


def train(model, steps: list, pad_id: int, options: LoopOptions) -> Iterator[tuple[float, int, float]]:
    """Yield (loss, tokens without padding, seconds) of every step."""
    total_steps = options.total_steps or len(steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.1},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)
    warmup = int(options.warmup_ratio * total_steps)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total_steps)
    model.train()
    for micro_batches in steps:
        started, total = time.perf_counter(), 0.0
        for rows in micro_batches:
            loss = loss_of(model, *pad(rows, pad_id)) / len(micro_batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens = sum(len(row["input_ids"]) for rows in micro_batches for row in rows)
        yield total, tokens, time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> None:
    """Train on the rows of a file, and write metrics.jsonl."""
    options = section(LoopOptions, read_command_line(PROGRAM, argv))
    given, output_dir = json.loads(Path(options.rows).read_text()), Path(options.output_dir)
    model = load(options)
    recompute_everything(model)
    torch.manual_seed(options.seed)  # of the dropout
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / "metrics.jsonl").open("w") as file:
        steps = train(model, given["steps"], given["pad_id"], options)
        for step, (loss, tokens, seconds) in enumerate(steps, start=1):
            write_step(file, step, loss, tokens / seconds)


if __name__ == "__main__":
    run_program(main)
