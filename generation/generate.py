"""Generate answers with a model in training, distributed over the ranks.

    answers = generate_answers(engine, [prompt_ids(record) for record in records], …)  # the same list on every rank

The batches do not depend on the number of ranks, and rows affect each other only by padding, so any number of ranks
generates the same answers.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from transformers import GenerationConfig

from data.loading import group_by_length
from generation.cache import SharedPrompt, batch_cache, share_start
from modes.model import LanguageModel
from parallel.zero import evaluating


def share_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    generation_config: GenerationConfig,
    device: torch.device | str,
) -> SharedPrompt | None:
    """The prefix shared by all prompts, computed for `generate_batch`; ChatGLM2 and ChatGLM3 only, see `share_start`.

    None without a shared prefix, and with a repetition penalty, which needs the tokens of whole prompts.
    """
    if generation_config.repetition_penalty not in (None, 1.0):
        return None
    return share_start(model, prompts, device)


def pad_left(
    prompts: Sequence[Sequence[int]], shared: SharedPrompt | None, pad_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    """(input ids [b, s] after the shared start, attention mask [b, start + s]) of prompts, padded on the left."""
    start = shared.tokens if shared else 0
    rests = [list(ids[start:]) for ids in prompts]
    longest = max(map(len, rests))
    pads = [longest - len(ids) for ids in rests]
    input_ids = [[pad_id] * pad + ids for pad, ids in zip(pads, rests, strict=True)]
    return input_ids, [[1] * start + [0] * pad + [1] * (longest - pad) for pad in pads]


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
    """The ids that the model generates for each prompt, including end token and padding.

    Args:
        prompts: token ids, padded on the left to the longest.
        device: where the model computes (offloaded parameters are elsewhere).
        synced: continue until the other ranks are done, too; they must call this equally often (ZeRO-3).
        shared: the result of `share_prompts` for a set that includes these prompts; the padding then follows it.
    """
    input_ids, attention_mask = pad_left(prompts, shared, pad_id)
    rows = len(prompts) * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    output = model.generate(
        input_ids=torch.tensor(input_ids, device=device),
        attention_mask=torch.tensor(attention_mask, device=device),
        past_key_values=batch_cache(rows, shared.cache if shared else None),
        generation_config=generation_config,
        synced_gpus=synced,
    )
    return output[:, len(input_ids[0]) :].tolist()


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
    """The answers to all prompts, in order, on every rank. All ranks must call it with the same prompts.

    Args:
        engine: DeepSpeed's engine. At ZeRO-3 the ranks generate in step, token by token, because each forward pass
            gathers parameters from all ranks; otherwise they are independent.
        prompts: token ids of each prompt.
        answer_text: generated ids -> text.
        batch_size: prompts per batch on each rank.
        causal: whether attention in prompts is causal (ChatGLM2, ChatGLM3); the prefix shared by all prompts is then
            computed once on each rank.
        at: called with the name of the next phase, equally often on every rank.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    synced = world > 1 and engine.zero_optimization_stage() == 3
    batches = group_by_length([len(ids) for ids in prompts], batch_size)
    own_batches = batches[rank::world]
    rounds = -(-len(batches) // world)
    answers: dict[int, str] = {}
    with evaluating(engine.module, engine.device):
        shared = None
        if causal and prompts:
            at("computing the shared prompt prefix")
            shared = share_prompts(engine.module, prompts, generation_config=generation_config, device=engine.device)
        for number in range(rounds):
            at(f"answering batch {number + 1} of {rounds}")
            batch = own_batches[number] if number < len(own_batches) else batches[-1][-1:]
            if number < len(own_batches) or synced:  # ZeRO-3 needs another pass on ranks without a batch, too
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
    dist.all_gather_object(gathered, {i: answers[i] for batch in own_batches for i in batch})  # without the filler
    merged = {i: text for part in gathered for i, text in part.items()}
    return [merged[i] for i in range(len(prompts))]
