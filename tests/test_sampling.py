"""Choosing tokens: as transformers' processors, by each row's own settings."""

import collections

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from generation.request import End, Request, Sampling, Token
from generation.sampling import CANDIDATES, Row, choose_tokens, draw


def row_of(prompt=(1, 2), count=100, stop=(), constraint=None, **sampling):
    events = []
    return Row(Request(list(prompt), count, frozenset(stop), Sampling(**sampling), constraint), events.append), events


def drawn(scores, top_k, top_p, times):
    generator = torch.Generator().manual_seed(0)
    return collections.Counter(draw(scores, top_k, top_p, generator) for _ in range(times))


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (5, 1.0), (0, 0.6), (0, 0.999), (8, 0.7), (3, 0.05), (600, 0.99)])
@pytest.mark.parametrize("flatness", [0.3, 3.0])
def test_tokens_are_drawn_from_the_distribution_of_transformers(top_k, top_p, flatness):
    """With few tokens, and with more than those looked at first."""
    for v in (20, 3 * CANDIDATES):
        scores = torch.randn(v, generator=torch.Generator().manual_seed(v)) / flatness
        kept = scores[None]
        if top_k:
            kept = TopKLogitsWarper(min(top_k, v))(None, kept)
        if top_p < 1:
            kept = TopPLogitsWarper(top_p)(None, kept)
        probabilities = kept[0].softmax(dim=-1)
        counts = drawn(scores, top_k, top_p, times=4000)
        assert all(probabilities[token] > 0 for token in counts)
        observed = torch.tensor([counts[token] / 4000 for token in range(v)])
        assert (observed - probabilities).abs().max() < 0.04


def test_each_row_has_its_own_settings():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(5, -1).contiguous()
    greedy, _ = row_of()
    banned, _ = row_of(logit_bias={1: -100.0})
    repeated, _ = row_of(prompt=[1], repetition_penalty=2.0)
    hot, _ = row_of(temperature=1000.0, seed=3)
    told, events = row_of(logprobs=2)
    chosen = choose_tokens(logits, [greedy, banned, repeated, hot, told])
    assert chosen[:3] == [1, 2, 2] and chosen[4] == 1
    assert [row.tokens for row in (greedy, banned, repeated, hot, told)] == [[token] for token in chosen]
    expected = logits[0].log_softmax(dim=-1)
    assert events[0].logprob == pytest.approx(float(expected[1]))
    assert events[0].top == ((1, pytest.approx(float(expected[1]))), (2, pytest.approx(float(expected[2]))))
    assert logits.eq(torch.tensor([0.0, 3.0, 2.0, 1.0])).all(), "logits are not changed"


def test_frequency_and_presence_penalties_count_the_answer_alone():
    logits = torch.tensor([[1.0, 0.8, 0.0]])
    for sampling, expected in (
        ({"presence_penalty": 0.3}, [0, 1, 0, 0]),
        ({"frequency_penalty": 0.15}, [0, 0, 1, 0]),
        ({}, [0, 0, 0, 0]),
    ):
        row, _ = row_of(prompt=[0, 0, 0], **sampling)
        assert [choose_tokens(logits, [row])[0] for _ in range(4)] == expected


class OnlyOdd:
    """A constraint over four of five tokens: odd numbers, until two were accepted; then 0."""

    def __init__(self):
        self.accepted = []

    def allowed(self):
        done = len(self.accepted) == 2
        return torch.tensor([done, not done, False, not done])

    def accept(self, token):
        self.accepted.append(token)


def test_a_constraint_is_followed_to_its_end():
    constraint = OnlyOdd()
    row, events = row_of(constraint=constraint, stop=[0])
    logits = torch.tensor([[0.0, 1.0, 5.0, 2.0, 9.0]])
    assert [choose_tokens(logits, [row])[0] for _ in range(3)] == [3, 3, 0]
    assert constraint.accepted == [3, 3]
    assert events == [Token(3), Token(3), End("stop")]


def test_a_row_ends_once():
    row, events = row_of(count=2)
    logits = torch.tensor([[0.0, 1.0]])
    for _ in range(3):
        choose_tokens(logits, [row])
    row.end(End("cancelled"))
    assert events == [Token(1), Token(1), End("length")]


def test_the_same_seed_draws_the_same_tokens():
    logits = torch.zeros(1, 1000)
    answers = []
    for seed in (5, 5, 6, None, None):
        row, _ = row_of(temperature=1.0, seed=seed)
        answers.append([choose_tokens(logits, [row])[0] for _ in range(5)])
    assert answers[0] == answers[1] and len({tuple(answer) for answer in answers}) == 4
