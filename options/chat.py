"""The flags of chat.py.

options, problems, notes = parse_chat(["--model_path", "ChatGLM3-6B", "--lora", "spo=output-glm3/best"])
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from options.adapters import AdapterOptions, check_adapter_names, check_base_model, pairs_of
from options.advice import CHAT_ADVICE
from options.parser import Program, parse_and_check, section
from options.predict import AnswerOptions, PredictModelOptions, check_model_path, check_sampling, note_unused

BASE = "base"  # name of the model without adapter


@dataclass(frozen=True)
class ConversationOptions:
    """How a conversation starts."""

    TITLE: ClassVar[str] = "conversation"

    system: str | None = flag(
        None,
        help="System text at the start of every conversation.",
        zh="每段对话开头的 system 文本。",
        free_text=True,
        elsewhere="default_system system_message system_prompt",
    )
    source_prefix: str | None = flag(
        None,
        help="Text to prepend to every question (default: as trained, or none).",
        zh="加在每个问题前面的文本（默认与训练时相同，或没有）。",
        free_text=True,
    )
    verbose: bool = flag(
        False,
        help="Print tokens, speed and peak memory after each answer.",
        zh="每个答案之后显示 token 数、速度和显存（内存）峰值。",
    )


@dataclass(frozen=True)
class ChatOptions:
    """The options of chat.py."""

    model: PredictModelOptions
    adapters: AdapterOptions
    conversation: ConversationOptions
    answers: AnswerOptions


CHAT = Program(
    name="chat.py",
    description="Talk to a base, a merged directory, or a checkpoint of any method in a terminal.",
    sections=(PredictModelOptions, AdapterOptions, ConversationOptions, AnswerOptions),
    advice=CHAT_ADVICE,
    positional="model_path",
    repeated_lists=True,
)


def parse_chat(argv: Sequence[str] | None = None) -> tuple[ChatOptions, list[str], list[str]]:
    """(options, problems, notes).

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse_and_check(CHAT, argv)
    model, adapters = section(PredictModelOptions, given), section(AdapterOptions, given)
    conversation, answers = section(ConversationOptions, given), section(AnswerOptions, given)
    problems = given.problems + check_adapter_names(adapters.lora) + check_sampling(answers)
    if BASE in dict(pairs_of(adapters.lora)):
        problems.append(f"--lora {BASE} is the name of the model without adapter: choose another one.")
    problems += check_model_path(model) + check_base_model(adapters.lora, model.base_model)
    answers = dataclasses.replace(answers, max_new_tokens=answers.answer_tokens)
    return ChatOptions(model, adapters, conversation, answers), problems, note_unused(answers)
