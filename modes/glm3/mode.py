"""ChatGLM3-6B."""

from collections.abc import Iterator

from conversation import ROLES
from modes.clues import CODE, TOKENIZER_TEXTS, BaseFiles, Clue, Evidence, model_names, words_in
from modes.glm2.hf import LAYOUT
from modes.glm2.mode import LARGEST, fits
from modes.glm2.positions import layout
from modes.glm3 import prompt
from modes.glm3.calls import CALLS
from modes.glm3.configuration import ChatGLMConfig
from modes.glm3.modeling import ChatGLMForConditionalGeneration
from modes.glm3.streamed_text import Glm3StreamedText
from modes.glm3.tokenization import ChatGLMTokenizer
from modes.mode import Mode

ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)
LENGTHS = (8192, 131072)  # `seq_length` that it alone was published with: ChatGLM3-6B and ChatGLM3-6B-128k


def clues(files: BaseFiles) -> Iterator[Clue]:
    """Ids of roles, which only its tokenizer has; names; context lengths."""
    yield from words_in(files, TOKENIZER_TEXTS, ROLE_TOKENS, Evidence.TOKENIZER)
    yield from words_in(files, CODE, ROLE_TOKENS, Evidence.ROLES_IN_CODE)
    yield from model_names(files, ("chatglm3-6b",))
    length = files.config.get("seq_length")
    if type(length) is int and length in LENGTHS:
        yield Clue(Evidence.CONTEXT_LENGTH, (0, 0), f"seq_length {length}")


MODE = Mode(
    name="glm3",
    title="ChatGLM3-6B",
    config_class=ChatGLMConfig,
    model_class=ChatGLMForConditionalGeneration,
    tokenizer_class=ChatGLMTokenizer,
    encode_arrays=prompt.encode_arrays,
    prompt_ids=prompt.prompt_ids,
    answer_text=prompt.answer_text,
    streamed_text=Glm3StreamedText,
    stop_ids=prompt.stop_ids,
    template=prompt.TEMPLATE,
    roles=ROLES,
    one_answer=False,
    calls=CALLS,
    layout=layout,
    causal_prompt=True,
    gated=True,
    fits=fits,
    clues=clues,
    largest=LARGEST,
    hf=LAYOUT,
)
