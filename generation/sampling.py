"""Choose the next token of each answer in an engine's step, by its own settings, and deliver it.

Shapes: r rows (answers), v vocabulary.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from generation.request import End, Request, Sampling, Token

CANDIDATES = 256  # most likely tokens to look at first: sorting all of them would take most of a step's time


class Row:
    """A request in an engine, and its answer so far."""

    def __init__(self, request: Request, deliver: Callable[[Token | End], None]):
        self.request = request
        self.tokens: list[int] = []
        self._deliver = deliver
        self._lock = threading.Lock()
        self._ended = False

    @cached_property
    def generator(self) -> torch.Generator:
        """Made at the first draw, because it takes 5 kB; a CPU's, so that a seed draws the same on every device."""
        generator, seed = torch.Generator(), self.request.sampling.seed
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed % 2**64)
        return generator

    @property
    def ended(self) -> bool:
        """Whether its End was delivered."""
        return self._ended

    @property
    def is_plain(self) -> bool:
        """Whether the most likely token is all that is asked for."""
        return self.request.constraint is None and self.request.sampling == Sampling(seed=self.request.sampling.seed)

    def end(self, end: End) -> None:
        """Deliver the End, unless one was delivered before."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._deliver(end)

    def add(self, token: Token) -> None:
        """Deliver a token, or the End that it causes."""
        if self._ended:
            return
        self.tokens.append(token.id)
        if token.id in self.request.stop_ids:
            self.end(End("stop"))
            return
        if self.request.constraint:
            self.request.constraint.accept(token.id)
        self._deliver(token)
        if len(self.tokens) == self.request.max_new_tokens:
            self.end(End("length"))


def choose_tokens(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row, which is also delivered.

    Args:
        logits: [r, v], float32. It is not changed.
    """
    likeliest = logits.argmax(dim=-1).tolist()
    chosen = []
    for row, scores, best in zip(rows, logits, likeliest, strict=True):
        token = Token(best) if row.is_plain else choose(scores, row)
        row.add(token)
        chosen.append(token.id)
    return chosen


def choose(logits: torch.Tensor, row: Row) -> Token:
    """The next token of one row by its settings: logits [v]."""
    sampling = row.request.sampling
    scores = processed(logits, row)
    if sampling.temperature:
        token = draw(scores / sampling.temperature, sampling.top_k, sampling.top_p, row.generator)
    else:
        token = int(scores.argmax())
    if sampling.logprobs is None:
        return Token(token)
    logprobs = logits.log_softmax(dim=-1)
    values, ids = logprobs.topk(sampling.logprobs)
    return Token(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def processed(logits: torch.Tensor, row: Row) -> torch.Tensor:
    """The logits [v] after penalties, bias and constraint, in this order."""
    request, sampling = row.request, row.request.sampling
    scores = logits
    if sampling.repetition_penalty != 1:
        before = torch.tensor([request.prompt + row.tokens], device=scores.device)
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(before, scores[None])[0]
    if row.tokens and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = torch.bincount(torch.tensor(row.tokens), minlength=len(scores)).to(scores.device)
        scores = scores - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=scores.device)
        scores = scores.index_add(0, ids, torch.tensor(list(sampling.logit_bias.values()), device=scores.device))
    if request.constraint:
        allowed = request.constraint.allowed()
        known = scores[: len(allowed)].masked_fill(~allowed.to(scores.device), -torch.inf)
        scores = torch.cat([known, torch.full_like(scores[len(allowed) :], -torch.inf)])
    return scores


def draw(scores: torch.Tensor, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """A token drawn from the softmax of scores [v], restricted by top-k, then top-p (https://arxiv.org/abs/1904.09751).

    As transformers' top-k and top-p, except that of equal scores at the limit of top_k only the first are drawn.
    """
    k = min(top_k, len(scores)) if top_k else len(scores)
    count = min(k, max(CANDIDATES, top_k)) if top_p < 1 or top_k else k
    while True:
        values, ids = scores.topk(count)  # best first
        total = values.logsumexp(dim=0) if top_k else scores.logsumexp(dim=0)
        mass = (values - total).exp().double().cumsum(dim=0)
        if count == k or mass[-1] >= top_p:
            break
        count = min(k, count * 16)
    kept = int((mass < top_p).sum()) + 1  # with the token that reaches it
    mass = mass[:kept]
    point = torch.rand(1, dtype=torch.float64, generator=generator).to(mass.device) * mass[-1]
    return int(ids[min(int(torch.searchsorted(mass, point, right=True)), len(mass) - 1)])
