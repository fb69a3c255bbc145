"""The formats of records: the table of docs/data.md and docs/data.zh-CN.md.

python scripts/data_formats.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data.formats import FORMATS, HISTORY_KEYS, SYSTEM_KEYS, TOOLS_KEYS  # noqa: E402
from data.messages import ROLE_NAMES  # noqa: E402
from errors import run_program  # noqa: E402
from options.parser import Program, read_command_line  # noqa: E402

PROGRAM = Program("data_formats.py", __doc__.split("\n")[0], ())


def listed(keys, between=", ") -> str:
    """Keys in code quotes."""
    return between.join(f"`{key}`" for key in keys) or "–"


def table() -> str:
    """A line per format, in the order of precedence: keys of the question, those that may be missing, of the answer."""
    lines = ["| | | | | |", "|---|---|---|---|---|"]
    for number, record_format in enumerate(FORMATS, 1):
        needed = record_format.question[: record_format.needed]
        optional = record_format.question[record_format.needed :]
        answer = listed(record_format.answer, " / ") if record_format.answer else "–"
        lines.append(f"| {number} | `{record_format.name}` | {listed(needed)} | {listed(optional)} | {answer} |")
    return "\n".join(lines)


def further() -> str:
    """Keys that any format may have in addition to its own."""
    return ", ".join(listed(keys) for keys in (SYSTEM_KEYS, HISTORY_KEYS, TOOLS_KEYS))


def roles() -> str:
    """Names of roles, by role."""
    names: dict[str, list[str]] = {}
    for name, role in ROLE_NAMES.items():
        names.setdefault(role, []).append(name)
    return "\n".join(f"| {role} | {listed(names[role])} |" for role in names)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    read_command_line(PROGRAM, argv)
    print(table(), further(), roles(), sep="\n\n")


if __name__ == "__main__":
    run_program(main)
