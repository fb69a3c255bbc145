"""The text of answers in pieces: always that of `Mode.answer_text`, and never half a character."""

import random
import time

import pytest

from generation.stream import AnswerStream
from modes import MODES
from tests import golden

# What each generation treats in a special way, and texts around it.
PARTS = [
    "你好", "天气", "。", "，", "😀", "👩‍👩‍👧", "龘", "é", "\ufffd", " ", "  ", "\n", "\n\n", "\t", " " * 9,
    "\r\n", "a", "the", " the", " n't", " 's", " '", " ' ", "' s", " .", ".", " ?", "!", "n", "t", "<n>", "<|tab|>",
    "<|blank_3|>", "<|blank_", "80|>", "<", "|>", "get_weather", "get_weather\n", "```python\n", "```", "`",
    "tool_call(city='北京')", "\n```python\ntool_call(a=1)\n```", "\n ```python\n", "python", "x = 1", "\u3000",
]  # fmt: skip


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


def pieces_of(mode, ids, rng, stop=()):
    """The pieces of an answer that arrives one to three ids at a time, and its stream."""
    stream, pieces, at = AnswerStream(mode, golden.tokenizer(mode.name), stop), [], 0
    while at < len(ids):
        count = rng.choice((1, 1, 1, 2, 3))
        pieces.append(stream.feed(ids[at : at + count]))
        at += count
    return [*pieces, stream.finish()], stream


def random_text(rng):
    return "".join(rng.choice(PARTS) for _ in range(rng.randint(0, 12)))


def test_pieces_of_random_texts_are_the_answer(mode):
    rng, tokenizer = random.Random(0), golden.tokenizer(mode.name)
    for _ in range(1500):
        ids = tokenizer.encode_texts([random_text(rng)], num_threads=1)[0]
        pieces, _ = pieces_of(mode, ids, rng)
        assert "".join(pieces) == mode.answer_text(tokenizer, ids), ids


def test_pieces_of_random_ids_are_the_answer(mode):
    """Any ids: unknown ones, commands, and bytes that are no character."""
    rng, tokenizer = random.Random(1), golden.tokenizer(mode.name)
    special = [*tokenizer.markers.values(), tokenizer.pad_token_id, 0, 1, tokenizer.vocab_size + 2]
    stop = set(mode.stop_ids(tokenizer))
    some_bytes = [i for i in range(tokenizer.vocab_size) if tokenizer.convert_ids_to_tokens(i).startswith("<0x")]
    assert len(some_bytes) == 256
    blanks = tokenizer.encode_texts([" ", "\n", "a '", " n", "<", "`"], num_threads=1)
    for _ in range(1500):
        kinds = (some_bytes[128:], some_bytes, special, range(tokenizer.vocab_size), rng.choice(blanks))
        ids = [rng.choice(rng.choice(kinds)) for _ in range(rng.randint(0, 14))]
        ids = [i for i in ids if i not in stop or rng.random() < 0.1]
        pieces, _ = pieces_of(mode, ids, rng)
        assert "".join(pieces) == mode.answer_text(tokenizer, ids), ids


def test_no_piece_has_half_a_character(mode):
    """tests/test_chatting_screen.py shows 10,000 such answers in a terminal."""
    rng, tokenizer = random.Random(2), golden.tokenizer(mode.name)
    characters = [chr(rng.randrange(0x4E00, 0x9FA6)) for _ in range(300)] + list("😀🎉🇨🇳👍🏽龘é")
    texts = ["".join(rng.choices(characters, k=rng.randint(1, 12))) for _ in range(500)]
    for text, ids in zip(texts, tokenizer.encode_texts(texts, num_threads=1), strict=True):
        stream = AnswerStream(mode, tokenizer)
        pieces = [stream.feed([i]) for i in ids] + [stream.finish()]
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces)
        assert not pieces[-1], "nothing of such a text has to wait for its end"


def test_a_plain_answer_streams_at_once(mode):
    tokenizer = golden.tokenizer(mode.name)
    stream = AnswerStream(mode, tokenizer)
    for character in "今天天气很好我们去散步":
        ids = [i for i in tokenizer.encode_texts([character], num_threads=1)[0] if tokenizer.decode([i])]
        assert stream.feed(ids) == character


def test_stop_strings_are_found_across_pieces(mode):
    rng, tokenizer = random.Random(3), golden.tokenizer(mode.name)
    found = 0
    for _ in range(1000):
        ids = tokenizer.encode_texts([random_text(rng)], num_threads=1)[0]
        stop = rng.sample(["好", "你好天", "the the", "ab", " '", "\n\n", "。，", "x = 1", ""], k=rng.randint(1, 4))
        pieces, stream = pieces_of(mode, ids, rng, stop)
        answer = mode.answer_text(tokenizer, ids)
        ends = [answer.find(string) for string in stop if string and string in answer]
        assert "".join(pieces) == (answer[: min(ends)] if ends else answer)
        assert stream.stopped == bool(ends)
        found += bool(ends)
    assert found > 150


def test_whether_an_answer_may_be_a_call():
    tokenizer = golden.tokenizer("glm3")

    def may_be(text, mode="glm3"):
        stream = AnswerStream(MODES[mode], tokenizer)
        stream.feed(tokenizer.encode_texts([text], num_threads=1)[0])
        return stream.may_be_call

    assert may_be("") and may_be("get_weather") and may_be("get_weather\n```python\ntool_call(")
    assert not may_be("\n今天") and not may_be("今天 天气") and not may_be("a `b")
    assert not may_be("get_weather", "glm2")


def test_time_grows_with_the_length_only(mode):
    """Ten times the tokens take about ten times as long, of whatever kind they are."""
    tokenizer = golden.tokenizer(mode.name)
    for text in ("今天天气很好。", "😀", "it 's ", " ", "<p", "a\n"):

        def seconds(repeats, text=text):
            ids = tokenizer.encode_texts([text * repeats], num_threads=1)[0]
            stream, start = AnswerStream(mode, tokenizer), time.process_time()
            for i in ids:
                stream.feed([i])
            stream.finish()
            return time.process_time() - start

        seconds(20)
        assert seconds(500) < 40 * seconds(50) + 0.05, text
