"""texts.py: a user's values in messages are shortened, printable and recognizable; counts have the right plural."""

import pytest

from texts import LONG, SHORT, UNPRINTABLE, counted, one_line, quote, quote_text, shortened, shown


def test_shortened_marks_what_it_cut():
    assert shortened("abc", 3) == "abc" and shortened("abcd", 3) == "abc…"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/训练.json", "data/训练.json"),
        ("", "''"),
        ("a\nb", r"'a\nb'"),
        ("a\ud800", r"'a\ud800'"),
        ("a\u2028b", r"'a\u2028b'"),
        ("x" * (LONG + 1), "x" * LONG + "…"),
    ],
)
def test_values_are_shown_as_given_where_they_print(text, expected):
    assert shown(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (None, "null"),
        ({"stage": "四"}, '{"stage": "四"}'),
        ('say "x"\n', r'"say \"x\"\n"'),
        ("\ud800\x7f", r'"\ud800\x7f"'),
        ([1] * SHORT, "[" + "1, " * 26 + "1…"),
        (float("inf"), "Infinity"),
    ],
)
def test_json_values_are_quoted_as_in_their_file(value, expected):
    assert quote(value) == expected
    assert not UNPRINTABLE.search(quote(value))


def test_texts_are_quoted_and_escaped():
    assert quote_text('{"a": 1,\n') == r"""'{"a": 1,\n'""" and quote_text("y" * 81) == f"'{'y' * 80}…'"


def test_messages_fit_on_one_line():
    assert one_line(ValueError("no\n  such   key\ud800.\n")) == r"no such key\ud800"
    assert one_line("word " * 100, 8) == "word wor…"
    assert one_line(EOFError()) == "EOFError"
    stack = (
        "address in use\nException raised from listen at socket.cpp:1 (most recent call first):\nframe #0: c10::Error"
    )
    assert one_line(RuntimeError(stack)) == "address in use"


def test_counts_have_the_right_plural():
    counts = counted(1, "rank"), counted(0, "rank"), counted(1200, "rank"), counted(2, "batch", "batches")
    assert counts == ("1 rank", "0 ranks", "1,200 ranks", "2 batches") and counted(1, "batch", "batches") == "1 batch"
