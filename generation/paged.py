"""Answer many requests at once through transformers' continuous batching, for ChatGLM2 and ChatGLM3.

Its requests have no seed, stop reasons, penalties, log-probabilities or constraints: a logits processor chooses the
tokens instead, by each request's own settings, and leaves transformers only one to take.

Shapes: r rows, v vocabulary.
"""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from generation.request import End, Request, Token, check_length, final_length
from generation.sampling import Row, choose_tokens
from modes.model import LanguageModel

PAGE = 64  # tokens
STEP_TOKENS = 512  # maximum tokens of a step; longer prompts take several
SPARE = 0.15  # share of the pages for prompts' starts that were computed before; transformers frees them if needed


class Chooser(ContinuousBatchingLogitsProcessor):
    """Chooses a step's tokens. A class, because transformers names the step's requests before it has their logits.

    rows: of the requests in transformers' hands, by their ids.
    """

    supported_kwargs: dict[str, type] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._step: list[Row | None] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill a step's argument, which is not used."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> torch.Tensor:
        """Remember a step's rows, in the order of its logits; None for a request that was cancelled just now."""
        self._step = [self.rows.get(future.state.request_id) for future in requests_with_new_token]
        return torch.zeros(len(self._step), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores [r, v] whose maxima are the chosen tokens."""
        places = [i for i, row in enumerate(self._step) if row]
        chosen = choose_tokens(scores[places], [row for row in self._step if row])
        only = torch.zeros_like(scores)
        only[places, chosen] = 1
        return only


class PagedEngine:
    """See the top of the file, and `generation.request.Engine`.

    Args:
        model: not wrapped. Its attention must be sdpa or flash.
        max_num_seqs: maximum number of requests at once.
        max_tokens: maximum tokens of a prompt with its answer.
        cache_tokens: maximum tokens of all requests at once, at the end of their answers.

    Raises:
        MemoryError: there is no room for the cache.
    """

    def __init__(self, model: LanguageModel, max_num_seqs: int, max_tokens: int, cache_tokens: int):
        self._pages = max(1, cache_tokens // PAGE)
        self.max_tokens = min(max_tokens, self._pages * PAGE)
        self._max_num_seqs = max_num_seqs
        self._chooser = Chooser()
        self._waiting: deque[Row] = deque()
        self._ids = itertools.count()
        self._closing = False
        self._lock = threading.RLock()
        self._manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1),
            ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=math.ceil(self._pages / (1 - SPARE)),
                safety_margin=SPARE,
                max_batch_tokens=STEP_TOKENS,
                max_requests_per_batch=max_num_seqs,
                max_memory_percent=1.0,
                use_async_batching=False,  # a step's tokens are known only after the processor has chosen them
                use_cuda_graph=False,  # replaying a graph does not call the processor
            ),
        )
        self._manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self._chooser]))
        self._manager.logit_processor.tensors_required = 1
        self._manager.start()
        while self._manager.batch_processor is None:  # its thread makes the cache
            if not self._manager.is_running():
                raise MemoryError(str(self._manager.background_thread_status.fatal_error))
            time.sleep(0.01)
        self._watcher = threading.Thread(target=self._watch, name="engine", daemon=True)
        self._watcher.start()

    @property
    def alive(self) -> bool:
        """Whether it accepts requests."""
        return not self._closing

    @property
    def running(self) -> int:
        """Number of requests in the model's steps."""
        return len(self._chooser.rows)

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return len(self._waiting)

    def submit(self, request: Request, deliver: Callable[[Token | End], None]) -> None:
        """Queue a request. Raises ValueError if it can never fit."""
        check_length(request, self.max_tokens)
        row = Row(request, deliver)
        with self._lock:
            if self._closing:
                row.end(End("cancelled"))
                return
            self._waiting.append(row)
            self._admit()

    def cancel(self, request: Request) -> None:
        """End a request and free its place."""
        with self._lock:
            for row in self._waiting:
                if row.request is request:
                    row.end(End("cancelled"))
            self._waiting = deque(row for row in self._waiting if not row.ended)
            for name, row in list(self._chooser.rows.items()):
                if row.request is request:
                    self._manager.cancel_request(name)
                    del self._chooser.rows[name]
                    row.end(End("cancelled"))
            self._admit()

    def close(self) -> None:
        """Cancel all requests and end the threads; a second call does nothing."""
        self._end_all(End("cancelled"))
        if self._watcher.is_alive():  # else transformers warns that its thread has ended
            self._manager.stop(block=True, hard_stop=True)
            self._watcher.join()

    def _admit(self) -> None:
        """Hand the first requests in the queue to transformers if their answers are sure to fit."""
        used = sum(pages_of(row.request) for row in self._chooser.rows.values())
        while self._waiting and self.running < self._max_num_seqs:
            request = self._waiting[0].request
            used += pages_of(request)
            if used > self._pages:
                break
            name = str(next(self._ids))
            self._chooser.rows[name] = self._waiting.popleft()
            self._manager.add_request(
                request.prompt, name, request.max_new_tokens, eos_token_id=sorted(request.stop_ids) or -1
            )

    def _watch(self) -> None:
        """Free the places of finished requests, and end all if transformers' thread has failed."""
        while self._manager.is_running():
            output = self._manager.get_result(timeout=0.2)
            if output and output.is_finished():
                with self._lock:
                    row = self._chooser.rows.pop(output.request_id, None)
                    if row and output.error:
                        row.end(End("error", output.error))
                    self._admit()
        self._end_all(End("error", "the engine has stopped"))

    def _end_all(self, end: End) -> None:
        """End all requests, and accept no more."""
        with self._lock:
            self._closing = True
            for row in [*self._chooser.rows.values(), *self._waiting]:
                row.end(end)
            self._chooser.rows.clear()
            self._waiting.clear()


def pages_of(request: Request) -> int:
    """Pages of a prompt with the longest answer."""
    return -(-final_length(request) // PAGE)
