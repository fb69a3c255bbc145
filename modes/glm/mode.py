"""ChatGLM-6B."""

from collections.abc import Iterator, Mapping
from typing import Any

from modes import rounds
from modes.clues import BaseFiles, Clue
from modes.glm import prompt
from modes.glm.configuration import ChatGLMConfig
from modes.glm.modeling import ChatGLMForConditionalGeneration
from modes.glm.positions import layout
from modes.glm.streamed_text import GlmStreamedText
from modes.glm.tokenization import ChatGLMTokenizer
from modes.mode import Mode


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has keys that only this generation has."""
    return "position_encoding_2d" in config or "inner_hidden_size" in config


def clues(files: BaseFiles) -> Iterator[Clue]:
    """No clues: only this generation has its config keys."""
    yield from ()


MODE = Mode(
    name="glm",
    title="ChatGLM-6B",
    config_class=ChatGLMConfig,
    model_class=ChatGLMForConditionalGeneration,
    tokenizer_class=ChatGLMTokenizer,
    encode_arrays=prompt.PROMPT.encode_arrays,
    prompt_ids=prompt.PROMPT.prompt_ids,
    answer_text=rounds.answer_text,
    streamed_text=GlmStreamedText,
    stop_ids=rounds.stop_ids,
    template=prompt.TEMPLATE,
    roles=("system", "user", "assistant"),
    one_answer=True,
    calls=None,
    layout=layout,
    causal_prompt=False,
    gated=False,
    fits=fits,
    clues=clues,
    largest={"num_layers": 1000, "hidden_size": 10**6, "num_attention_heads": 10**4, "vocab_size": 10**7},
    hf=None,
    vocabulary_advice=", or set num_image_tokens in tokenizer_config.json to 0 or 20000",
)
