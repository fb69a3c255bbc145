"""Terms to avoid in code and documents, and their replacements, in English and in Chinese."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import REPOSITORY

# Files by language; a pattern may take a whole tree. Of source files, everything is checked: prose, messages, names.
FILES = {
    "English": (
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "docs/**/*.md",
        ".github/**/*.md",
        "data/**/*.md",
        "scripts/**/*.sh",
        "*.py",
        "parallel/**/*.py",
        "training/**/*.py",
        "options/**/*.py",
        "checkpoints/**/*.py",
        "generation/**/*.py",
        "methods/**/*.py",
        "evaluation/**/*.py",
        "export/**/*.py",
        "chatting/**/*.py",
        "serving/**/*.py",
        "runs/**/*.py",
        "web/**/*.py",
        "data/**/*.py",
        "modes/**/*.py",
        "memory/**/*.py",
        "doctor/**/*.py",
        "scripts/**/*.py",
        "benchmarks/**/*.py",
        "tests/**/*.py",
    ),
    "Chinese": ("*.zh-CN.md", "docs/**/*.zh-CN.md"),
}
# Programs whose --help is English.
PROGRAMS = ("train.py", "predict.py", "merge_lora.py", "chat.py", "serve.py", "webui.py", "scripts/convert_data.py")

LONGEST_SENTENCE = 25  # words, code not counted
WORD = re.compile(r"[A-Za-z0-9][\w'’.-]*")
VALUE = "VALUE"  # stands for {…} of an f-string, which counts as one word

# What to write -> the patterns that it replaces. Case does not matter; a space matches any white space.
TERMS = {
    "English": {
        "fix, correct": [r"mend(s|ed|ing)?"],
        "quantize": [r"round(s|ed|ing)? (\w+ )?to \d+ bits", r"rounded (already|base|releases?|weights)"],
        "trained, supervised": [r"learnt"],
        "recompute": [r"comput(e|es|ed|ing) (\w+ ){0,3}(again|anew)"],
        "override, take precedence": [r"g[ia]ve(s|n)? way to", r"giving way to"],
        "mutually exclusive": [r"stands? beside", r"do(es)? not go together"],
        "resume, continue": [r"(go|goes|going|gone|went) on( with)?"],
        "peak memory": [r"fullest"],
        "DataLoader workers, background threads": [r"puts? batches together"],
        "number of epochs": [r"times (that )?every record is seen"],
        "fraction of steps": [r"share of (all )?(the )?steps"],
        "learning-rate schedule": [r"course of the (learning )?rate"],
        "the N most recent": [r"keep this many", r"the newest ones"],
        "per rank, per GPU": [r"of (a|one) (rank|card)"],
        "in alternation": [r"by turns", r"takes? turns"],
        "unknown option": [r"is no (flag|value|option) (or|that)"],
        "the metric that selects": [r"what tells"],
        "is scaled by": [r"counts? \w+ / \w+ times"],
        "again, from step 0": [r"anew"],
        "cannot be combined with": [r"do(es)? not go with"],
        "say what it does": [r"(is|are) told", r"hears? nothing", r"who is late"],
        "American spelling (-ize)": [
            r"\w*(optimi|initiali|normali|tokeni|quanti|recogni|utili|synchroni|seriali|summari|organi|minimi|maximi)"
            r"s(e|es|ed|er|ers|ing|ation|ations)"
        ],
        "American spelling": [r"(colour|behaviour|favour|neighbour|honour|licence|centre|artefact)\w*"],
    },
    "Chinese": {
        "基座": ["底座"],
        "提示词": ["提示(?!词)"],
        "loss": ["(?<!不)损失"],
        "训练轮数": ["看几遍", "学几遍"],
        "学习率调度": ["学习率的走法", "学习率计划", "学习率曲线"],
        "续训、断点续训": ["接着(学|训)"],
        "尚未支持": ["还没有的"],
        "快速开始": ["两条命令", "一路跑到"],
        "无需任何改动即可使用": ["下载下来是什么样"],
        "训练": ["学完", "学到的", "要学的"],
        "指标": ["按什么判断"],
        "NaN/Inf": ["不是有限(数|值)"],
        "原子写入": ["要么完整，要么没有"],
        "无人值守": ["放心离开"],
        "峰值": ["最满的时刻"],
    },
}


def pattern(language: str, term: str) -> re.Pattern:
    """A term of TERMS; English ones match whole words."""
    spaced = term.replace(" ", r"\s+")
    return re.compile(rf"\b(?:{spaced})\b" if language == "English" else spaced, re.IGNORECASE)


def words_of(path: Path) -> str:
    """What a file says: the prose of Markdown, without fenced blocks and code between backticks; else all of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        text = re.sub(r"`[^`]*`", "``", text)
    return text


def sentences(text: str) -> list[str]:
    """The sentences of a Markdown text without code; a colon or semicolon ends one, as do a line and a table's cell."""
    text = re.sub(r"\]\([^)]*\)", "]", text).replace("**", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    parts = [part for line in lines for part in (line.split("|") if line.startswith("|") else [line])]
    return [sentence for part in parts for sentence in re.split(r"(?<=[.!?:;])\s+", part)]


def texts_of(source: str) -> Iterator[str]:
    """The texts in a module's code: errors, notes, help. Not docstrings, and no regular expressions."""
    tree = ast.parse(source)
    parts: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            parts.add(node.value)  # a docstring
        elif isinstance(node, ast.JoinedStr):
            parts.update(node.values)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
            parts.update(node.args)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value


def long_sentences(source: str) -> list[str]:
    """The sentences of a module's texts, up to a full stop each, that have too many words."""
    parts = [part for text in texts_of(source) for part in re.split(r"(?<=[.!?])\s+", text)]
    return [part for part in parts if len(WORD.findall(part)) > LONGEST_SENTENCE]


def product_files() -> list[Path]:
    """The programs' sources, without those of tests, scripts and benchmarks."""
    sources = [path for path in files("English") if path.suffix == ".py"]
    return [path for path in sources if path.relative_to(REPOSITORY).parts[0] not in ("tests", "scripts", "benchmarks")]


def complaints(language: str, text: str) -> list[str]:
    """What is said that should not be, with its surroundings and what to write."""
    return [
        f"{text[max(0, match.start() - 40) : match.end() + 20]!r}: write {instead!r} instead of {match[0]!r}"
        for instead, terms in TERMS[language].items()
        for term in terms
        for match in pattern(language, term).finditer(text)
    ]


def files(language: str) -> list[Path]:
    """The files of a language, as FILES has them."""
    paths = {path for name in FILES[language] for path in REPOSITORY.glob(name)}
    paths.discard(Path(__file__).resolve())  # it has the terms
    return sorted(path for path in paths if language == "Chinese" or ".zh-CN" not in path.name)


@pytest.mark.parametrize(
    ("language", "path"),
    [
        pytest.param(language, path, id=path.relative_to(REPOSITORY).as_posix())
        for language in FILES
        for path in files(language)
    ],
)
def test_pages_use_the_standard_terms(language, path):
    assert complaints(language, words_of(path)) == []


@pytest.mark.parametrize(
    "page",
    [path for path in files("English") if path.suffix == ".md" and path.name != "CHANGELOG.md"],
    ids=lambda path: path.name,
)
def test_sentences_are_short(page):
    assert [text for text in sentences(words_of(page)) if len(WORD.findall(text)) > LONGEST_SENTENCE] == []


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_sentences_of_messages_and_help_are_short(path):
    assert long_sentences(path.read_text(encoding="utf-8")) == []


def test_a_long_sentence_is_found_in_each_kind_of_text():
    words = "word " * LONGEST_SENTENCE
    short = [
        '"""Doc ' + words + '"""',
        f'x = "{words}."',
        f'x = re.compile("{words} more")',
        f'x = "{words[:-1]}. More."',
    ]
    assert [long_sentences(source) for source in short] == [[], [], [], []]
    long = [f'raise UserError(f"{{x}} {words}")', f'help = ("{words}" "more")', f'x = "First. {words} more: {{x}}"']
    assert [len(long_sentences(source)) for source in long] == [1, 1, 1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_uses_the_standard_terms(program):
    environment = os.environ | {"COLUMNS": "1000"}
    printed = subprocess.run(
        [sys.executable, program, "--help"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "usage" in printed
    assert complaints("English", printed) == []


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("English", "the same command goes on from there"),
        ("English", "Layers are computed\nagain in backward."),
        ("English", "the optimiser state of one card"),
        ("English", "a base that is rounded to 4 bits"),
        ("Chinese", "加载底座"),
        ("Chinese", "截断提示，训练损失"),
    ],
)
def test_what_should_be_found_is_found(language, text):
    assert complaints(language, text)


@pytest.mark.parametrize(
    ("language", "text"),
    [("English", "Resume the run; goes online. Commend it."), ("Chinese", "基座、提示词、数据丢失")],
)
def test_standard_terms_are_accepted(language, text):
    assert not complaints(language, text)
