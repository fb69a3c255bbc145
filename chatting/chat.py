"""The chat: reads lines, runs commands, and lets the models answer."""

import resource
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch

from chatting.answers import CachedModel, RunningAnswer
from chatting.models import Models
from chatting.screen import Screen, on_interrupt
from chatting.session import Session
from chatting.tools import run_command
from errors import UserError
from generation.prediction import generation_config
from options.chat import BASE
from options.predict import AnswerOptions
from texts import counted
from training.guards import explain_full_memory

REMEDY = "shorten the conversation with /clear, or /set max_new_tokens"


class Chat:
    """A chat of one user with one or several models.

    Args:
        options: how answers are generated; /set changes them.
        verbose: whether each answer is followed by a line about its speed.
    """

    def __init__(self, session: Session, models: Models, screen: Screen, options: AnswerOptions, verbose: bool = False):
        self.session = session
        self.models = models
        self.screen = screen
        self.options = options
        self.verbose = verbose
        self.comparing = False
        self.command: list[str] = []
        """The user's command that computes the results of tool calls; empty if the user writes them."""
        self.leaving = False
        self.answers = 0  # answers so far, which are sampled with different seeds
        self.running: RunningAnswer | None = None
        self.interrupted = False
        self.said: set[str] = set()  # notes that are shown once

    @property
    def prompt(self) -> str:
        """What stands before the user's line."""
        return f"{self.models.current}>>> " if len(self.models.names) > 1 else ">>> "

    def ask(self, question: str) -> None:
        """Ask a question, and show the answer.

        Raises:
            UserError: the question cannot be asked; it is then not in the conversation.
        """
        self.session.ask(question)
        self.reply()

    def reply(self) -> None:
        """Answer the last message; after a tool call continue with its result."""
        answer = explain_full_memory(self._compare if self.comparing else self._answer, GPU=REMEDY, host=REMEDY)
        try:
            text = answer()
        except UserError:
            self.session.undo()
            raise
        if self.interrupted and not self.screen.interactive:
            raise KeyboardInterrupt
        if self.interrupted and not text:
            self.session.undo()
            return
        call = self._call_in(text)
        self.session.answer(text)
        if call is not None:
            result = self._result(call)
            if result is not None:
                self.session.observe(result)
                self.reply()

    def _call_in(self, text: str) -> tuple[str, str] | None:
        """The tool call of the last answer, if it is complete."""
        is_complete = self.running is not None and self.running.ended and not self.interrupted
        return self.session.call_in(text) if is_complete else None

    def _result(self, call: tuple[str, str]) -> str | None:
        """The result of a tool call, from the user or from a command that the user confirms; None if there is none."""
        assert self.session.mode.calls is not None, "this generation calls tools"
        name, code = call
        arguments = self.session.mode.calls.read_arguments(code)
        try:
            if arguments is None:
                self.screen.note("The arguments of this call are unreadable.")
            elif self.command and self.screen.confirm(f"Run {shlex.join(self.command)} with this call?"):
                try:
                    result = run_command(self.command, name, arguments)
                except UserError as error:
                    self.screen.error(str(error))
                else:
                    self.screen.note(result)
                    return result
            return self.screen.ask(f"Result of {name}: ")
        except (EOFError, KeyboardInterrupt):
            self.screen.note("The call stays without a result.")
            return None

    def _start(self, model: CachedModel) -> RunningAnswer:
        """Start to answer the last message."""
        answerer, record = model.answerer, self.session.record()
        prompt = answerer.prompt_ids(record)
        if answerer.limits and prompt != answerer.mode.prompt_ids(answerer.tokenizer, record):
            limit = answerer.limits.get("max_src_len") or answerer.limits.get("max_len")
            self._say_once(f"The conversation exceeds {limit} tokens (--max_src_len): its oldest turns are left out.")
        if not answerer.mode.causal_prompt and len(self.session.messages) > 1:
            title = answerer.mode.title
            self._say_once(f"{title} computes the whole conversation for each answer: its prompts are bidirectional.")
        context = answerer.model.config.max_position_embeddings
        if len(prompt) > context:
            self._say_once(f"The conversation exceeds the {context:,} tokens that the model was made for: /clear it.")
        config = generation_config(answerer.mode, answerer.tokenizer, self.options)
        if self.options.max_len:
            config.max_new_tokens = max(min(config.max_new_tokens, self.options.max_len - len(prompt)), 1)
        self.running = model.answer(prompt, config, (self.options.seed + self.answers) % 2**64)
        if self.interrupted:
            self.running.stop()
        return self.running

    def _stop(self) -> None:
        self.interrupted = True
        if self.running is not None:
            self.running.stop()

    def _begin(self) -> None:
        self.interrupted, self.running = False, None

    def _answer(self) -> str:
        """Show the answer of the current model; returns its text."""
        self._begin()
        with on_interrupt(self._stop):
            running = self._start(self.models.get(self.models.current))
            held = ""  # what may become the call of a tool
            for piece in running:
                held += piece
                if not (self.session.tools and running.may_be_call):
                    self.screen.write(held)
                    held = ""
        self.answers += 1
        call = self._call_in(running.text)
        if call is None:
            self.screen.write(held)
            self.screen.end_line()
        else:
            if not held:
                self.screen.end_line()
            self.screen.call(*call)
        self._describe(running)
        return running.text

    def _compare(self) -> str:
        """Show the answers of base and current model beside each other; returns that of the current one."""
        self._begin()
        other, current = self.compared()
        answers: dict[str, RunningAnswer] = {}

        def pieces(name: str) -> Iterator[str]:
            if not self.interrupted:
                answers[name] = self._start(self.models.get(name))
                yield from answers[name]

        with on_interrupt(self._stop):
            self.screen.columns({name: pieces(name) for name in (other, current)})
        self.answers += 1
        for name, running in answers.items():
            self._describe(running, f"{name}: ")
        return answers[current].text if current in answers else ""

    def compared(self) -> tuple[str, str]:
        """The names of the models that /compare shows: (another one, the current one).

        Raises:
            UserError: there is only one.
        """
        current = self.models.current
        other = BASE if current != BASE else next((name for name in self.models.names if name != BASE), "")
        if not other:
            raise UserError("There is nothing to compare with: /compare needs a checkpoint or --lora.")
        return other, current

    def _describe(self, running: RunningAnswer, name: str = "") -> None:
        """Show why an answer ended early, and with /verbose what it took."""
        if running.interrupted and not running.text:
            self.screen.note(f"{name}Stopped before the answer; the question is removed.")
        elif running.interrupted:
            self.screen.note(f"{name}Stopped; /undo removes the question, /regenerate answers it again.")
        elif not running.ended:
            self.screen.note(f"{name}The answer ends at {len(running.ids)} tokens: /set max_new_tokens N allows more.")
        if self.verbose:
            speed = running.speed
            self.screen.note(
                f"{name}{counted(speed.tokens, 'token')}, {rate(speed.tokens - 1, speed.answer_seconds)} tokens/s; "
                f"prompt: {speed.prompt} tokens, {speed.cached} of them cached, "
                f"{rate(speed.prompt - speed.cached, speed.prompt_seconds)} tokens/s; "
                f"peak memory {peak_memory() / 1e9:.2f} GB"
            )

    def _say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.screen.note(text)

    def save(self, path: Path) -> None:
        """Append the conversation to a file of training records."""
        self.session.save(path)
        count = len(self.session.messages)
        self.screen.note(f"Saved {count} messages as one record: {path}")


def rate(count: int, seconds: float) -> str:
    """Tokens per second, as text."""
    return f"{count / seconds:.1f}" if seconds and count > 0 else "-"


def peak_memory() -> int:
    """Bytes: of tensors on the GPU if there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
