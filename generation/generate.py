"""Answers of a model that is being trained, the work divided over the ranks.

    answers = generate_answers(engine, [prompt_ids(record) for record in records], …)  # the same list on every rank

A batch is made of the same prompts however many ranks there are, and padding is all that one row sees of another, so
any number of ranks gives the same answers.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from transformers import GenerationConfig

from data.loading import group_by_length
from generation.cache import SharedPrompt, batch_cache, share_start
from modes.model import LanguageModel
from training.engine import evaluating


def share_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    generation_config: GenerationConfig,
    device: torch.device | str,
) -> SharedPrompt | None:
    """What all prompts begin with, computed once for `generate_batch`; ChatGLM2 and ChatGLM3 only, see `share_start`.

    None where nothing is shared, and with a repetition penalty, which counts the tokens of whole prompts.
    """
    if generation_config.repetition_penalty not in (None, 1.0):
        return None
    return share_start(model, prompts, device)


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    generation_config: GenerationConfig,
    device: torch.device | str,
    synced: bool = False,
    shared: SharedPrompt | None = None,
) -> list[list[int]]:
    """The ids that the model writes behind each prompt, end token and padding included.

    Args:
        prompts: token ids, padded on the left to the longest.
        device: where the model computes (parameters that are offloaded lie elsewhere).
        synced: continue until the other ranks are done too; they must call this as often (ZeRO-3).
        shared: what `share_prompts` computed of prompts that these are among; the padding then stands behind it.
    """
    start = shared.tokens if shared else 0
    rests = [list(ids[start:]) for ids in prompts]
    longest = max(map(len, rests))
    pads = [longest - len(ids) for ids in rests]
    input_ids = [[pad_id] * pad + ids for pad, ids in zip(pads, rests, strict=True)]  # [b, s]
    attention_mask = [[1] * start + [0] * pad + [1] * (longest - pad) for pad in pads]  # [b, start + s]
    rows = len(prompts) * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    output = model.generate(
        input_ids=torch.tensor(input_ids, device=device),
        attention_mask=torch.tensor(attention_mask, device=device),
        past_key_values=batch_cache(rows, shared.cache if shared else None),
        generation_config=generation_config,
        synced_gpus=synced,
    )
    return output[:, longest:].tolist()


def generate_answers(
    engine,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    generation_config: GenerationConfig,
    answer_text: Callable[[list[int]], str],
    batch_size: int,
    causal: bool = False,
    at: Callable[[str], None] = lambda mark: None,
) -> list[str]:
    """The answers to all prompts, in their order, on every rank. All ranks must call it with the same prompts.

    Args:
        engine: DeepSpeed's engine. At ZeRO-3 the ranks generate in step, token by token, because each forward pass
            gathers the parameters from all of them; otherwise each goes its own pace.
        prompts: token ids of each prompt.
        answer_text: generated ids -> text.
        batch_size: prompts side by side on one rank.
        causal: whether prompt tokens see only what stands in front of them (ChatGLM2, ChatGLM3); what all prompts begin
            with is then computed once on each rank.
        at: is called with what comes next, as often on every rank.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    synced = world > 1 and engine.zero_optimization_stage() == 3
    batches = group_by_length([len(ids) for ids in prompts], batch_size)
    mine = batches[rank::world]
    rounds = -(-len(batches) // world)
    answers: dict[int, str] = {}
    with evaluating(engine.module, engine.device):
        shared = None
        if causal and prompts:
            at("reading what all prompts begin with")
            shared = share_prompts(engine.module, prompts, generation_config=generation_config, device=engine.device)
        for number in range(rounds):
            at(f"answering batch {number + 1} of {rounds}")
            batch = mine[number] if number < len(mine) else batches[-1][-1:]
            if number < len(mine) or synced:  # where the batches run out, ZeRO-3 wants one more all the same
                rows = generate_batch(
                    engine.module,
                    [prompts[i] for i in batch],
                    pad_id=pad_id,
                    generation_config=generation_config,
                    device=engine.device,
                    synced=synced,
                    shared=shared,
                )
                answers.update(zip(batch, map(answer_text, rows), strict=True))
    gathered: list = [None] * world
    dist.all_gather_object(gathered, {i: answers[i] for batch in mine for i in batch})  # without the filler
    merged = {i: text for part in gathered for i, text in part.items()}
    return [merged[i] for i in range(len(prompts))]
