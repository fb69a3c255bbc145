"""Answers that arrive while they are generated; the key/value cache is kept between the turns of a conversation.

model = CachedModel(answerer)
running = model.answer(answerer.prompt_ids(record), generation_config, seed)
for text in running:
    print(text, end="")
"""

import copy
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from generation.answerer import Answerer
from generation.cache import batch_cache
from generation.stream import AnswerStream


@dataclass
class Speed:
    """What one answer took; times in seconds.

    prompt: tokens of the prompt. cached: those of them that were in the cache. tokens: of the answer.
    """

    prompt: int
    cached: int
    tokens: int = 0
    prompt_seconds: float = 0.0
    answer_seconds: float = 0.0


class CachedModel:
    """A loaded model with the keys and values of its last conversation.

    Prompts with bidirectional attention (ChatGLM-6B) are computed whole, because each token depends on later ones.
    """

    def __init__(self, answerer: Answerer):
        self.answerer = answerer
        self.ids: list[int] = []  # whose keys and values are in the cache
        self.cache: Cache | None = None
        self._last: threading.Thread | None = None

    def answer(self, prompt: list[int], config: GenerationConfig, seed: int) -> "RunningAnswer":
        """Start to answer a prompt, in a thread of its own.

        Args:
            seed: of the samples.
        """
        running = RunningAnswer(self.answerer, Speed(len(prompt), 0))
        before = self._last

        def work() -> None:
            if before is not None:
                before.join()  # it still computes a token after Ctrl-C
            self._generate(prompt, config, seed, running)

        # A daemon, because a forward pass of a long prompt cannot be interrupted, and must not delay the exit.
        self._last = threading.Thread(target=work, daemon=True)
        self._last.start()
        return running

    def wait(self, seconds: float) -> bool:
        """Wait for the thread of the last answer. Returns whether it has ended."""
        if self._last is not None:
            self._last.join(seconds)
        return self._last is None or not self._last.is_alive()

    def _generate(self, prompt: list[int], config: GenerationConfig, seed: int, running: "RunningAnswer") -> None:
        try:
            if not running.stopping.is_set():
                self._compute(prompt, config, seed, running)
        except (MemoryError, OSError, RuntimeError) as error:  # full memory, above all
            self.cache, self.ids = None, []
            running.pieces.put(error)
        finally:
            running.pieces.put(None)

    @torch.inference_mode()
    def _compute(self, prompt: list[int], config: GenerationConfig, seed: int, running: "RunningAnswer") -> None:
        model = self.answerer.model
        kept = self._keep(prompt)
        running.speed.cached = kept
        processors: list[LogitsProcessor] = []
        if config.repetition_penalty not in (None, 1.0) and kept:
            # transformers' own would see only the ids behind the cache
            processors.append(PenaltyOfPrompt(prompt[:kept], config.repetition_penalty, model.device))
            config = copy.deepcopy(config)
            config.repetition_penalty = 1.0
        torch.manual_seed(seed)
        running.begin()
        model.generate(
            input_ids=torch.tensor([prompt[kept:]], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            past_key_values=self.cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([StopWhen(running.stopping)]),
            streamer=TokenStreamer(running),
        )
        self.ids = prompt + running.ids
        self._crop(self._filled())

    def _keep(self, prompt: Sequence[int]) -> int:
        """Crop the cache to what it shares with a prompt; returns the number of these tokens."""
        if self.cache is None or not self.answerer.mode.causal_prompt:
            self.cache, self.ids = batch_cache(1), []
            return 0
        shared = 0
        # the last token is computed in any case: its output starts the answer
        for own, new in zip(self.ids[: self._filled()], prompt[:-1], strict=False):
            if own != new:
                break
            shared += 1
        if not shared:
            self.cache, self.ids = batch_cache(1), []
        else:
            self._crop(shared)
        return shared

    def _prefix(self) -> int:
        """Positions in the cache before the first token: the prefix of P-Tuning."""
        return self.answerer.model.config.pre_seq_len or 0

    def _filled(self) -> int:
        """Number of `ids` in the cache: the last token of an answer usually is not."""
        assert self.cache is not None
        return min(self.cache.get_seq_length() - self._prefix(), len(self.ids))

    def _crop(self, tokens: int) -> None:
        assert self.cache is not None
        surplus = self.cache.get_seq_length() - self._prefix() - tokens
        if surplus:  # in transformers 5.17, crop(0) removes everything
            self.cache.crop(-surplus)
        self.ids = self.ids[:tokens]


class RunningAnswer:
    """An answer that is being generated: iterate over its text; `stop` ends it at once."""

    def __init__(self, answerer: Answerer, speed: Speed):
        self.speed = speed
        self.ids: list[int] = []
        """Generated ids, with the one that ends the answer."""
        self.text = ""
        """What iteration has returned; the answer, after its end."""
        self.interrupted = False
        """Whether `stop` ended it."""
        self.pieces: queue.SimpleQueue[list[int] | Exception | None] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self._stream = AnswerStream(answerer.mode, answerer.tokenizer)
        self._start = self._first = 0.0

    @property
    def ended(self) -> bool:
        """Whether the model ended the answer, and not its maximum length."""
        return self._stream.ended

    @property
    def may_be_call(self) -> bool:
        """See `AnswerStream`."""
        return self._stream.may_be_call

    def stop(self) -> None:
        """End the answer at once; safe in a signal handler. The thread ends after the token that it computes."""
        self.interrupted = True
        self.stopping.set()
        self.pieces.put(None)

    def begin(self) -> None:
        """Called when the prompt's computation starts."""
        self._start = self._first = time.perf_counter()

    def add(self, ids: list[int]) -> None:
        """Called with newly generated ids."""
        now = time.perf_counter()
        if not self.ids:
            self._first = now
            self.speed.prompt_seconds = now - self._start
        self.ids += ids
        self.speed.tokens = len(self.ids)
        self.speed.answer_seconds = now - self._first
        self.pieces.put(ids)

    def __iter__(self) -> Iterator[str]:
        """The text in pieces, each of which is final.

        Raises MemoryError, OSError or RuntimeError (torch.OutOfMemoryError) of the generation.
        """
        while not self.interrupted:
            ids = self.pieces.get()
            if isinstance(ids, Exception):
                raise ids
            text = self._stream.finish() if ids is None else self._stream.feed(ids)
            self.text += text
            if text:
                yield text
            if ids is None:
                return


class TokenStreamer(BaseStreamer):
    """Passes the ids that transformers generates to a RunningAnswer; it passes the prompt first."""

    def __init__(self, running: RunningAnswer):
        self.running = running
        self.in_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self.in_prompt:
            self.running.add(value.flatten().tolist())
        self.in_prompt = False

    def end(self) -> None:
        """Nothing is held back here."""


class StopWhen(StoppingCriteria):
    """Ends the generation when an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class PenaltyOfPrompt(LogitsProcessor):
    """transformers' repetition penalty, with the ids before those that it is called with."""

    def __init__(self, before: Sequence[int], penalty: float, device: torch.device):
        self.before = torch.tensor([list(before)], device=device)
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.penalty(torch.cat([self.before, input_ids], dim=-1), scores)
