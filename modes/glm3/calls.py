"""ChatGLM3's tool calls: the tool's name, a line end, and Python in a fenced block that calls `tool_call`.

    write_call({"name": "get_weather", "arguments": {"city": "北京"}})
    # {"role": "assistant", "metadata": "get_weather", "content": "```python\\ntool_call(city='北京')\\n```"}
    split_call("get_weather\\n```python\\ntool_call(city='北京')\\n```")   # ("get_weather", "tool_call(city='北京')")
    read_arguments("tool_call(city='北京')")                             # {"city": "北京"}

The Python is parsed and never executed. This module imports no torch, so that programs without a model can use it.
"""

import ast
import re
import warnings

from conversation import Call, Message
from modes.calls import CallGrammar
from modes.glm3.call_constraint import calls_of_tools, is_parameter_name

# A name is a word, so that text before an example of Python is not a call; before `tool_call(` it is any line.
CALL = re.compile(r"([^\s`:：]+|[^\n`]+?(?=[ \t]*\n\s*```python\n\s*tool_call\())[ \t]*\n\s*```python\n(.*)", re.DOTALL)
FUNCTION = "tool_call"
OPENING = re.compile(r"([^\s`]+)[ \t]*\n\s*```python\n\s*tool_call\(")  # up to the arguments
BEGUN = re.compile(r"[^\s`]+[ \t]*\n\s*```python\n\s*(.*)", re.DOTALL)  # up to the code
GENERATED = re.compile(r"\s*([^\s`]+)[ \t]*\n\s*(```python\n.*)", re.DOTALL)  # the same as a tokenizer decodes it


def write_call(call: Call) -> Message:
    """The message of a call. Arguments whose names are invalid in Python, such as `from`, are in a dict at the end."""
    arguments = call["arguments"]
    plain = [f"{name}={value!r}" for name, value in arguments.items() if is_parameter_name(name)]
    invalid = {name: value for name, value in arguments.items() if not is_parameter_name(name)}
    listed = ", ".join([*plain, *([f"**{invalid!r}"] if invalid else [])])
    return {"role": "assistant", "metadata": call["name"], "content": f"```python\ntool_call({listed})\n```"}


def tidy_call(generated: str) -> str | None:
    """Generated text that calls a tool, as `split_call` takes it and references are written; None for others."""
    match = GENERATED.fullmatch(generated)
    return f"{match[1]}\n{match[2].rstrip()}" if match else None


def split_call(text: str) -> tuple[str, str] | None:
    """(the tool's name, the Python within the fence) of an answer that calls a tool; None for others."""
    match = CALL.fullmatch(text.strip())
    return (match[1], match[2].rstrip().removesuffix("```").strip()) if match else None


def read_arguments(code: str) -> dict[str, object] | None:
    """The keyword arguments of `tool_call(…)`, including `**{"from": …}`; None for anything else.

    Values are those of ast.literal_eval: texts, numbers, True, None, and lists and dicts of them. Safe for any output
    of a model: code that is nested too deeply or contains zero bytes is not a call.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd escapes and numbers
            call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "tool_call":
            return None
        keywords = [(given.arg, ast.literal_eval(given.value)) for given in call.keywords]
        pairs = [pair for name, value in keywords for pair in ([(name, value)] if name else value.items())]
        arguments = dict(pairs)
        if call.args or len(arguments) < len(pairs) or not all(isinstance(name, str) for name in arguments):
            return None
        return arguments
    except (SyntaxError, ValueError, TypeError, AttributeError, MemoryError, RecursionError):
        # TypeError: a list as a key. AttributeError: ** of anything but a dict.
        return None


class GrowingCall:
    """See `modes.calls.GrowingCall`.

    A comma or a parenthesis ends an argument if brackets and quotes before it are closed, and the part since the last
    argument can be read. So whatever is returned has the same value in the whole call, unless that is unreadable.
    """

    def __init__(self) -> None:
        self.possible = True
        self.name = ""
        self._text = ""
        self._start = 0  # of the next argument
        self._at = 0  # of the next character to look at
        self._depth = 0  # of open brackets
        self._quote = ""  # of the open text

    def feed(self, text: str) -> dict[str, object]:
        self._text += text
        if not self.name:
            self._open()
        return self._read() if self.name else {}

    def _open(self) -> None:
        opening = OPENING.match(self._text)
        begun = BEGUN.match(self._text)
        if opening:
            self.name, self._start, self._at = opening[1], opening.end(), opening.end()
        elif begun and begun[1]:  # code that begins as `tool_call`, or with a parenthesis or comment before it
            self.possible = FUNCTION.startswith(begun[1][: len(FUNCTION)]) or begun[1][0] in "(#\\"

    def _read(self) -> dict[str, object]:
        found: dict[str, object] = {}
        while self._at < len(self._text):
            character = self._text[self._at]
            if self._quote:
                if character == "\\":
                    if self._at + 1 == len(self._text):
                        break  # the escaped character is needed
                    self._at += 1
                elif character == self._quote:
                    self._quote = ""
            elif character in "'\"":
                self._quote = character
            elif character in ",)" and not self._depth:
                found |= self._argument()
            else:
                self._depth += (character in "([{") - (character in ")]}")
            self._at += 1
        return found

    def _argument(self) -> dict[str, object]:
        """The argument that ends here; nothing if it cannot be read, as within a text in triple quotes."""
        arguments = read_arguments(f"tool_call({self._text[self._start : self._at]})")
        if arguments is not None:
            self._start = self._at + 1
        return arguments or {}


CALLS = CallGrammar(
    write=write_call,
    split=split_call,
    read_arguments=read_arguments,
    constraint=calls_of_tools,
    growing=GrowingCall,
)
