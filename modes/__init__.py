"""What differs between model generations: one folder each, and MODES, the table from --mode to it."""

from collections.abc import Callable
from dataclasses import dataclass

from conversation import ROLES
from modes.glm import configuration as glm_configuration
from modes.glm import modeling as glm_modeling
from modes.glm import positions as glm_positions
from modes.glm import prompt as glm_prompt
from modes.glm import tokenization as glm_tokenization
from modes.glm2 import configuration as glm2_configuration
from modes.glm2 import modeling as glm2_modeling
from modes.glm2 import positions as glm2_positions
from modes.glm2 import prompt as glm2_prompt
from modes.glm2 import tokenization as glm2_tokenization
from modes.glm3 import configuration as glm3_configuration
from modes.glm3 import modeling as glm3_modeling
from modes.glm3 import prompt as glm3_prompt
from modes.glm3 import tokenization as glm3_tokenization


@dataclass(frozen=True)
class Mode:
    """One model generation. What a record is, conversation.py says."""

    name: str
    config_class: type
    model_class: type
    tokenizer_class: type
    encode: Callable  # (tokenizer, record, max_len, max_src_len) -> {"input_ids", "labels", "truncated"}
    encode_batch: Callable  # (tokenizer, records, max_len, max_src_len, loss_on="last", flat=False) -> list of those
    prompt_ids: (
        Callable  # (tokenizer, record, max_src_len=None, max_len=None) -> ids in front of the first answer token
    )
    layout: Callable  # (config, ids [s]) -> (position ids, how many of the first tokens see one another both ways)
    answer_text: Callable  # (tokenizer, generated ids) -> text
    stop_ids: Callable  # (tokenizer) -> ids that end an answer
    template: str  # readable form of the prompt
    roles: tuple[str, ...]  # who can speak in a conversation
    causal_prompt: bool  # whether a prompt's tokens see only what stands in front of them
    gated: bool  # RMSNorm and SwiGLU, not LayerNorm and GELU
    one_answer: bool  # whether a row has one answer, its last; the others then need rows of their own


def _mode(name, configuration, modeling, tokenization, prompt, positions):
    return Mode(
        name=name,
        config_class=configuration.ChatGLMConfig,
        model_class=modeling.ChatGLMForConditionalGeneration,
        tokenizer_class=tokenization.ChatGLMTokenizer,
        encode=prompt.encode,
        encode_batch=prompt.encode_batch,
        prompt_ids=prompt.prompt_ids,
        layout=positions.layout,
        answer_text=prompt.answer_text,
        stop_ids=prompt.stop_ids,
        template=prompt.TEMPLATE,
        roles=ROLES if name == "glm3" else ROLES[:3],
        causal_prompt=name != "glm",
        gated=name != "glm",
        one_answer=name != "glm3",
    )


MODES = {
    "glm": _mode("glm", glm_configuration, glm_modeling, glm_tokenization, glm_prompt, glm_positions),
    "glm2": _mode("glm2", glm2_configuration, glm2_modeling, glm2_tokenization, glm2_prompt, glm2_positions),
    "glm3": _mode("glm3", glm3_configuration, glm3_modeling, glm3_tokenization, glm3_prompt, glm2_positions),
}
