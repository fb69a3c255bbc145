"""A tiny ChatGLM3-6B that has been trained to call tools, by train.py on the golden base."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.launch import REPOSITORY, newest_checkpoint, train, train_options

COUNT = 5  # more would take minutes to learn
TIMES = 50


def samples() -> list[dict]:
    """The conversations of the sample of tool calls that are learned."""
    lines = (REPOSITORY / "data/samples/tool_calls.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:COUNT]]


def call(name: str, arguments: dict) -> dict:
    """The assistant's message that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def asked(question: str, *answer: dict, tools: list[dict] | None = None) -> dict:
    """A record of a question and what follows."""
    return {"messages": [{"role": "user", "content": question}, *answer], **({"tools": tools} if tools else {})}


def train_tool_model(directory: Path, records: list[dict]) -> None:
    """Train on records and `samples`, many times in one epoch."""
    directory.mkdir()
    lines = [json.dumps(record) + "\n" for record in [*samples(), *records]]
    file = directory / "records.jsonl"
    file.write_text("".join(lines * TIMES))
    options = train_options(
        "glm3",
        "all",
        directory / "output",
        train_path=file,
        max_len=1536,
        max_src_len=1400,
        loss_on="all",
        num_train_epochs=1,
        learning_rate=4e-3,
        warmup_ratio=0.1,
        show_loss_step=100,
    )
    train(options)


def trained_once(factory: pytest.TempPathFactory, records: list[dict]) -> Path:
    """The checkpoint of `train_tool_model`, a whole model, which only the first of several workers trains."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    directory = shared / "tool-model"
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            train_tool_model(directory, records)
    return newest_checkpoint(directory / "output")
