"""Answer many requests at once in rows of a common cache; requests join and leave between steps.

For models without paged attention: ChatGLM-6B, whose prompts have bidirectional attention, and P-Tuning prefixes; and
for a file of prompts. Prompts that join are computed as one padded batch, then their keys and values become rows of the
cache, and each step adds a token to every row.

Shapes: r rows, v vocabulary.
"""

import threading
from collections import deque
from collections.abc import Callable

import torch

from generation.cache import SharedPrompt, batch_cache
from generation.generate import pad_left
from generation.request import End, Request, Token, check_length, final_length
from generation.row_cache import RowCache
from generation.sampling import Row, choose_tokens
from modes.mode import Mode
from modes.model import LanguageModel

STEP_PROMPT_TOKENS = 1024  # maximum tokens, with padding, of prompts that join in one step, if there are several


class PaddedBatch:
    """The rows of answers in progress, and those that wait. For one thread, or under a lock where it says so.

    Args:
        max_num_seqs: maximum number of rows.
        cache_tokens: maximum number of rows times the tokens of the longest, at the end of their answers.
        shared: the start of all prompts, if they have one that was computed before.
    """

    def __init__(
        self,
        mode: Mode,
        model: LanguageModel,
        max_num_seqs: int,
        cache_tokens: int,
        shared: SharedPrompt | None = None,
    ):
        self.waiting: deque[Row] = deque()
        self.joining: list[Row] = []
        self.rows: list[Row] = []
        self._mode, self._model, self._shared = mode, model, shared
        self._max_num_seqs, self._cache_tokens = max_num_seqs, cache_tokens
        self._cache = RowCache()
        self._positions: dict[Row, torch.Tensor] = {}  # of all tokens, to the end of the longest answer

    @property
    def running(self) -> int:
        """Number of requests in the model's steps."""
        return len(self.rows) + len(self.joining)

    def admit(self) -> None:
        """Let those first in the queue join that fit. Under the lock."""
        longest = max((final_length(row.request) for row in self.rows), default=0)
        padded = 0  # tokens of the longest prompt that joins
        while self.waiting and self.running < self._max_num_seqs:
            request = self.waiting[0].request
            longest = max(longest, final_length(request))
            padded = max(padded, len(request.prompt))
            if self.joining and (len(self.joining) + 1) * padded > STEP_PROMPT_TOKENS:
                break
            if self.running and (self.running + 1) * longest > self._cache_tokens:
                break
            self.joining.append(self.waiting.popleft())

    @torch.inference_mode()
    def step(self) -> None:
        """Compute the prompts that join, then add a token to every row."""
        self._join()
        for i in reversed(range(len(self.rows))):
            if self.rows[i].ended:
                self._cache.leave(i)
                del self._positions[self.rows[i]]
                self.rows[i] = self.rows[-1]
                self.rows.pop()
        if self.rows:
            self._extend()

    def end_all(self, end: End) -> None:
        """End the requests in the model's steps, and forget their cache."""
        for row in [*self.joining, *self.rows]:
            row.end(end)
        self.joining, self.rows, self._cache, self._positions = [], [], RowCache(), {}

    def _join(self) -> None:
        """Compute the prompts that join, and choose the first token of their answers."""
        rows = [row for row in self.joining if not row.ended]
        if rows:
            input_ids, mask = pad_left([row.request.prompt for row in rows], self._shared, pad_id=0)
            device = self._model.device
            output = self._model(
                input_ids=torch.tensor(input_ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                past_key_values=batch_cache(len(rows), self._shared.cache if self._shared else None),
                use_cache=True,
                logits_to_keep=1,
            )
            for i, row in enumerate(rows):
                real = torch.tensor([1] * self._prefix + mask[i], dtype=torch.bool, device=device)
                self._cache.join(output.past_key_values, i, real)
                self.rows.append(row)
                self._positions[row] = self._all_positions(row.request)
            choose_tokens(output.logits[:, -1].float(), rows)
        self.joining = []

    def _extend(self) -> None:
        """Add a token to every row."""
        device = self._model.device
        output = self._model(
            input_ids=torch.tensor([[row.tokens[-1]] for row in self.rows], device=device),
            position_ids=torch.stack([self._last_position(row) for row in self.rows]).to(device),
            attention_mask=self._cache.mask(device)[..., self._prefix :],  # the model adds the prefix
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache.grow()
        choose_tokens(output.logits[:, -1].float(), self.rows)

    @property
    def _prefix(self) -> int:
        """Length of a P-Tuning prefix."""
        return self._model.config.pre_seq_len or 0

    def _all_positions(self, request: Request) -> torch.Tensor:
        """The positions of a prompt with its longest answer: [t], or [2, t] for ChatGLM-6B."""
        ids = request.prompt + [0] * request.max_new_tokens  # those of an answer do not depend on its tokens
        return torch.from_numpy(self._mode.layout(self._model.config, ids)[0])

    def _last_position(self, row: Row) -> torch.Tensor:
        """The position of the last token: [1], or [2, 1] for ChatGLM-6B."""
        last = len(row.request.prompt) + len(row.tokens) - 1
        return self._positions[row][..., last : last + 1]


class PaddedEngine:
    """A PaddedBatch with a thread; see `generation.request.Engine`.

    Args:
        max_tokens: maximum tokens of a prompt with its answer.
        others: see PaddedBatch.
    """

    def __init__(self, mode: Mode, model: LanguageModel, max_num_seqs: int, max_tokens: int, cache_tokens: int):
        self.max_tokens = min(max_tokens, cache_tokens)
        self._batch = PaddedBatch(mode, model, max_num_seqs, cache_tokens)
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it accepts requests."""
        return not self._closing

    @property
    def running(self) -> int:
        """Number of requests in the model's steps."""
        return self._batch.running

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return len(self._batch.waiting)

    def submit(self, request: Request, deliver: Callable[[Token | End], None]) -> None:
        """Queue a request. Raises ValueError if it can never fit."""
        check_length(request, self.max_tokens)
        row = Row(request, deliver)
        with self._changed:
            if self._closing:
                row.end(End("cancelled"))
                return
            self._batch.waiting.append(row)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """End a request; its row is free from the next step on."""
        batch = self._batch
        with self._changed:
            for row in [*batch.waiting, *batch.joining, *batch.rows]:
                if row.request is request:
                    row.end(End("cancelled"))
            batch.waiting = deque(row for row in batch.waiting if not row.ended)

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        last_words = End("error", "the engine has stopped")
        try:
            while self._wait():
                try:
                    self._batch.step()
                except RuntimeError as error:  # of torch, such as full memory
                    self._batch.end_all(End("error", str(error)))
            last_words = End("cancelled")
        finally:
            with self._changed:
                self._closing = True
            self._batch.end_all(last_words)
            for row in self._batch.waiting:
                row.end(last_words)
            self._batch.waiting.clear()

    def _wait(self) -> bool:
        """Wait for something to do, and let requests join. False to end the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._batch.waiting or self._batch.rows or self._closing)
            self._batch.admit()
            return not self._closing
