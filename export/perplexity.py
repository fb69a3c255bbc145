"""Perplexity of a model directory on a few answers."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from export.texts import PROMPTS
from modes.directory import read_base
from modes.loading import load_base
from modes.loss import find_supervised

LONGEST = 2048  # tokens in a row


class Perplexity(NamedTuple):
    """value: exp of the mean negative log-likelihood per token. tokens: their number."""

    value: float
    tokens: int


@torch.no_grad()
def perplexity(path: Path, mode: str | None = None, pairs: Iterable[tuple[str, str]] = PROMPTS) -> Perplexity:
    """Perplexity of a complete model directory on answers, each after its question in the prompt of the generation.

    Answers include the token that ends them. The model is loaded in float32 on the CPU.

    Args:
        mode: generation of the directory, if its files do not show it.
        pairs: (question, answer) pairs.

    Raises:
        UserError: the directory has no model.
    """
    base = read_base(path, mode)
    generation = base.generation
    tokenizer = generation.tokenizer_class.from_pretrained(base.path)
    config = generation.config_class.from_pretrained(base.path)
    model = load_base(generation, base, config, torch.float32).eval()
    records = [{"instruction": question, "output": answer} for question, answer in pairs]
    nats, tokens = 0.0, 0
    for row in generation.encode_batch(tokenizer, records, LONGEST, LONGEST):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        nats += model(input_ids=ids, labels=labels, num_items_in_batch=1).loss.item()
        tokens += len(find_supervised(labels))
    return Perplexity(math.exp(nats / tokens), tokens)
