"""Convert records of any training format to one of these, one JSON object per line:

    python scripts/convert_data.py alpaca.json --to context_target --output_path train.jsonl
    python scripts/convert_data.py chats.jsonl --to messages --output_path train.jsonl --max_records 1000

    instruction      {"instruction", "input", "output"}
    prompt_response  {"prompt", "response"}
    context_target   {"context": "Instruction: …\\nInput: …\\nAnswer: ", "target"}: a prompt that needs no template
    conversations    {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}
    messages         {"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}]}

All except context_target have "history" (pairs of question and answer; in the last two it is part of the conversation),
"system" and "tools", if the record has them; tool calls need one of the last two. Other keys are kept, unless a format
uses their names. JSON lines are streamed; an array is read at once. The output is written atomically.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from conversation import (  # noqa: E402
    as_read,
    first_question,
    is_pair,
    is_ready,
    join_tools,
    messages_of,
    split_answer,
    unsuited,
)
from data.formats import FORMATS, HISTORY_KEYS, SYSTEM_KEYS, TOOLS_KEYS, Columns  # noqa: E402
from data.records import read_records  # noqa: E402
from data.tally import Tally  # noqa: E402
from data.values import quoted  # noqa: E402
from errors import UserError, run_program  # noqa: E402
from files import write_json_lines  # noqa: E402
from flags import flag  # noqa: E402
from modes.glm3.calls import CALLS  # noqa: E402
from options.parser import Program, read_command_line, section  # noqa: E402
from options.sections import ColumnOptions  # noqa: E402
from texts import counted  # noqa: E402

FLAT_ROLES = ("system", "user", "assistant")
# Keys from which a format is recognized, and which are not kept in another format.
KEYS_OF_FORMATS = {key for record_format in FORMATS for key in (*record_format.question, *record_format.answer)}
KEYS_OF_FORMATS |= {*SYSTEM_KEYS, *HISTORY_KEYS, *TOOLS_KEYS}
HEAD, MIDDLE, END = "Instruction: ", "\nInput: ", "\nAnswer: "
SENDERS = {"user": "human", "assistant": "gpt", "observation": "observation"}
ROLES = {"user": "user", "assistant": "assistant", "observation": "tool"}


def system_of(record: dict) -> tuple[str, list]:
    """(text of the system message, descriptions of tools); "" and [] if there are none."""
    first = messages_of(record)[0]
    if first["role"] != "system":
        return "", []
    tools = first.get("tools", [])
    return first["content"].removesuffix(join_tools("", tools)) if tools else first["content"], tools


def context_of(record: dict) -> dict:
    """The system text and tools of a record, as keys; without empty ones."""
    system, tools = system_of(record)
    return {key: value for key, value in (("system", system), ("tools", tools)) if value}


def question_of(record: dict, content: str, place: str) -> tuple[str, str]:
    """(instruction, input) of a user's message; a single text if the record does not separate them."""
    if is_ready(record):
        if not content.startswith(HEAD) or not content.rstrip(" ").endswith(END.rstrip()):
            raise UserError(
                f'{place}: the prompt is not "Instruction: …", "Input: …", "Answer: " in lines, which only '
                "--to context_target supports; write that form, or rename its keys to prompt and response."
            )
        body = content.rstrip(" ").removesuffix(END.rstrip()).removeprefix(HEAD)
        instruction, _, given = body.partition(MIDDLE)
        return instruction, given
    if is_pair(record):
        return record["instruction"], record["input"]
    source = as_read(record)
    instruction, given = source.get("instruction"), source.get("input") or ""
    if type(instruction) is str and type(given) is str and instruction + given == content:
        return instruction, given
    return content, ""


def flat_parts(record: dict, place: str) -> tuple[str, str, str, dict]:
    """(instruction, input, answer, other keys such as history) of a record without tool calls."""
    clause = unsuited(record, FLAT_ROLES)
    if clause:
        raise UserError(
            f"{place}: {clause}, which this format does not support: use --to messages, or drop the record."
        )
    before, answer = split_answer(record)
    if any(message["role"] == "assistant" for message in before[: first_question(before)]):
        raise UserError(
            f"{place}: the conversation begins with the assistant, which this format does not support: use --to "
            "messages, or drop the record."
        )
    instruction, given = question_of(record, before[-1]["content"], place)
    texts = [message["content"] for message in before[:-1] if message["role"] != "system"]
    history = {"history": [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]}
    history = history if texts or record.get("has_history") else {}
    return instruction, given, answer["content"], {**context_of(record), **history}


def to_instruction(record: dict, place: str) -> dict:
    instruction, given, answer, rest = flat_parts(record, place)
    return {"instruction": instruction, "input": given, "output": answer, **rest}


def to_prompt_response(record: dict, place: str) -> dict:
    instruction, given, answer, rest = flat_parts(record, place)
    return {"prompt": instruction + given, "response": answer, **rest}


def to_context_target(record: dict, place: str) -> dict:
    if is_ready(record) and len(messages_of(record)) == 2:
        before, answer = split_answer(record)
        return {"context": before[0]["content"], "target": answer["content"]}
    instruction, given, answer, rest = flat_parts(record, place)
    if filled := [key for key in rest if rest[key]]:
        raise UserError(
            f"{place}: the record has {' and '.join(filled)}, which a prompt of one question does not support: use "
            "--to messages, or drop it."
        )
    given = MIDDLE + given if given else ""
    return {"context": HEAD + instruction + given + END, "target": answer}


def turns_of(record: dict, place: str) -> Iterator[dict]:
    """The messages after the system message; a question without the words of a template."""
    before, _ = split_answer(record)
    for message in messages_of(record):
        if message["role"] != "system":
            ready = is_ready(record) and message is before[-1]
            yield {**message, "content": "".join(question_of(record, message["content"], place))} if ready else message


def call_of(message: dict, place: str) -> dict:
    """{"name", "arguments"} of a tool call's message."""
    name = message["metadata"]
    call = CALLS.split(f"{name}\n{message['content']}")
    arguments = CALLS.read_arguments(call[1]) if call else None
    try:
        same = json.loads(json.dumps(arguments, allow_nan=False)) == arguments
    except (TypeError, ValueError):  # a set, bytes; infinity
        same = False
    if arguments is None or not same:
        raise UserError(
            f"{place}: the call of {name} is not tool_call(key=value, …) with values that JSON has; correct it, or "
            "drop the record."
        )
    return {"name": name, "arguments": arguments}


def to_conversations(record: dict, place: str) -> dict:
    turns = []
    for message in turns_of(record, place):
        if message.get("metadata"):
            call = json.dumps(call_of(message, place), ensure_ascii=False)
            turns.append({"from": "function_call", "value": call})
        else:
            turns.append({"from": SENDERS[message["role"]], "value": message["content"]})
    return {"conversations": turns, **context_of(record)}


def to_messages(record: dict, place: str) -> dict:
    system, tools = system_of(record)
    turns = [{"role": "system", "content": system}] if system or tools else []
    for message in turns_of(record, place):
        if message.get("metadata"):
            call = call_of(message, place)
            call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
            turns.append({"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]})
        else:
            turns.append({"role": ROLES[message["role"]], "content": message["content"]})
    return {"messages": turns, **({"tools": tools} if tools else {})}


TARGETS = {
    "instruction": to_instruction,
    "prompt_response": to_prompt_response,
    "context_target": to_context_target,
    "conversations": to_conversations,
    "messages": to_messages,
}


def convert(path: str, target: str, columns: Columns, tally: Tally) -> Iterator[dict]:
    """Convert the records of a file.

    Raises:
        UserError: a record is invalid, or the format does not support it; starts with file:line.
    """
    named = KEYS_OF_FORMATS | {columns.prompt, columns.response, columns.history}
    for line, record in read_records(path, columns=columns, tally=tally):
        other_keys = {key: value for key, value in as_read(record).items() if key not in named}
        yield TARGETS[target](CALLS.written(record), f"{path}:{line}") | other_keys


def write_whole(records: Iterator[dict], output: Path) -> int:
    """Write a file of records atomically. Returns their number."""
    try:
        return write_json_lines(output, records)
    except OSError as error:
        raise UserError(f"--output_path {output} cannot be written ({error.strerror}): choose another file.") from None


@dataclass(frozen=True)
class ConvertOptions:
    """Input and output files."""

    TITLE: ClassVar[str] = "conversion"

    path: str = flag(
        "",
        help="Path to a file of records: JSON lines, an array, CSV, TSV, Parquet or XLSX.",
        zh="数据文件的路径：JSON 行、JSON 数组、CSV、TSV、Parquet 或 XLSX。",
        metavar="FILE",
        required="the file to read",
    )
    to: str | None = flag(
        None, help="Format to write.", zh="写成哪种格式。", choices=tuple(TARGETS), required="the format to write"
    )
    output_path: str = flag(
        "", help="Path to the file to write.", zh="写到哪个文件。", metavar="FILE", required="the file to write"
    )
    max_records: int | None = flag(
        None, help="Number of records to convert (default: all).", zh="转换多少条（默认全部）。", at_least=1
    )


CONVERT = Program(
    name="convert_data.py",
    description=__doc__.split("\n")[0],
    sections=(ConvertOptions, ColumnOptions),
    positional="path",
)


def parse_options(argv: Sequence[str] | None = None) -> tuple[ConvertOptions, Columns]:
    """Read the options and the keys of records from the command line.

    Raises:
        UserError: all problems of the command line.
    """
    given = read_command_line(CONVERT, argv)
    options, columns = section(ConvertOptions, given), section(ColumnOptions, given)
    if problem := output_problem(options):
        raise UserError(problem)
    return options, columns.columns()


def output_problem(options: ConvertOptions) -> str:
    """A sentence if the output cannot be written, or ""; before anything is read."""
    output = Path(options.output_path)
    if os.path.isdir(output) or not os.path.isdir(output.parent):  # Path.is_dir raises on a name that is too long
        return f"--output_path {output} is not a file in an existing directory: choose another file."
    if os.path.realpath(output) == os.path.realpath(options.path):
        return f"--output_path {output} is the file to read: choose another file."
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the file of a command line."""
    options, columns = parse_options(argv)
    tally = Tally()
    records = convert(options.path, str(options.to), columns, tally)
    count = write_whole(islice(records, options.max_records), Path(options.output_path))
    assert count == tally.read, "every record that is read is written"
    left_out = [key for key in tally.ignored if key in KEYS_OF_FORMATS]
    note = f"; not in the output, because a format uses these names: {quoted(left_out)}" if left_out else ""
    print(f"{options.path}: {tally.describe()}{note}")
    print(f"{counted(count, 'record')}: {options.output_path}")


if __name__ == "__main__":
    run_program(main)
