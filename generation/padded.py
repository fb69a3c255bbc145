"""Answer many requests at once in rows of a common cache; requests join and leave between steps.

For models without paged attention: ChatGLM-6B, whose prompts have bidirectional attention, and P-Tuning prefixes. A
prompt is computed alone, then its keys and values become a row of the cache, and each step adds a token to every row.

Shapes: r rows, v vocabulary.
"""

import threading
from collections import deque
from collections.abc import Callable

import torch

from generation.cache import batch_cache
from generation.request import End, Request, Token
from generation.row_cache import RowCache
from generation.sampling import Row, choose_tokens
from modes.mode import Mode
from modes.model import LanguageModel

STEP_PROMPT_TOKENS = 1024  # maximum tokens of the prompts that join in one step, unless the first alone has more


class PaddedEngine:
    """See the top of the file, and `generation.request.Engine`.

    Args:
        max_num_seqs: maximum number of requests at once.
        max_tokens: maximum tokens of a prompt with its answer.
        cache_tokens: maximum number of rows times the tokens of the longest, at the end of their answers.
    """

    def __init__(self, mode: Mode, model: LanguageModel, max_num_seqs: int, max_tokens: int, cache_tokens: int):
        self.max_tokens = min(max_tokens, cache_tokens)
        self._mode, self._model = mode, model
        self._max_num_seqs, self._cache_tokens = max_num_seqs, cache_tokens
        self._waiting: deque[Row] = deque()
        self._joining: list[Row] = []
        self._rows: list[Row] = []
        self._cache = RowCache()
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
        return len(self._rows) + len(self._joining)

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return len(self._waiting)

    def submit(self, request: Request, deliver: Callable[[Token | End], None]) -> None:
        """Queue a request. Raises ValueError if it can never fit."""
        check_length(request, self.max_tokens)
        row = Row(request, deliver)
        with self._changed:
            if self._closing:
                row.end(End("cancelled"))
                return
            self._waiting.append(row)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """End a request; its row is free from the next step on."""
        with self._changed:
            for row in [*self._waiting, *self._joining, *self._rows]:
                if row.request is request:
                    row.end(End("cancelled"))
            self._waiting = deque(row for row in self._waiting if not row.ended)

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        last_words = End("error", "the engine has stopped")
        try:
            while self._take_waiting():
                try:
                    with torch.inference_mode():
                        self._join()
                        self._step()
                except RuntimeError as error:  # of torch, such as full memory
                    self._end_all(End("error", str(error)))
            last_words = End("cancelled")
        finally:
            with self._changed:
                self._closing = True
            self._end_all(last_words)
            for row in self._waiting:
                row.end(last_words)

    def _take_waiting(self) -> bool:
        """Wait for something to do, then let those first in the queue join that fit. False to end the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._rows or self._closing)
            longest = max((final_length(row.request) for row in self._rows), default=0)
            prompts = 0
            while self._waiting and self.running < self._max_num_seqs:
                request = self._waiting[0].request
                longest = max(longest, final_length(request))
                prompts += len(request.prompt)
                if self._joining and prompts > STEP_PROMPT_TOKENS:
                    break
                if (self.running + 1) * longest > self._cache_tokens:
                    break
                self._joining.append(self._waiting.popleft())
            return not self._closing

    def _join(self) -> None:
        """Compute the prompts that join and choose the first token of their answers."""
        while self._joining:
            row = self._joining[0]
            if not row.ended:
                prompt = torch.tensor([row.request.prompt], device=self._model.device)
                output = self._model(input_ids=prompt, past_key_values=batch_cache(1), use_cache=True, logits_to_keep=1)
                choose_tokens(output.logits[:, -1].float(), [row])
                self._rows.append(row)
                self._cache.join(output.past_key_values)
            self._joining.pop(0)

    def _step(self) -> None:
        """Remove the rows that have ended, and add a token to every other."""
        for i in reversed(range(len(self._rows))):
            if self._rows[i].ended:
                self._cache.leave(i)
                self._rows[i] = self._rows[-1]
                self._rows.pop()
        if not self._rows:
            return
        device = self._model.device
        output = self._model(
            input_ids=torch.tensor([[row.tokens[-1]] for row in self._rows], device=device),
            position_ids=torch.stack([self._position(row) for row in self._rows]).to(device),
            attention_mask=self._cache.mask(device)[..., self._model.config.pre_seq_len or 0 :],  # the model adds these
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache.grow()
        choose_tokens(output.logits[:, -1].float(), self._rows)

    def _position(self, row: Row) -> torch.Tensor:
        """The position of the last token: [1], or [2, 1] for ChatGLM-6B."""
        ids = row.request.prompt + row.tokens
        return torch.from_numpy(self._mode.layout(self._model.config, ids)[0][..., -1:])

    def _end_all(self, end: End) -> None:
        """End the requests in the model's steps, and forget their cache."""
        for row in [*self._joining, *self._rows]:
            row.end(end)
        self._joining, self._rows, self._cache = [], [], RowCache()


def final_length(request: Request) -> int:
    """Tokens of a prompt with the longest answer."""
    return len(request.prompt) + request.max_new_tokens


def check_length(request: Request, max_tokens: int) -> None:
    """Raise ValueError if a prompt with the longest answer has more than `max_tokens` tokens."""
    if final_length(request) > max_tokens:
        raise ValueError(
            f"The prompt has {len(request.prompt)} tokens and max_new_tokens is {request.max_new_tokens}: at most "
            f"{max_tokens} tokens fit together."
        )
