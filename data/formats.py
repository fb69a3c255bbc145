"""What the keys of a record mean: every format that ChatGLM users have recipes for, read as one conversation.

    normalise({"context": "Instruction: …\\nAnswer: ", "target": "…"}, "a.json:1", Columns(), require_output=True)
    # {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}], "ready": True, "source": …}

"ready" is a prompt that is complete as it stands, without a template around it; "source" is the object of the file. An
object of instruction, input and output alone stays what it is: it is its own conversation of two messages.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from conversation import ROLES
from errors import UserError

ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response"), "observation"),
    "function_call": "call",  # an assistant's message that is a tool call as JSON
}
FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "assistant", "observation"),
    "observation": ("assistant", "observation"),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
TOOL_SYSTEM = "Answer the following questions as best as you can. You have access to the following tools:"
TYPE_NAMES = {type(None): "null", bool: "true/false", int: "a number", float: "a number", str: "a text", list: "a list",
              dict: "an object"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Under which keys a file's records hold what; None: recognised by their usual names.

    prompt, query: texts of the question, one after the other, with `prefix` in front. response: the answer.
    history: earlier turns. system: system text. messages: a whole conversation. tools: what an assistant may call.
    roles: further names of roles, as (name, role).
    """

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    system: str | None = None
    messages: str | None = None
    tools: str | None = None
    prefix: str = ""
    roles: tuple[tuple[str, str], ...] = ()


ANY = Columns()
SIMPLE = {"instruction", "input", "output"}
# How a flat record is recognised: its keys for prompt, query and response.
FLAT = (("context", None, "target"), ("prompt", "query", "response"), ("instruction", "input", "output"))


def is_ordinary(value: object) -> bool:
    """Whether a value is {"instruction", "input", "output"} of three texts, which under the usual keys need no more.

    What `normalise` would find out of such a record in a dozen steps: it stays as it is.
    """
    if type(value) is not dict or value.keys() != SIMPLE:
        return False
    instruction, question, answer = value["instruction"], value["input"], value["output"]
    if not type(instruction) is type(question) is type(answer) is str:
        return False
    try:
        (instruction + question + answer).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def normalise(value: dict, place: str, columns: Columns, *, require_output: bool) -> dict:
    """An object of a file as a record.

    Args:
        require_output: whether a record without an answer is an error.

    Raises:
        UserError: the keys are those of no format, or what is under them is not what it should be; starts with `place`.
    """
    key = columns.messages or next((key for key in ("messages", "conversations") if key in value), None)
    if key and not columns.prompt:
        messages = read_messages(value, key, place, columns)
        ready = False
    else:
        messages, ready = read_flat(value, place, columns, require_output)
    check_order(messages, place, require_output)
    # an empty list is a history too: ChatGLM-6B then counts its rounds from 0
    has_history = not key and type(value.get(columns.history or "history")) is list
    renamed = has_history and columns.history not in (None, "history")
    simple = not columns.prompt and not columns.prefix and "instruction" in value and not ready and not renamed
    if simple and len(messages) <= 2 and messages[0]["role"] == "user":
        record = {**value, "input": value.get("input") or ""}
        if record.get("output", "") is None:
            del record["output"]
        return record
    return {"messages": messages, "ready": ready, "has_history": has_history, "source": value}


def read_flat(value: dict, place: str, columns: Columns, require_output: bool) -> tuple[list[dict], bool]:
    """(messages, is the prompt complete) of a record with a question and an answer under keys of their own."""
    if columns.prompt:
        names = (columns.prompt, columns.query, columns.response)
    else:
        names = next((names for names in FLAT if names[0] in value), None)
        if names is None:
            raise UserError(
                f"{place}: none of the keys ({quoted(value)}) tells the format; a record needs instruction and output, "
                "prompt and response, context and target, conversations or messages (or give --prompt_column)."
            )
    prompt, query, response = names
    question = columns.prefix + text_of(value, prompt, place, needed=True)
    question += text_of(value, query, place) if query else ""
    messages = []
    system = text_of(value, columns.system or "system", place)
    if system:
        messages.append({"role": "system", "content": system})
    messages += read_history(value, columns.history or "history", place)
    messages.append({"role": "user", "content": question})
    if response and (require_output or value.get(response) is not None):
        messages.append({"role": "assistant", "content": text_of(value, response, place, needed=True)})
    return with_tools(messages, value, place, columns), prompt == "context" and not columns.prompt


def read_history(value: dict, key: str, place: str) -> list[dict]:
    """Messages of earlier turns: pairs of question and answer, or messages."""
    history = value.get(key)
    if history in (None, "", []):
        return []
    if type(history) is not list:
        raise UserError(f'{place}: "{key}" is {TYPE_NAMES[type(history)]}; it must be a list of [question, answer].')
    messages = []
    for number, turn in enumerate(history, 1):
        if type(turn) is dict:
            messages += read_message(turn, f'{place}: "{key}" {number}', {})
        elif type(turn) is list and len(turn) == 2 and all(type(text) is str for text in turn):
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        else:
            raise UserError(f'{place}: turn {number} of "{key}" is not [question, answer] in two texts; mend it.')
    return messages


def read_messages(value: dict, key: str, place: str, columns: Columns) -> list[dict]:
    """The messages under a key, with the tools of the record in front."""
    found = value.get(key)
    if type(found) is not list or not found:
        what = TYPE_NAMES[type(found)] if type(found) is not list else "an empty list"
        raise UserError(f'{place}: "{key}" is {what}; it must be a list of messages with role and content.')
    messages = []
    system = text_of(value, columns.system or "system", place)
    if system:
        messages.append({"role": "system", "content": system})
    for number, message in enumerate(found, 1):
        messages += read_message(message, f"{place}: message {number}", dict(columns.roles))
    return with_tools(messages, value, place, columns)


def read_message(message: object, place: str, roles: dict[str, str]) -> list[dict]:
    """One entry of a list of messages: usually one message, more where it holds tool calls.

    Args:
        roles: names of roles beside the usual ones.
    """
    if type(message) is not dict:
        raise UserError(f"{place} is {TYPE_NAMES[type(message)]}; it must be an object with role and content.")
    role_key = next((key for key in ROLE_KEYS if key in message), None)
    name = message.get(role_key) if role_key else None
    role = (ROLE_NAMES | roles).get(name) if type(name) is str else None
    if role is None:
        known = ", ".join(dict.fromkeys([*roles, *ROLE_NAMES]))
        raise UserError(f"{place} has the role {quoted([str(name)])}; it must be one of {known}.")
    if name == "tool" and "observation" in message:  # ChatGLM3's own layout: a call and what came back
        call = make_call(message.get("name"), message.get("parameters", {}), place)
        observation = message["observation"]
        content = observation if type(observation) is str else json.dumps(observation, ensure_ascii=False)
        return [call, {"role": "observation", "content": content}]
    content_key = next((key for key in CONTENT_KEYS if key in message), "content")
    if role == "call":
        text = text_of(message, content_key, place, needed=True)
        call = parsed(text, place)
        return [make_call(call.get("name"), call.get("arguments", call.get("parameters", {})), place)]
    calls = message.get("tool_calls") or []
    if type(calls) is not list:
        raise UserError(f'{place}: "tool_calls" is {TYPE_NAMES[type(calls)]}; it must be a list of calls.')
    content = text_of(message, content_key, place, needed=not calls)
    result = [{"role": role, "content": content}] if content or not calls else []
    if role == "assistant" and result and message.get("metadata"):
        result[0]["metadata"] = text_of(message, "metadata", place).strip()
    for call in calls:
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict:
            raise UserError(f'{place}: an entry of "tool_calls" has no "function"; mend it.')
        arguments = function.get("arguments", {})
        arguments = parsed(arguments, place) if type(arguments) is str else arguments
        result.append(make_call(function.get("name"), arguments, place))
    if role == "system" and "tools" in message:
        result = [{"role": "system", "content": join_tools(content, message["tools"]), "tools": True}]
    return result


def make_call(name: object, arguments: object, place: str) -> dict:
    """A tool call as ChatGLM3 writes it: the tool's name, and Python that calls `tool_call`."""
    if type(name) is not str or not name.strip() or "\n" in name:
        raise UserError(f"{place}: a tool call needs the tool's name as a text of one line; mend it.")
    if type(arguments) is not dict or not all(key.isidentifier() for key in arguments):
        raise UserError(f"{place}: the arguments of the call of {name} are not an object of names and values; mend it.")
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return {"role": "assistant", "metadata": name.strip(), "content": f"```python\ntool_call({listed})\n```"}


def with_tools(messages: list[dict], value: dict, place: str, columns: Columns) -> list[dict]:
    """The messages with the record's tools, if it has any, at the end of the system message."""
    tools = value.get(columns.tools or "tools")
    if tools in (None, "", []):
        return messages
    tools = parsed_list(tools, place) if type(tools) is str else tools
    if type(tools) is not list:
        raise UserError(f'{place}: "tools" is {TYPE_NAMES[type(tools)]}; it must be a list of descriptions of tools.')
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": TOOL_SYSTEM}, *messages]
    system = {**messages[0], "content": join_tools(messages[0]["content"], tools), "tools": True}
    return [system, *messages[1:]]


def join_tools(content: str, tools: object) -> str:
    """A system message with the tools behind it, as the official code writes them."""
    return content + "\n" + json.dumps(tools, indent=4, ensure_ascii=False)


def check_order(messages: list[dict], place: str, require_output: bool) -> None:
    """Raise UserError unless the roles follow one another in a way that a conversation can go."""
    before = ""
    for number, message in enumerate(messages, 1):
        if message["role"] not in FOLLOWS[before]:
            after = f"after one from {before}" if before else "at the start"
            raise UserError(
                f"{place}: message {number} is from {message['role']} {after}, where {' or '.join(FOLLOWS[before])} "
                "must speak; put the messages in order."
            )
        before = message["role"]
    if require_output and before != "assistant":
        raise UserError(f"{place}: the last message is from {before}; to train on, it must be the assistant's.")
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{place}: no message is from user; there is nothing to answer.")


def text_of(value: dict, key: str, place: str, *, needed: bool = False) -> str:
    """The text under a key; "" where there is none.

    Raises:
        UserError: it is needed and not there, or no text.
    """
    text = value.get(key)
    if text is None:
        if needed:
            state = "is null" if key in value else f"is missing (the keys are {quoted(value)})"
            raise UserError(f'{place}: "{key}" {state}; a record needs it as a text.')
        return ""
    if type(text) is not str:
        raise UserError(f'{place}: "{key}" is {TYPE_NAMES[type(text)]}, it must be a text in quotes.')
    return text


def parsed(text: str, place: str) -> dict:
    """The JSON object that a text holds."""
    value = _json(text, place)
    if type(value) is not dict:
        raise UserError(f"{place}: a tool call is {TYPE_NAMES[type(value)]}; it must be a JSON object.")
    return value


def parsed_list(text: str, place: str) -> list:
    """The JSON list of tools that a text holds."""
    value = _json(text, place)
    return value if type(value) is list else [value]


def _json(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{place}: what describes tools or a call is not JSON; mend it.") from None


def quoted(keys: Iterable[str]) -> str:
    """Keys as a message shows them; `repr` escapes line ends and surrogates."""
    text = ", ".join(f'"{repr(key)[1:-1]}"' for key in keys)
    return (text if len(text) <= 80 else text[:80] + "…") or "none"
