"""Talk to a base, a merged directory, or a checkpoint of any method in a terminal.

python chat.py --model_path output-glm3/epoch-2-step-700
python chat.py --model_path ChatGLM3-6B --lora spo=output-spo/best --lora ad=output-ad/best
python chat.py --model_path chatglm3-spo --do_sample --temperature 0.8 < questions.txt

Prompts are built by the same code as in training. /help lists the commands. Without a terminal, each line of standard
input is a question or a command, and standard output has the answers.
"""

import gc
import logging
import os
import sys
from collections.abc import Sequence

from errors import end_on_interrupt, run_program
from options.chat import parse_chat
from options.parser import refuse

if __name__ == "__main__":
    run_program(lambda: refuse(parse_chat()[1]))  # before torch is loaded
    end_on_interrupt()
    gc.disable()  # imports leave no garbage, and the collector would take a fifth of their time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are local

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else DeepSpeed prints a guess
from chatting.chat import Chat
from chatting.commands import converse, words
from chatting.models import Models, find_chat
from chatting.screen import make_screen
from chatting.session import Session
from generation.models import choose_device
from training.guards import explain_full_memory

LEAVE_SECONDS = 2  # for a token that is computed after Ctrl-C; a long prompt takes longer


def main(argv: Sequence[str] | None = None) -> None:
    """Chat with the models of a command line."""
    options, problems, notes = parse_chat(argv)
    refuse(problems)
    device = choose_device(options.model.device)
    found = find_chat(options)
    for note in [*notes, *found.model.notes]:
        print(note, file=sys.stderr)
    prefix = options.conversation.source_prefix
    session = Session(
        found.model.mode,
        options.conversation.system or "",
        found.trained.get("source_prefix") or "" if prefix is None else prefix,
    )
    # it would print into an answer; the chat has a sentence about the length of its own
    logging.getLogger("transformers.generation.stopping_criteria").setLevel(logging.ERROR)
    models = Models(found, options.model.precision, device)
    screen = make_screen(lambda: words(chat))
    chat = Chat(session, models, screen, options.answers, options.conversation.verbose)
    if screen.interactive:
        screen.note(f"{found.model.mode.title}, {options.model.model_path}. /help lists commands, Ctrl-D leaves.")
    try:
        converse(chat)
    finally:
        if not models.wait(LEAVE_SECONDS):
            sys.stdout.flush()
            os._exit(130)  # Python's own end would abort in the thread that computes


if __name__ == "__main__":
    gc.freeze()  # what was imported stays
    gc.enable()
    gpu = "lower --max_new_tokens, or give --quantization_bit 8 or 4"
    run_program(explain_full_memory(main, GPU=gpu, host="give --precision bf16, or end other programs"))
