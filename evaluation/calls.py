"""Parse ChatGLM3's tool calls: the tool's name, a line end, and Python in a fenced block.

    split_call("get_weather\\n```python\\ntool_call(city='北京')\\n```")   # ("get_weather", "tool_call(city='北京')")
    arguments_of("tool_call(city='北京')")                               # {"city": "北京"}

The Python is parsed and never executed.
"""

import ast
import re
import warnings

# A name is a word, so that text before an example of Python is not a call; before `tool_call(` it is any line.
CALL = re.compile(r"([^\s`:：]+|[^\n`]+?(?=[ \t]*\n\s*```python\n\s*tool_call\())[ \t]*\n\s*```python\n(.*)", re.DOTALL)


def split_call(text: str) -> tuple[str, str] | None:
    """(the tool's name, the Python within the fence) of an answer that calls a tool; None for others."""
    found = CALL.fullmatch(text.strip())
    return (found[1], found[2].rstrip().removesuffix("```").strip()) if found else None


def arguments_of(code: str) -> dict[str, object] | None:
    """The keyword arguments of `tool_call(…)`, including `**{"from": …}`; None for anything else.

    Values are those of ast.literal_eval: texts, numbers, True, None, and lists and dicts of them. Safe for any output
    of a model: code that is nested too deeply or contains zero bytes is not a call.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd escapes and numbers
            call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "tool_call":
            return None
        found = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in call.keywords]
        pairs = [pair for name, value in found for pair in ([(name, value)] if name else value.items())]
        arguments = dict(pairs)
        if call.args or len(arguments) < len(pairs) or not all(isinstance(name, str) for name in arguments):
            return None
        return arguments
    except (SyntaxError, ValueError, TypeError, AttributeError, MemoryError, RecursionError):
        # TypeError: a list as a key. AttributeError: ** of anything but a dict.
        return None
