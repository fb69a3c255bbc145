"""Read tool calls as ChatGLM3 writes them: the tool's name, a line end, and Python in a fence.

    split_call("get_weather\\n```python\\ntool_call(city='北京')\\n```")   # ("get_weather", "tool_call(city='北京')")
    arguments_of("tool_call(city='北京')")                               # {"city": "北京"}

The Python is parsed, never run.
"""

import ast
import re
import warnings

# A name is a word, so that text in front of an example of Python is no call; in front of `tool_call(` it is any line.
CALL = re.compile(r"([^\s`:：]+|[^\n`]+?(?=[ \t]*\n\s*```python\n\s*tool_call\())[ \t]*\n\s*```python\n(.*)", re.DOTALL)


def split_call(text: str) -> tuple[str, str] | None:
    """(the tool's name, the Python within the fence) of an answer that calls a tool; None of any other."""
    found = CALL.fullmatch(text.strip())
    return (found[1], found[2].rstrip().removesuffix("```").strip()) if found else None


def arguments_of(code: str) -> dict[str, object] | None:
    """The keyword arguments of `tool_call(…)`, `**{"from": …}` included; None of anything else.

    Values are what ast.literal_eval accepts: texts, numbers, True, None, and lists and dicts of them. Safe on whatever
    a model may write: what nests too deeply or holds zero bytes is not a call.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes and numbers
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
        # TypeError: a list as a key. AttributeError: ** of something else than a dict.
        return None
