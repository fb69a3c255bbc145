"""The page's texts: both languages complete, the same placeholders, each of them used, none missing."""

import json
import re

import pytest

from tests.launch import REPOSITORY

STATIC = REPOSITORY / "web" / "static"
TABLES = json.loads((STATIC / "texts.json").read_text(encoding="utf-8"))
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.js")))
TEXTS = {f"{tab}.{name}": pair for tab, table in TABLES.items() for name, pair in table.items()}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_is_there_in_both_languages(key):
    english, chinese = TEXTS[key]
    assert english.strip() and not CHINESE.search(english)
    assert chinese.strip() and (CHINESE.search(chinese) or chinese == english)
    assert sorted(re.findall(r"\{\d\}", english)) == sorted(re.findall(r"\{\d\}", chinese))


def test_few_texts_are_the_same_in_both_languages():
    same = [key for key, (english, chinese) in TEXTS.items() if english == chinese]
    assert len(same) <= 5


def test_every_key_in_the_modules_has_a_text():
    named = set(re.findall(r'\bt\(\s*"(\w+\.[^"]+)"', SOURCES))
    assert named and named <= set(TEXTS)


def test_every_text_is_used():
    """By its key, by its name, or by a name that is put together, such as train.section.NAME."""
    composed = {prefix for prefix in re.findall(r"`(\w+\.(?:\w+\.)?)\$\{", SOURCES)}
    quoted = set(re.findall(r"""["'`]([\w. ]+)["'`]""", SOURCES)) | set(re.findall(r"\b(\w+):", SOURCES))
    unused = [key for key in TEXTS if key not in quoted and not any(key.startswith(prefix) for prefix in composed)]
    assert unused == []


def test_pages_are_texts_only():
    """Nothing is parsed as HTML, and nothing comes from elsewhere."""
    pages = SOURCES + (STATIC / "index.html").read_text(encoding="utf-8") + (STATIC / "style.css").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", pages)
    assert re.findall(r"(?:https?:)?//\w[\w.-]+\.\w+", re.sub(r"^\s*//.*$", "", pages, flags=re.M)) == []
