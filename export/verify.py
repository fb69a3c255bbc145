"""--verify: load what was written, and compare it with the merged model on a few prompts.

The merged model is this toolkit's, in float32 with the values that were written. What was written is loaded as its
users load it, by transformers without remote code or by peft, or else by this toolkit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from checkpoints.merging import Merge, merged_tensors
from errors import UserError
from export.texts import PROMPTS
from modes.directory import Base, read_base
from modes.loading import load_base
from modes.model import LanguageModel

SMALL_BYTES = 10**9  # of weights
NEW_TOKENS = 16
TOLERANCE = 1e-3  # of the largest logit: float32 computations of one model differ by 1e-5


@dataclass(frozen=True)
class Outputs:
    """What a model computes for the prompts.

    prompts: ids of each. answers: the ids generated greedily after each.
    logits: of each prompt, [v] at its end.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: torch.Tensor


def is_small(merge: Merge) -> bool:
    """Whether the base is so small that the result is verified without --verify."""
    return sum(file.stat().st_size for file in merge.base.weight_files) <= SMALL_BYTES


def prompts_of(merge: Merge) -> list[list[int]]:
    """The ids of the verification prompts."""
    generation, tokenizer = merge.base.generation, merge.base.make_tokenizer()
    return [generation.prompt_ids(tokenizer, {"instruction": question}) for question, _ in PROMPTS]


@torch.inference_mode()
def outputs_of(model: Any, prompts: list[list[int]], stop_ids: list[int]) -> Outputs:
    """Greedy answers of up to NEW_TOKENS ids, and logits; one prompt at a time, without padding.

    Args:
        stop_ids: that end an answer, whatever the model's own configuration says.
    """
    greedy = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=stop_ids, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    answers, logits = [], []
    for ids in prompts:
        row = torch.tensor([ids])
        generated = model.generate(row, attention_mask=torch.ones_like(row), generation_config=greedy)
        answers.append(generated.sequences[0, len(ids) :].tolist())
        logits.append(generated.logits[0][0])
    return Outputs(prompts, answers, torch.stack(logits))


def stops_of(merge: Merge) -> list[int]:
    """The ids that end an answer."""
    return merge.base.generation.stop_ids(merge.base.make_tokenizer())


def merged_outputs(merge: Merge) -> Outputs:
    """Outputs of the merged model."""
    return outputs_of(merged_model(merge), prompts_of(merge), stops_of(merge))


def merged_model(merge: Merge) -> LanguageModel:
    """The merged model in float32."""
    generation = merge.base.generation
    config = generation.config_class.from_dict({**merge.base.config, **merge.fold.config})
    tensors = {name: tensor for name, tensor in merged_tensors(merge) if not name.endswith("inv_freq")}
    return load_tensors(generation.model_class, config, tensors)


def load_tensors(model_class: Any, config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A model of these tensors in float32, in eval mode."""
    return model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32).eval()


def compare(merged: Outputs, written: Outputs, directory: Path, by: str) -> str:
    """The figures of a comparison as a line to print.

    Raises:
        UserError: they differ by more than float32 computations do.
    """
    largest, scale = (merged.logits - written.logits).abs().max().item(), merged.logits.abs().max().item()
    equal = sum(ours == theirs for ours, theirs in zip(merged.answers, written.answers, strict=True))
    count = len(merged.answers)
    if written.prompts != merged.prompts or not largest <= TOLERANCE * scale:  # not a number is no match
        raise UserError(
            f"{directory} differs from the merged model (logits by {largest:.2g} of {scale:.2g}); it is kept, but do "
            "not use it, and report this."
        )
    return (
        f"verified by {by}: largest logit difference {largest:.2g} of {scale:.2g}, {equal} of {count} greedy answers "
        "equal"
    )


def written_model(merge: Merge) -> tuple[LanguageModel, Base]:
    """What was written in the official layout, loaded by this toolkit in float32."""
    base = read_base(merge.output_dir, merge.base.mode)
    return load_base(base.generation, base, base.make_config(), torch.float32).eval(), base
