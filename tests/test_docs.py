"""What the READMEs and docs/ say exists, parses and agrees."""

import re
import shlex
from pathlib import Path

import pytest

import merge_lora
from scripts.method_sizes import table
from tests.launch import REPOSITORY
from training import predict_options
from training.flags import FLAGS
from training.options import parse_options

ENGLISH, CHINESE = REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
READMES = [ENGLISH, CHINESE]
DOCUMENTS = [*READMES, ARCHITECTURE, REPOSITORY / "CHANGELOG.md"]
ids = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

REQUIRED = object()
TRAIN_NEEDS = ("model_name_or_path", "train_path", "output_dir")
PACKAGES = ("data", "modes", "methods", "training", "checkpoints", "generation", "evaluation", "memory", "doctor")
WORDS_OF_FILES = {"warmup_type"}  # keys of DeepSpeed files that the code need not know
FOREIGN = {"--help", "--index-url", "--master_port", "--launcher", "--work_dir", "--kills", "--minutes"}  # not ours
FOREIGN |= {"--shutdown-timeout", "--signal"}  # of torchrun and SLURM
FOREIGN |= {"--versions"}  # of scripts/test.sh
PARSERS = {
    "train.py": parse_options,
    "predict.py": predict_options.build_parser().parse_args,
    "merge_lora.py": merge_lora.build_parser().parse_args,
}


def train_defaults() -> dict:
    """Flag -> its default in train.py, or REQUIRED."""
    defaults = {}
    for flags in FLAGS.values():
        for name, arguments in flags.items():
            default = False if arguments.get("action") == "store_true" else arguments.get("default")
            defaults[name] = REQUIRED if name in TRAIN_NEEDS else default
    return defaults


def other_defaults(parser, needed: list[str]) -> dict:
    """The same of another program; `needed` are its required flags."""
    argv = [part for name in needed for part in (f"--{name}", "x")]
    return {**vars(parser.parse_args(argv)), **dict.fromkeys(needed, REQUIRED)}


DEFAULTS = {
    "train.py": train_defaults(),
    "predict.py": other_defaults(predict_options.build_parser(), ["model_path"]),
    "merge_lora.py": other_defaults(merge_lora.build_parser(), ["ori_model_dir", "model_dir"]),
}


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(document: Path) -> list[list[str]]:
    """Every command of the bash blocks as words, continued lines joined."""
    lines = [
        line
        for language, block in code_blocks(document)
        if language == "bash"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def headings(document: Path) -> list[int]:
    """The levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(document), re.M)]


def flag_tables(document: Path) -> dict[str, dict[str, str]]:
    """Program -> flag -> what the default column says."""
    sections = re.split(r"^### ", prose(document), flags=re.M)[1:]
    return {
        section.split("\n")[0]: dict(re.findall(r"^\| `--(\w+)` \| (.*?) \|", section.split("\n## ")[0], re.M))
        for section in sections
    }


def said(default) -> tuple[str, ...]:
    """How the READMEs write a default."""
    if default is REQUIRED:
        return ("required", "必填")
    if default is False:
        return ("off", "关")
    return ("none", "无") if default in (None, "", ()) else (f"`{default}`",)


def test_both_readmes_have_the_same_parts():
    assert headings(ENGLISH) == headings(CHINESE)
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)
    rows = [[line.count("|") for line in prose(document).splitlines() if line[:1] == "|"] for document in READMES]
    assert rows[0] == rows[1]
    code = [set(re.findall(r"`([^`\n]+)`", prose(document))) for document in READMES]
    assert code[0] - {"file:line"} == code[1] - {"文件:行号"}


@pytest.mark.parametrize("document", READMES, ids=lambda path: path.name)
@pytest.mark.parametrize("program", PARSERS)
def test_every_flag_and_its_default(document, program):
    documented, defaults = flag_tables(document)[program], DEFAULTS[program]
    assert list(documented) == list(defaults)
    for name, default in defaults.items():
        assert documented[name] in said(default), name


@ids
def test_every_flag_mentioned_exists(document):
    known = {f"--{name}" for defaults in DEFAULTS.values() for name in defaults} | FOREIGN
    mentioned = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", document.read_text(encoding="utf-8")))
    assert mentioned - known == set()


@ids
def test_every_command_parses(document):
    for words in commands(document):
        for program, parse in PARSERS.items():
            if program in words:
                parse(words[words.index(program) + 1 :])
        if "bash" in words:
            script = words[words.index("bash") + 1]
            assert (REPOSITORY / script).is_file(), script
            if script.startswith("scripts/recipes/"):
                parse_options(["--model_name_or_path", "x", *words[words.index(script) + 1 :]])
        if "python" in words:
            assert (REPOSITORY / words[words.index("python") + 1]).is_file(), words


def test_the_commands_are_all_there():
    programs = [word for words in commands(ENGLISH) for word in words if word in PARSERS]
    assert set(programs) == set(PARSERS)
    assert commands(ENGLISH)[:1] == [["bash", "scripts/quickstart.sh"]]


@ids
def test_every_path_mentioned_exists(document):
    text = prose(document)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    ours = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}
    for quoted in re.findall(r"`([^`\n]+)`", text):
        for word in quoted.split():
            is_path = re.fullmatch(r"[\w./-]+", word) and (
                word.split("/")[0] in ours if "/" in word else word.endswith((".cfg", ".toml", ".md", ".txt"))
            )
            if is_path and not (REPOSITORY / word).exists():
                missing.append(word)
    assert missing == []


def test_programs_in_the_layout_table_exist():
    layout = prose(ENGLISH).split("## Layout")[1].split("## Tests")[0]
    paths = [path for path in re.findall(r"`([^`]+)`", layout) if not path.startswith("--")]
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    assert set(PACKAGES) <= {path.rstrip("/") for path in paths}


@pytest.mark.parametrize("document", READMES, ids=lambda path: path.name)
def test_the_sizes_are_those_computed(document):
    assert "\n".join(table()) in document.read_text(encoding="utf-8")


def test_names_in_the_architecture_exist():
    """Functions and constants that docs/architecture.md names are in the code."""
    files = [path for part in ("*.py", *(f"{name}/**/*.py" for name in PACKAGES)) for path in REPOSITORY.glob(part)]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = {name for name in re.findall(r"`(\w+)`", prose(ARCHITECTURE)) if "_" in name or name.isupper()}
    assert len(named) > 20
    assert [name for name in sorted(named - WORDS_OF_FILES) if not re.search(rf"\b{name}\b", code)] == []
