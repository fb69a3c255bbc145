"""Engines: many answers at once are those of one request after the other, whoever joins and leaves.

In float64, because a model with random weights has nearly equal logits, which float32 orders by chance.
"""

import queue
import time

import pytest
import torch
from transformers import GenerationConfig

from checkpoints.read import read_model
from generation import adapters
from generation.adapters import find_adapters, load_adapters
from generation.answerer import answer
from generation.engines import start_engine, token_bytes
from generation.models import load_answerer
from generation.padded import PaddedEngine
from generation.paged import STEP_TOKENS, PagedEngine
from generation.request import End, Request, Sampling, Token
from tests.golden import RECORDS, base_path
from tests.prepared import LORA, OPTIONS, checkpoint_of

EMBEDDING = {"pre_seq_len": 5, "prefix_projection": False, "prefix_layers": "embedding"}
CASES = [
    *((mode, method, OPTIONS[method]) for mode in ("glm", "glm2", "glm3") for method in OPTIONS),
    ("glm", "ptuning", EMBEDDING),
    ("glm2", "ptuning", EMBEDDING),
    ("glm2", "lora", LORA | {"lora_variant": "dora"}),
]


def answerer_of(mode, method, options, directory):
    answerer = load_answerer(checkpoint_of(mode, method, options, directory, noise=0.05), base_path(mode))
    answerer.model.double()
    return answerer


@pytest.fixture(scope="module")
def base():
    """The golden ChatGLM3 in float64."""
    answerer = load_answerer(base_path("glm3"))
    answerer.model.double()
    return answerer


@pytest.fixture(params=["paged", "padded"])
def engine(request, base):
    """Both engines, with room for four requests at once."""
    if request.param == "paged":
        started = PagedEngine(base.model, max_num_seqs=4, max_tokens=512, cache_tokens=2048)
    else:
        started = PaddedEngine(base.mode, base.model, max_num_seqs=4, max_tokens=512, cache_tokens=2048)
    yield started
    started.close()


class Answer:
    """What an engine delivers for a request."""

    def __init__(self, engine, request):
        self.request, self.events = request, queue.Queue()
        engine.submit(request, self.events.put)

    def wait(self):
        """(tokens, End)."""
        tokens = []
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, End):
                return tokens, event
            tokens.append(event)


def request_of(answerer, record, count=16, **sampling):
    stop = frozenset(answerer.mode.stop_ids(answerer.tokenizer))
    return Request(answerer.prompt_ids(record), count, stop, Sampling(**sampling))


def ids(tokens):
    return [token.id for token in tokens]


def expected_answers(answerer, records, count=16):
    generation = GenerationConfig(
        max_new_tokens=count,
        eos_token_id=answerer.mode.stop_ids(answerer.tokenizer),
        pad_token_id=answerer.tokenizer.pad_token_id,
    )
    return [answer(answerer, [answerer.prompt_ids(record)], generation)[0] for record in records]


@pytest.mark.parametrize("mode, method, options", CASES)
def test_answers_at_once_equal_those_of_prediction(mode, method, options, tmp_path):
    answerer = answerer_of(mode, method, options, tmp_path)
    records = RECORDS[:6] + [{"instruction": "你好" * n} for n in range(1, 30, 4)]
    engine = start_engine(answerer, max_num_seqs=5, max_tokens=1024, cache_bytes=2**30)
    assert isinstance(engine, PaddedEngine if mode == "glm" or method == "ptuning" else PagedEngine)
    answers = [Answer(engine, request_of(answerer, record)) for record in records]
    waited = [answer.wait() for answer in answers]
    engine.close()
    assert {end.reason for _, end in waited} <= {"length", "stop"}
    texts = [answerer.mode.answer_text(answerer.tokenizer, ids(tokens)) for tokens, _ in waited]
    assert texts == expected_answers(answerer, records)


def test_requests_that_join_and_leave_do_not_change_answers(engine, base):
    record = {"instruction": "今天天气怎么样？"}
    alone, end = Answer(engine, request_of(base, record, 60)).wait()
    assert end == End("length") and len(alone) == 60
    followed = Answer(engine, request_of(base, record, 60))
    others = []
    for n in range(9):  # more than fit at once
        others.append(Answer(engine, request_of(base, {"instruction": "问" * (1 + 37 * n % 50)}, 3 + 5 * n)))
        if n % 3 == 0:
            engine.cancel(others[-1].request)
    assert followed.wait() == (alone, end)
    ends = [answer.wait()[1].reason for answer in others]
    assert ends[0::3] == ["cancelled"] * 3 and set(ends) == {"cancelled", "length"}
    assert settled(engine)


def settled(engine):
    """Whether no request is left soon."""
    deadline = time.monotonic() + 10
    while engine.running or engine.waiting:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_cancelled_request_frees_its_place_at_once(engine, base):
    long = [Answer(engine, request_of(base, {"instruction": f"{n}"}, 400)) for n in range(4)]
    waiting = Answer(engine, request_of(base, {"instruction": "?"}, 2))
    assert isinstance(long[0].events.get(timeout=60), Token)
    engine.cancel(long[0].request)
    assert waiting.wait()[1] == End("length")
    assert all(other.events.qsize() < 400 for other in long[1:])  # still at work
    for other in long[1:]:
        engine.cancel(other.request)
        assert other.wait()[1] == End("cancelled")
    assert settled(engine)


def test_stop_tokens_end_an_answer_and_are_not_delivered(engine, base):
    tokens, _ = Answer(engine, request_of(base, {"instruction": "你好"})).wait()
    request = Request(base.prompt_ids({"instruction": "你好"}), 16, frozenset({tokens[5].id}))
    assert Answer(engine, request).wait() == (tokens[: ids(tokens).index(tokens[5].id)], End("stop"))


def test_a_seed_gives_the_same_answer_in_any_company(engine, base):
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 50}
    request = request_of(base, {"instruction": "写诗"}, seed=7, **options)
    alone = Answer(engine, request).wait()
    crowd = [Answer(engine, request_of(base, {"instruction": "写" * n}, seed=n, **options)) for n in range(1, 4)]
    assert Answer(engine, request_of(base, {"instruction": "写诗"}, seed=7, **options)).wait() == alone
    assert len({tuple(ids(answer.wait()[0])) for answer in crowd}) == 3
    assert Answer(engine, request_of(base, {"instruction": "写诗"}, seed=8, **options)).wait() != alone


def test_log_probabilities_are_those_of_the_model(engine, base):
    request = request_of(base, {"instruction": "你好"}, 4, logprobs=3, temperature=0.7, seed=1)
    tokens, _ = Answer(engine, request).wait()
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([request.prompt + ids(tokens)])).logits[0].float()
    rows = logits.log_softmax(dim=-1)[len(request.prompt) - 1 :]
    for token, row in zip(tokens, rows, strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
        values, best = row.topk(3)
        assert [i for i, _ in token.top] == best.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_a_request_that_cannot_fit_is_refused(engine, base):
    with pytest.raises(ValueError, match="at most 512 tokens fit together"):
        engine.submit(Request([5] * 500, 13, frozenset()), print)
    assert Answer(engine, Request([5] * 500, 12, frozenset())).wait()[1] == End("length")


def test_a_full_cache_makes_requests_wait(base):
    for small in (PagedEngine(base.model, 8, 128, 256), PaddedEngine(base.mode, base.model, 8, 128, 256)):
        answers = [Answer(small, Request([5 + n] * 60, 60, frozenset())) for n in range(5)]
        assert small.running <= 2 and small.waiting >= 3
        assert all(len(answer.wait()[0]) == 60 for answer in answers)
        small.close()


def test_closing_cancels_what_is_left(base):
    for closed in (PagedEngine(base.model, 1, 512, 512), PaddedEngine(base.mode, base.model, 1, 512, 512)):
        answers = [Answer(closed, request_of(base, {"instruction": "长"}, 400)) for _ in range(2)]
        assert isinstance(answers[0].events.get(timeout=60), Token)
        closed.close()
        assert [answer.wait()[1] for answer in answers] == [End("cancelled")] * 2
        assert Answer(closed, request_of(base, {"instruction": "晚"})).wait() == ([], End("cancelled"))


def test_a_failed_engine_ends_every_request(base):
    """A token that is not in the vocabulary, which the caller must refuse, stops an engine."""
    for broken in (PagedEngine(base.model, 2, 512, 1024), PaddedEngine(base.mode, base.model, 2, 512, 1024)):
        answers = [Answer(broken, request_of(base, {"instruction": "长"}, 300)) for _ in range(3)]
        bad = Answer(broken, Request([10**6], 5, frozenset()))
        assert bad.wait()[1].reason == "error"
        assert {answer.wait()[1].reason for answer in answers} <= {"error", "length"}
        assert Answer(broken, request_of(base, {"instruction": "晚"})).wait()[1].reason in ("error", "cancelled")
        broken.close()


def test_adapters_share_the_weights_of_the_base(tmp_path):
    whole = LORA | {"modules_to_save": ("output_layer",)}
    directories = {
        "a": checkpoint_of("glm2", "lora", OPTIONS["lora"], tmp_path / "a", noise=0.05),
        "b": checkpoint_of("glm2", "lora", whole, tmp_path / "b", noise=0.05),
    }
    found = find_adapters(read_model(base_path("glm2")), directories)
    base, loaded = load_adapters(*found)
    alone = {name: load_answerer(directory, base_path("glm2")) for name, directory in directories.items()}
    alone["base"] = load_answerer(base_path("glm2"))
    for name, answerer in {**loaded, "base": base}.items():
        assert expected_answers(answerer, RECORDS[:3]) == expected_answers(alone[name], RECORDS[:3]), name
    pointers = [
        {parameter.data_ptr() for name, parameter in answerer.model.named_parameters() if "lora_" not in name}
        for answerer in (base, *loaded.values())
    ]
    assert pointers[1] == pointers[0] and len(pointers[2] - pointers[0]) == 1  # b has its own output layer


def test_what_is_no_adapter_of_the_base_is_refused_before_weights_load(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "load_model", None)
    freeze = checkpoint_of("glm2", "freeze", OPTIONS["freeze"], tmp_path / "freeze")
    other = checkpoint_of("glm3", "lora", OPTIONS["lora"], tmp_path / "other")
    base = read_model(base_path("glm2"))
    with pytest.raises(ValueError) as raised:
        find_adapters(base, {"x": freeze, "y": tmp_path / "none"})
    assert len(raised.value.sentences) == 2 and "--lora x=" in str(raised.value)
    with pytest.raises(ValueError, match="--lora y: the checkpoint was trained on a glm3 base"):
        find_adapters(base, {"y": other})
    with pytest.raises(ValueError, match="needs a base"):
        find_adapters(read_model(other), {"y": other})


def test_bytes_of_a_token_are_those_of_the_cache(base):
    output = base.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    mask = STEP_TOKENS * torch.float64.itemsize
    assert (token_bytes(base.mode, base.model.config, torch.float64) - mask) * 3 == stored


def test_a_cache_beyond_the_memory_is_refused(base):
    with pytest.raises(MemoryError):
        PagedEngine(base.model, max_num_seqs=4, max_tokens=512, cache_tokens=2**36)
