"""Tools of a chat: their descriptions in a file, and a command of the user's that computes results.

A command gets the call as JSON on standard input, {"name": …, "arguments": {…}}, and prints the result.
"""

import json
import shlex
import subprocess
from pathlib import Path

from errors import UserError
from modes.text import encodable
from texts import one_line


def read_tools(path: Path) -> list:
    """The descriptions of tools in a JSON file: a list, or one object.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    try:
        tools = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a JSON file of tools.") from None
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise UserError(f"{path} is not JSON ({one_line(error, 80)}): give a list of tools.") from None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{path} holds no list of objects: describe each tool with name, description and parameters.")
    return tools


def split_command(text: str) -> list[str]:
    """The words of a command.

    Raises:
        UserError: a quotation mark is open.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"The command {text} cannot be split ({error}): close the quotation mark.") from None


def run_command(command: list[str], name: str, arguments: dict[str, object]) -> str:
    """The output of a command for a call of a tool.

    Raises:
        UserError: it cannot be started or fails.
    """
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, default=str)
    try:
        done = subprocess.run(command, input=encodable(call).encode(), capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started ({error.strerror}): correct it in /tools.") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"{command[0]} failed with exit code {done.returncode} ({one_line(last or 'no message', 80)}).")
    return done.stdout.decode(errors="replace").strip("\n")
