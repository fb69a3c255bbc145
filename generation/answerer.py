"""Answers of a loaded model, in batches; the prefix shared by all prompts is computed once."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from conversation import Record
from data.loading import group_by_length
from generation.cache import SharedPrompt, share_start
from generation.generate import generate_batch, share_prompts
from generation.padded import PaddedBatch
from generation.request import End, Request, Token
from generation.sampling import Row
from modes.mode import Mode
from modes.model import LanguageModel
from modes.tokenizer import Tokenizer

MOST_TOKENS = 2**40  # in the cache: as many as the memory has


@dataclass(frozen=True)
class Answerer:
    """A loaded model with tokenizer and limits of prompts."""

    mode: Mode
    tokenizer: Tokenizer
    model: LanguageModel
    limits: dict[str, int | None]  # max_src_len and max_len of training, which may truncate a prompt; empty for a base

    def prompt_ids(self, record: Record) -> list[int]:
        """All ids before the answer."""
        return self.mode.prompt_ids(self.tokenizer, record, **self.limits)


def answer(
    answerer: Answerer,
    prompts: list[list[int]],
    generation_config: GenerationConfig,
    shared: SharedPrompt | None = None,
    max_len: int | None = None,
) -> list[str]:
    """The answers to a batch of prompts (ids of `Answerer.prompt_ids`), in order.

    Args:
        shared: the result of `share_prompts` for a set that includes these prompts.
        max_len: maximum tokens of a prompt with its answer; the prompts are shorter.
    """
    tokenizer, model = answerer.tokenizer, answerer.model
    rooms = [max_len - len(ids) if max_len else generation_config.max_new_tokens for ids in prompts]
    if max(rooms) < generation_config.max_new_tokens:
        generation_config = copy.deepcopy(generation_config)
        generation_config.max_new_tokens = max(rooms)
    with torch.inference_mode():
        rows = generate_batch(
            model,
            prompts,
            pad_id=tokenizer.pad_token_id,
            generation_config=generation_config,
            device=model.device,
            shared=shared,
        )
    return [answerer.mode.answer_text(tokenizer, row[:room]) for row, room in zip(rows, rooms, strict=True)]


def answer_batches(
    answerer: Answerer,
    prompts: list[list[int]],
    generation_config: GenerationConfig,
    batch_size: int,
    *,
    done: Collection[int] = (),
    seed: int = 0,
    max_len: int | None = None,
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (indices, answers) of each batch; prompts of similar length are batched together to save padding.

    The prefix shared by all prompts, usually an instruction, is computed once. ChatGLM-6B's prompts have bidirectional
    attention: the prefix depends on the tokens after it and cannot be shared.

    Args:
        done: indices to skip. A sampled batch stays whole and has its own seed, so that skipped batches do not change
            its answers.
    """
    shared = None
    if answerer.mode.causal_prompt and prompts:
        with torch.inference_mode():
            shared = share_prompts(
                answerer.model, prompts, generation_config=generation_config, device=answerer.model.device
            )
    for number, batch in enumerate(group_by_length([len(ids) for ids in prompts], batch_size)):
        missing = [i for i in batch if i not in done]
        if not missing:
            continue
        asked = batch if generation_config.do_sample else missing
        torch.manual_seed((seed + number) % 2**64)
        yield asked, answer(answerer, [prompts[i] for i in asked], generation_config, shared, max_len)


def answer_rows(
    answerer: Answerer,
    requests: Sequence[Request],
    batch_size: int,
    *,
    done: Collection[int] = (),
) -> Iterator[tuple[int, str]]:
    """Yield (index, answer) of each request as soon as it ends; the next request takes its place in the batch.

    Long prompts come first, next to others of similar length, to save padding. The prefix shared by all prompts is
    computed once, except for ChatGLM-6B; see `answer_batches`.

    Args:
        done: indices to skip.
    """
    prompts = [request.prompt for request in requests]
    with torch.inference_mode():
        shared = share_start(answerer.model, prompts, answerer.model.device) if answerer.mode.causal_prompt else None
    batch = PaddedBatch(answerer.mode, answerer.model, batch_size, MOST_TOKENS, shared)
    order = [i for indices in group_by_length([len(ids) for ids in prompts], batch_size) for i in indices]
    ended: list[int] = []

    def noting_end(i: int) -> Callable[[Token | End], None]:
        return lambda event: ended.append(i) if isinstance(event, End) else None

    rows = {i: Row(requests[i], noting_end(i)) for i in order if i not in done}
    batch.waiting.extend(rows.values())
    while rows:
        batch.admit()
        batch.step()
        for i in ended:
            yield i, answerer.mode.answer_text(answerer.tokenizer, rows.pop(i).tokens)
        ended.clear()
