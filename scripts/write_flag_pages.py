"""Write docs/flags.md and docs/flags.zh-CN.md from the declarations of the flags.

python scripts/write_flag_pages.py
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from errors import run_program  # noqa: E402
from flags import Flag, flags_of  # noqa: E402
from options.chat import CHAT  # noqa: E402
from options.merge import MERGE  # noqa: E402
from options.parser import Program, default_text, read_command_line  # noqa: E402
from options.predict import PREDICT  # noqa: E402
from options.serve import SERVE  # noqa: E402
from options.train import TRAIN  # noqa: E402
from options.values import bounds  # noqa: E402
from options.webui import WEBUI  # noqa: E402

PROGRAM = Program("write_flag_pages.py", __doc__.split("\n")[0], ())
PROGRAMS = (TRAIN, PREDICT, MERGE, CHAT, SERVE, WEBUI)
REQUIRED = ("model_name_or_path", "train_path", "output_dir", "model_path")  # checked together with other flags
SECTIONS_ZH = {
    "model": "模型",
    "data": "数据",
    "columns": "数据的键",
    "steps": "步数",
    "optimizer": "优化器",
    "compute": "计算",
    "output": "输出",
    "evaluation": "评测",
    "safety": "安全",
    "freeze": "freeze",
    "ptuning": "ptuning",
    "lora": "lora",
    "all": "all",
    "accepted and ignored": "接受但不起作用",
    "questions": "提问",
    "generation": "生成",
    "as in 2023": "2023 年的参数名",
    "merging": "合并",
    "adapters": "适配器",
    "conversation": "对话",
    "server": "服务",
    "limits": "限制",
    "sampling": "采样",
    "page": "网页",
}
INTRO = {
    "en": """# Flags

[中文](flags.zh-CN.md)

Every flag of the programs, with its default. `--help` prints the same. All problems of a command line, the base and the
DeepSpeed file are reported at once, before any weights are loaded.

A flag can also be written `max_len=512`, or stand as a key in a file: `train.py --config run.yaml`. The command line
takes precedence over the file. A training run writes its complete `run.yaml` into `--output_dir`; starting from that
file alone is the same run. `--version` prints the version.

This page is written by `python scripts/write_flag_pages.py`.
""",
    "zh": """# 参数

[English](flags.md)

各程序的全部参数及其默认值，与 `--help` 的内容相同。命令行、基座和 DeepSpeed 文件中的所有问题会在加载权重之前一次报出。

参数也可以写成 `max_len=512`，或作为键写在文件里：`train.py --config run.yaml`；命令行优先于文件。
训练会把完整的 `run.yaml` 写入 `--output_dir`，只用这个文件启动就是同一次训练。`--version` 打印版本号。

本页由 `python scripts/write_flag_pages.py` 生成。
""",
}
WORDS = {
    "en": {"head": "| flag | default | |", "required": "required", "none": "none", "off": "off", "on": "on",
           "choices": " Choices: {}.", "bounds": " Bounds: {}.", "needs": " Needs {}.", "excludes": " Not with {}.",
           "synonyms": " Also {}."},
    "zh": {"head": "| 参数 | 默认 | |", "required": "必填", "none": "无", "off": "关", "on": "开",
           "choices": "可选：{}。", "bounds": "范围：{}。", "needs": "需要 {}。", "excludes": "不能与 {} 同用。",
           "synonyms": "也可写作 {}。"},
}  # fmt: skip
BOUNDS_ZH = {"at least": "≥", "greater than": ">", "at most": "≤", "less than": "<", " and ": "，"}
AFTER = {
    ("predict.py", "en"): """
Answers are written batch by batch to `FILE.part`. After a kill, the same command continues from there; it may have
another `--batch_size` unless it samples. `FILE` appears when it is complete, in the order of the records. An earlier
`FILE` stays until then. A record's own `prediction` is kept as `previous_prediction`.
""",
    ("predict.py", "zh"): """
答案按批写入 `FILE.part`。中途被杀掉后，用同一条命令即可从断点继续；不采样时 `--batch_size` 可以不同。
全部完成后 `FILE` 才出现，顺序与记录一致；在此之前，原有的 `FILE` 保持不变。
记录自带的 `prediction` 保留为 `previous_prediction`。
""",
}


def marked(text: str) -> str:
    """A sentence with flags and file names as code, for a cell of a table."""
    return re.sub(r"(--[a-z_]+|\b[\w/.-]+\.(?:md|json|jsonl|yaml)\b)", r"`\1`", text).replace("|", "\\|")


def default_of(flag: Flag, words: dict[str, str]) -> str:
    """The cell of a flag's default."""
    if flag.required or flag.name in REQUIRED and flag.default == "":
        return words["required"]
    if flag.kind is bool and flag.default is not None:
        return words["on" if flag.default else "off"]
    text = default_text(flag)
    return f"`{text}`" if text else words["none"]


def details(flag: Flag, language: str) -> str:
    """Choices, bounds and companions of a flag, in sentences."""
    words, limits = WORDS[language], bounds(flag)
    if language == "zh":
        for english, chinese in BOUNDS_ZH.items():
            limits = limits.replace(english, chinese)
    choices = ", ".join(f"`{choice}`" for choice in flag.choices)
    needs = flag.needs.replace("=", " ")
    parts = {
        "choices": choices,
        "bounds": limits,
        "needs": f"`--{needs}`" if needs else "",
        "excludes": f"`--{flag.excludes}`" if flag.excludes else "",
        "synonyms": ", ".join(f"`--{name}`" for name in flag.synonyms),
    }
    return "".join(words[key].format(text) for key, text in parts.items() if text)


def table(section: type, language: str) -> str:
    """The table of a section."""
    words = WORDS[language]
    lines = [words["head"], "|---|---|---|"]
    for flag in flags_of(section).values():
        text = marked(flag.help if language == "en" else flag.zh) + details(flag, language)
        lines.append(f"| `--{flag.name}` | {default_of(flag, words)} | {text} |")
    return "\n".join(lines) + "\n"


def chapter(program: Program, language: str) -> str:
    """A program's sections."""
    parts = [f"## {program.name}\n"]
    for section in program.sections:
        flags = flags_of(section)
        if flags:
            title = next(iter(flags.values())).section
            parts.append(f"### {title if language == 'en' else SECTIONS_ZH[title]}\n")
            parts.append(table(section, language))
    after = AFTER.get((program.name, language))
    return "\n".join([*parts, *([after.lstrip("\n")] if after else [])])


def pages() -> dict[Path, str]:
    """Path -> content of both pages."""
    paths = {"en": REPOSITORY / "docs" / "flags.md", "zh": REPOSITORY / "docs" / "flags.zh-CN.md"}
    return {
        path: "\n".join([INTRO[language], *(chapter(program, language) for program in PROGRAMS)])
        for language, path in paths.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write both pages."""
    read_command_line(PROGRAM, argv)
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
        print(page.relative_to(REPOSITORY))


if __name__ == "__main__":
    run_program(main)
