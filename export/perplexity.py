"""Perplexity of a model on a few answers."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from errors import UserError
from export.texts import PROMPTS
from modes.directory import Base
from modes.loss import find_supervised
from modes.model import LanguageModel

LONGEST = 2048  # tokens in a row
LARGEST_RATIO = 2  # of perplexities: a damaged file has a far higher one


class Perplexity(NamedTuple):
    """value: exp of the mean negative log-likelihood per token. tokens: their number."""

    value: float
    tokens: int


@torch.no_grad()
def perplexity(model: LanguageModel, base: Base, pairs: Iterable[tuple[str, str]] = PROMPTS) -> Perplexity:
    """Perplexity of a model on answers, each after its question in the prompt of the generation.

    Answers include the token that ends them.

    Args:
        base: of the generation and the tokenizer.
        pairs: (question, answer) pairs.
    """
    generation, tokenizer = base.generation, base.make_tokenizer()
    records = [{"instruction": question, "output": answer} for question, answer in pairs]
    nats, tokens = 0.0, 0
    for row in generation.encode_batch(tokenizer, records, LONGEST, LONGEST):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        nats += model(input_ids=ids, labels=labels, num_items_in_batch=1).loss.item()
        tokens += len(find_supervised(labels))
    return Perplexity(math.exp(nats / tokens), tokens)


def compare_perplexity(merged: Perplexity, written: Perplexity, directory: Path, kind: str) -> str:
    """What quantization changes, as a line to print. kind: of the written weights.

    Raises:
        UserError: the perplexity is more than LARGEST_RATIO times as high.
    """
    if not written.value <= LARGEST_RATIO * merged.value:  # not a number is no match
        raise UserError(
            f"{directory} has perplexity {written.value:.4g} as {kind}, the merged model {merged.value:.4g}; it is "
            "kept, but quantize it to more bits."
        )
    return (
        f"verified: perplexity on {merged.tokens} tokens of {len(PROMPTS)} general answers is {merged.value:.4g} "
        f"merged, {written.value:.4g} as {kind}"
    )
