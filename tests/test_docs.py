"""The README, docs/ and CONTRIBUTING: paths, flags, links and commands exist; both languages have the same parts."""

import re
from pathlib import Path

import pytest

from data.formats import FORMATS
from scripts.convert_data import CONVERT
from scripts.method_sizes import table
from tests.launch import REPOSITORY
from tests.pages import PROGRAMS, check_command, code_blocks, commands, headings, prose

ENGLISH, CHINESE = REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"
READMES = [ENGLISH, CHINESE]
DOCS = REPOSITORY / "docs"
ARCHITECTURE = DOCS / "architecture.md"
CONTRIBUTING = REPOSITORY / "CONTRIBUTING.md"


def chinese(page: Path) -> Path:
    """The Chinese page beside an English one."""
    return page.with_name(page.name.replace(".md", ".zh-CN.md"))


def name_of(page: Path) -> str:
    """A page's path in the repository, as the name of a test."""
    return page.relative_to(REPOSITORY).as_posix()


ALL_PAGES = sorted(DOCS.rglob("*.md"))
ENGLISH_PAGES = [
    page for page in (ENGLISH, CONTRIBUTING, REPOSITORY / "SECURITY.md", *ALL_PAGES) if ".zh-CN" not in page.name
]
DOCUMENTS = [page for english in ENGLISH_PAGES for page in (english, chinese(english))]
DOCUMENTS += [REPOSITORY / "CHANGELOG.md"]
ids = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)

FILES_OF_RUNS = {"note.txt"}
WORDS_OF_FILES = {"warmup_type"}  # keys of DeepSpeed files that the code need not know
FOREIGN = {"--help", "--config", "--version"}  # of every program
FOREIGN |= {"--index-url", "--master_port", "--launcher"}  # of pip and deepspeed
FOREIGN |= {"--shutdown-timeout", "--signal", "--gpus-per-node", "--gpus-per-task"}  # of torchrun and SLURM
FOREIGN |= {"--versions"}  # of scripts/test.sh
FOREIGN |= {"--served-model-name", "--max-model-len", "--enable-lora", "--max-lora-rank", "--lora-modules"}  # of vLLM
FOREIGN |= {"--tokenizer", "--generation-config", "--quantization", "--max-num-seqs"}  # of vLLM
FOREIGN |= {"--tensor-parallel-size"}  # of vLLM
FOREIGN |= {"--pipeline-parallel-size", "--tool-call-parser", "--api-key"}  # of vLLM
FOREIGN |= {"--model-path", "--tokenizer-path", "--context-length", "--tp-size", "--max-running-requests"}  # of SGLang
FOREIGN |= {"--json-model-override-args"}  # of SGLang
FOREIGN |= {"--jinja", "--no-repack"}  # of llama.cpp
FOREIGN |= {"--model-type", "--file", "--persist", "--model-name", "--model-engine", "--model-format"}  # of Xinference
FOREIGN |= {"--size-in-billions"}  # of Xinference
FLAGS_OF_TOOLS = {
    flag
    for folder in ("scripts", "benchmarks")
    for program in (REPOSITORY / folder).glob("*.py")
    for flag in re.findall(r'"(--\w+)"', program.read_text(encoding="utf-8"))
}
FLAGS_OF_TOOLS |= {
    f"--{name}"
    for folder in ("scripts", "benchmarks")
    for program in (REPOSITORY / folder).glob("*.py")
    for name in re.findall(r"^    (\w+): .* = \w*flag\(", program.read_text(encoding="utf-8"), re.M)
}


OUR_FLAGS = {
    f"--{name}"
    for program in (*PROGRAMS.values(), CONVERT)
    for flag in program.flags.values()
    for name in (flag.name, *flag.synonyms)
}


def without_comments(block: str) -> str:
    """A fenced block without the comment lines of a shell, which are translated."""
    return re.sub(r"^# .*\n", "", block, flags=re.M)


def anchors(document: Path) -> set[str]:
    """The fragments by which GitHub links to a document's headings: lower case, no punctuation, "-" for spaces."""
    names: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(document), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.append(f"{slug}-{names.count(slug)}" if slug in names else slug)
    return set(names)


@pytest.mark.parametrize("page", ENGLISH_PAGES, ids=name_of)
def test_both_languages_have_the_same_parts(page):
    """Headings, code, the shape of tables, and what stands between backticks."""
    pages = page, chinese(page)
    assert headings(pages[0]) == headings(pages[1])
    blocks = [
        [(language, without_comments(block)) for language, block in code_blocks(translation)] for translation in pages
    ]
    assert blocks[0] == blocks[1]
    rows = [[line.count("|") for line in prose(translation).splitlines() if line[:1] == "|"] for translation in pages]
    assert rows[0] == rows[1]
    code = [set(re.findall(r"`([^`\n]+)`", prose(translation).replace(".zh-CN", ""))) for translation in pages]
    assert code[0] - {"file:line"} == code[1] - {"文件:行号"}


@pytest.mark.parametrize("page", ENGLISH_PAGES, ids=name_of)
def test_both_languages_link_to_each_other(page):
    for here, there in ((page, chinese(page)), (chinese(page), page)):
        assert f"]({there.name})" in prose(here).split("\n## ")[0]


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_the_readme_is_short(readme):
    assert len(readme.read_bytes()) < 12_000


@pytest.mark.parametrize("language", ["", ".zh-CN"])
def test_the_index_lists_every_page(language):
    """Each page of docs/ in the index of its language, with a sentence behind the link."""
    index = DOCS / f"index{language}.md"
    listed = re.findall(r"^- \[[^\]]+\]\((\S+)\)[:：] ?\S.*[.。]$", prose(index), re.M)
    pages = {page.relative_to(DOCS).as_posix() for page in ALL_PAGES if (".zh-CN" in page.name) == bool(language)}
    assert pages - set(listed) == {index.name}
    assert len(listed) == len(set(listed))


@ids
def test_every_link_leads_somewhere(document):
    """Links to files of the repository exist, and so do the headings that they name."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


@ids
def test_every_flag_mentioned_exists(document):
    known = OUR_FLAGS | FOREIGN | FLAGS_OF_TOOLS
    mentioned = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", document.read_text(encoding="utf-8")))
    assert mentioned - known == set()


@ids
def test_every_command_parses(document):
    """Files of --config are those that an earlier command writes, and left out."""
    for words in commands(document):
        if "--config" in words:
            del words[words.index("--config") : words.index("--config") + 2]
        for name, program in PROGRAMS.items():
            if name in words:
                check_command(program, words[words.index(name) + 1 :])
        if "bash" in words:
            script = words[words.index("bash") + 1]
            assert (REPOSITORY / script).is_file(), script
            if script.startswith("scripts/recipes/"):
                check_command(PROGRAMS["train.py"], words[words.index(script) + 1 :])
        if "python" in words:
            assert (REPOSITORY / words[words.index("python") + 1]).is_file(), words


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_the_commands_are_all_there(readme):
    """An example for each program; the quickstart and the tests come first."""
    programs = [word for words in commands(readme) for word in words if word in PROGRAMS]
    assert set(programs) == set(PROGRAMS)
    assert commands(readme)[:2] == [["bash", "scripts/quickstart.sh"], ["bash", "scripts/test.sh"]]


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_the_recorded_output_has_the_headings_of_the_quickstart(readme):
    script = (REPOSITORY / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    titles = re.findall(r'^say "(.*)"$', script, re.M)
    patterns = [re.sub(r"\\\$\w+", r"\\S+", re.escape(title)) for title in titles]
    (recorded,) = [block for language, block in code_blocks(readme) if language == "text"]
    shown = re.findall(r"^== (.*)$", recorded, re.M)
    assert shown and [line for line in shown if not any(re.fullmatch(pattern, line) for pattern in patterns)] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_the_number_of_formats_is_that_of_the_code(readme):
    (number,) = re.findall(r"all (\d+) formats|全部 (\d+) 种格式", prose(readme))
    assert int("".join(number)) == len(FORMATS)


@ids
def test_every_path_mentioned_exists(document):
    text, missing = prose(document), []
    ours = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}
    for quoted in re.findall(r"`([^`\n]+)`", text):
        for word in re.sub(r"--output \S+", "", quoted).split():
            is_path = re.fullmatch(r"[\w./-]+", word) and (
                word.split("/")[0] in ours if "/" in word else word.endswith((".cfg", ".toml", ".md", ".txt"))
            )
            if is_path and word not in FILES_OF_RUNS and not (REPOSITORY / word).exists():
                missing.append(word)
    assert missing == []


@pytest.mark.parametrize("page", [CONTRIBUTING, chinese(CONTRIBUTING)], ids=name_of)
def test_the_layout_table_has_every_module_and_directory(page):
    """All of the top level, and nothing else."""
    rows = re.findall(r"^\| (`.*?`) \|", prose(page), re.M)
    listed = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    ignored = [line.strip("/") for line in (REPOSITORY / ".gitignore").read_text().splitlines()]
    there = {
        path.name + "/" * path.is_dir()
        for path in REPOSITORY.glob("[!.]*")
        if (path.is_dir() or path.suffix == ".py") and not any(path.match(pattern) for pattern in ignored)
    }
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("page", [DOCS / "methods.md", DOCS / "methods.zh-CN.md"], ids=name_of)
def test_the_sizes_are_those_computed(page):
    assert "\n".join(table()) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_the_sizes_in_the_readme_are_those_of_the_methods(readme):
    sizes = dict(re.findall(r"^\| (\w+) \|.*\| ([\d.]+ .B) \|$", "\n".join(table()), re.M))
    shown = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+ .B) \|$", prose(readme), re.M))
    assert shown == {method: sizes[method] for method in ("lora", "ptuning", "freeze", "all")}


@ids
def test_names_are_in_the_files_that_a_page_names(document):
    """`NAME` in `PATH.py`, in Chinese `PATH.py` 里的 `NAME`: PATH.py defines NAME."""
    text = prose(document)
    pairs = re.findall(r"`(\w+)` in `([\w/]+\.py)`", text)
    pairs += [(name, path) for path, name in re.findall(r"`([\w/]+\.py)` 里的 `(\w+)`", text)]
    code = {path: (REPOSITORY / path).read_text(encoding="utf-8") for _, path in pairs}
    assert [pair for pair in pairs if not re.search(rf"^ *(def |class |){pair[0]}\b", code[pair[1]], re.M)] == []


def test_names_in_the_architecture_exist():
    """Functions and constants that docs/architecture.md names are in the code."""
    files = [path for part in ("*.py", "[!.]*/**/*.py") for path in REPOSITORY.glob(part)]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files if "tests" not in path.parts)
    named = {name for name in re.findall(r"`(\w+)`", prose(ARCHITECTURE)) if "_" in name or name.isupper()}
    assert len(named) > 20
    assert [name for name in sorted(named - WORDS_OF_FILES) if not re.search(rf"\b{name}\b", code)] == []
