"""ChatGLM2-6B."""

from collections.abc import Iterator, Mapping
from typing import Any

from modes import rounds
from modes.clues import CODE, TOKENIZER_TEXTS, BaseFiles, Clue, Evidence, model_names, words_in
from modes.glm2 import prompt
from modes.glm2.configuration import ChatGLMConfig
from modes.glm2.hf import LAYOUT
from modes.glm2.modeling import ChatGLMForConditionalGeneration
from modes.glm2.positions import layout
from modes.glm2.tokenization import ChatGLMTokenizer
from modes.mode import Mode
from modes.streamed_text import StreamedText

# Counts that config.json must have, of ChatGLM3 too.
LARGEST = {
    "num_layers": 1000,
    "hidden_size": 10**6,
    "ffn_hidden_size": 10**7,
    "kv_channels": 10**5,
    "num_attention_heads": 10**4,
    "multi_query_group_num": 10**4,
    "padded_vocab_size": 10**7,
}
CODEGEEX2_KEY = "interleaved_qkv"


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has the keys of this generation, which are those of ChatGLM3 too."""
    return "multi_query_group_num" in config and "padded_vocab_size" in config


def clues(files: BaseFiles) -> Iterator[Clue]:
    """The chat template; the tokenizer's method for prompts; names; a key of CodeGeeX2, which is this generation."""
    yield from words_in(files, TOKENIZER_TEXTS, ("[Round ",), Evidence.TOKENIZER)
    yield from words_in(files, CODE, ("build_prompt",), Evidence.PROMPT_IN_CODE)
    yield from model_names(files, ("chatglm2-6b", "codegeex2-6b"))
    if CODEGEEX2_KEY in files.config:
        yield Clue(Evidence.CONFIG_KEY, (0, 0), f"{CODEGEEX2_KEY} of CodeGeeX2")


MODE = Mode(
    name="glm2",
    title="ChatGLM2-6B",
    config_class=ChatGLMConfig,
    model_class=ChatGLMForConditionalGeneration,
    tokenizer_class=ChatGLMTokenizer,
    encode_arrays=prompt.PROMPT.encode_arrays,
    prompt_ids=prompt.PROMPT.prompt_ids,
    answer_text=rounds.answer_text,
    streamed_text=StreamedText,
    stop_ids=rounds.stop_ids,
    template=prompt.TEMPLATE,
    roles=("system", "user", "assistant"),
    one_answer=True,
    calls=None,
    layout=layout,
    causal_prompt=True,
    gated=True,
    fits=fits,
    clues=clues,
    largest=LARGEST,
    hf=LAYOUT,
)
