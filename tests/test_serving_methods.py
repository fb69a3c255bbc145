"""Over HTTP, every method in every generation answers as predict.py, alone and among others.

In float64, because the weights are random; see tests/test_engines.py.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import serving.models
from conversation import messages_of, split_answer
from generation.models import load_model
from generation.prediction import answer_prompts
from options.predict import GenerationOptions
from tests.golden import RECORDS, base_path
from tests.prepared import checkpoint_of
from tests.servers import serving as running_server
from tests.test_engines import CASES, answerer_of

TOKENS = 12


def load_double(*arguments):
    """`load_model`, in float64."""
    answerer = load_model(*arguments)
    answerer.model.double()
    return answerer


def answered(server, record):
    """The answer over HTTP."""
    messages, _ = split_answer({"messages": messages_of(record)})
    response = server.chat(messages=messages, max_tokens=TOKENS)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("mode, method, options", CASES)
def test_answers_over_http_are_those_of_predict(mode, method, options, tmp_path, monkeypatch):
    monkeypatch.setattr(serving.models, "load_model", load_double)
    checkpoint = checkpoint_of(mode, method, options, tmp_path / "checkpoint", noise=0.05)
    answerer = answerer_of(mode, method, options, tmp_path / "again")
    prompts = [answerer.prompt_ids(record) for record in RECORDS]
    pairs = answer_prompts(answerer, prompts, GenerationOptions(max_new_tokens=TOKENS), frozenset())
    expected = {i: text for indices, texts in pairs for i, text in zip(indices, texts, strict=True)}
    flags = [] if method == "all" else ["--base_model", str(base_path(mode))]
    with running_server(mode, *flags, model_path=checkpoint) as server, ThreadPoolExecutor(33) as pool:
        assert answered(server, RECORDS[0]) == expected[0]
        crowd = [pool.submit(answered, server, RECORDS[n % len(RECORDS)]) for n in range(33)]
        assert [future.result() for future in crowd] == [expected[n % len(RECORDS)] for n in range(33)]
