"""Answers with a kept cache: those of predict.py's code for the same conversation, with only new tokens computed."""

import os

import pytest
import torch

from chatting.answers import CachedModel
from generation.answerer import Answerer, answer
from generation.prediction import generation_config
from methods import METHODS
from modes import MODES
from options.predict import AnswerOptions
from tests import golden, prepared

QUESTIONS = ("水泵渗漏，怎么办？", "为什么？", "还有 😀 呢")
METHODS_TRIED = {
    "base": None,
    "lora": ("lora", {**prepared.OPTIONS["lora"]}),
    "prefix": ("ptuning", prepared.OPTIONS["ptuning"]),
    "embedding": ("ptuning", {**prepared.OPTIONS["ptuning"], "prefix_layers": "embedding"}),
}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


@pytest.fixture(params=METHODS_TRIED)
def answerer(request, mode):
    """A model of every generation, with nonzero adapters."""
    method = METHODS_TRIED[request.param]
    model = prepared.build(mode.name, method and method[0], **(method[1] if method else {})).eval()
    if method:
        torch.manual_seed(5)
        for parameter in prepared.trained(model).values():
            parameter.data += 0.3 * torch.randn_like(parameter)
        assert METHODS[method[0]]
    return Answerer(mode, golden.tokenizer(mode.name), model, {})


def base(name):
    return Answerer(MODES[name], golden.tokenizer(name), golden.shared_model(name), {})


def config_of(answerer, **options):
    options = AnswerOptions(**{"max_new_tokens": 12, **options})
    return generation_config(answerer.mode, answerer.tokenizer, options)


def fresh(answerer, prompt, seed=0, **options):
    """The answer of predict.py's code."""
    torch.manual_seed(seed)
    return answer(answerer, [prompt], config_of(answerer, **options))[0]


def conversation(answerer, answered):
    """The prompts of a conversation; `answered` answers each."""
    messages = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        prompt = answerer.prompt_ids({"messages": messages, "ready": False})
        text = answered(prompt)
        yield prompt, text
        messages.append({"role": "assistant", "content": text or "。"})


def count_tokens(model):
    """A list that gets the number of tokens of each forward pass, and the hook."""
    counts: list[int] = []
    body = next(module for module in model.modules() if hasattr(module, "make_positions"))

    def hook(module, arguments, keywords):
        counts.append(keywords["input_ids"].shape[1])

    return counts, body.register_forward_pre_hook(hook, with_kwargs=True)


def test_every_turn_equals_predict_and_computes_new_tokens_only(answerer):
    cached = CachedModel(answerer)
    counts, hook = count_tokens(answerer.model)
    known: list[int] = []  # ids that were computed

    def answered(prompt):
        running = cached.answer(prompt, config_of(answerer), seed=0)
        text = "".join(running)
        cached._last.join()
        shared = len(os.path.commonprefix([known, prompt[:-1]])) if answerer.mode.causal_prompt else 0
        assert counts == [len(prompt) - shared] + [1] * (len(running.ids) - 1)
        assert (running.speed.prompt, running.speed.cached) == (len(prompt), shared)
        known[:] = (prompt + running.ids)[:-1]
        counts.clear()
        return text

    answers = list(conversation(answerer, answered))
    hook.remove()
    assert len({len(prompt) for prompt, _ in answers}) == 3
    for prompt, text in answers:
        assert text == fresh(answerer, prompt)


def test_the_turn_after_an_interruption_equals_an_uninterrupted_one(mode):
    answerer = base(mode.name)
    cached, first = CachedModel(answerer), []

    def answered(prompt):
        running = cached.answer(prompt, config_of(answerer, max_new_tokens=200), seed=0)
        if first:
            return "".join(running)
        for piece in running:
            first.append(piece)
            if len(first) == 3:
                running.stop()
        assert running.interrupted and running.text == "".join(first) and len(first) == 3
        return running.text

    for prompt, text in list(conversation(answerer, answered))[1:]:
        assert text == fresh(answerer, prompt, max_new_tokens=200)


def test_an_answer_that_is_stopped_before_it_begins(mode):
    answerer = base(mode.name)
    cached = CachedModel(answerer)
    prompt = answerer.prompt_ids({"instruction": QUESTIONS[0]})
    slow = cached.answer(prompt, config_of(answerer, max_new_tokens=100), seed=0)
    waiting = cached.answer(prompt, config_of(answerer), seed=0)
    waiting.stop()
    slow.stop()
    assert list(waiting) == []
    assert "".join(cached.answer(prompt, config_of(answerer), seed=0)) == fresh(answerer, prompt)


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 9.0, "max_new_tokens": 40}, {"do_sample": True, "temperature": 1.5}]
)
def test_penalties_and_samples_are_those_without_a_cache(mode, options):
    answerer = base(mode.name)
    cached = CachedModel(answerer)

    def answered(prompt):
        return "".join(cached.answer(prompt, config_of(answerer, **options), seed=7))

    answers = list(conversation(answerer, answered))
    for prompt, text in answers:
        assert text == fresh(answerer, prompt, seed=7, **options)
    plain = {**options, "repetition_penalty": 1.0, "do_sample": False}
    assert any(text != fresh(answerer, prompt, **plain) for prompt, text in answers)


def test_an_error_of_the_model_reaches_the_reader_and_the_next_answer_is_whole():
    answerer = base("glm3")
    cached = CachedModel(answerer)
    prompt = answerer.prompt_ids({"instruction": QUESTIONS[0]})
    "".join(cached.answer(prompt, config_of(answerer), seed=0))

    def fail(module, arguments):
        raise MemoryError("full")

    hook = answerer.model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        list(cached.answer(prompt + prompt[2:], config_of(answerer), seed=0))
    hook.remove()
    longer = prompt + prompt[2:]
    assert "".join(cached.answer(longer, config_of(answerer), seed=0)) == fresh(answerer, longer)
