"""Read the turns of a conversation, in any layout, as messages of conversation.py.

{"role": "user", "content": …}   {"from": "human", "value": …}      messages; roles in any case
{"human": …, "assistant": …}     {"q": …, "a": […]}                 a question and its answer
"""

import json
import re

from conversation import ROLES, join_tools
from data.values import is_empty, parsed, quoted, type_name
from errors import UserError

ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    "developer": "system",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response"), "observation"),
    "function_call": "call",  # an assistant's message that is a tool call as JSON
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
# (question, answer) of a turn that is one object
PAIR_KEYS = (
    *(("human", "assistant"), ("user", "assistant"), ("human", "bot"), ("question", "answer"), ("q", "a")),
    *(("query", "response"), ("prompt", "response"), ("instruction", "output"), ("input", "output")),
)
MESSAGE_KEYS = {
    *(*ROLE_KEYS, *CONTENT_KEYS, "metadata", "tools", "tool_calls", "function_call", "weight", "loss", "train"),
    *("name", "parameters", "observation"),  # of a tool's message that holds the call, too
}
TURN_KEYS = {"system", "Human", "MOSS", "Commands", *(key for pair in PAIR_KEYS for key in pair)}
ANSWER_KEYS = ("response", "output", "answer", "target", "summary", "completion")  # with --prompt_column alone
TOOL_SYSTEM = "Answer the following questions as best as you can. You have access to the following tools:"
MOSS_TURN = re.compile(r"\[(Human|MOSS)\]:(.*?)<eo[ha]>", re.DOTALL)
MOSS_TAGS = re.compile(r"^\s*<\|[^|<>]+\|>:\s?|<eo[a-z]>\s*$")


def text_of(value: dict, key: str, place: str, *, needed: bool = False) -> str:
    """The text under a key; "" if there is none. A list of {"type": "text", "text"} is concatenated.

    Raises:
        UserError: it is required and missing, or not a text.
    """
    text = value.get(key)
    if type(text) is str:
        return text
    if text is None or (is_empty(text) and not needed):
        if needed:
            state = "is null" if key in value else f"is missing (the keys are {quoted(value)})"
            raise UserError(f"{place}: {quoted([key])} {state}; a record needs it as a text.")
        return ""
    if type(text) is list and text and all(type(part) is dict and "type" in part for part in text):
        return "".join(part_text(part, key, place) for part in text)
    raise UserError(f"{place}: {quoted([key])} is {type_name(text)}, it must be a text in quotes.")


def part_text(part: dict, key: str, place: str) -> str:
    """The text of one part of a content in OpenAI's format."""
    if part["type"] != "text" or type(part.get("text")) is not str:
        raise UserError(
            f"{place}: {quoted([key])} has a part of type {quoted([str(part['type'])])}; only text can be read."
        )
    return part["text"]


def answer_messages(value: dict, key: str, place: str, require_output: bool) -> list[dict]:
    """The messages of the answer under a key: a text, a list of lines, a message, or a list of messages.

    Args:
        require_output: if False, an answer of another type is ignored.

    Raises:
        UserError: it is required and none of these.
    """
    answer = value.get(key)
    if not require_output and type(answer) is not str:
        return []
    if type(answer) is list and answer and all(type(line) is str for line in answer):
        return [{"role": "assistant", "content": "\n".join(answer)}]
    listed = answer if type(answer) is list else [answer]
    if all(type(entry) is dict and any(name in entry for name in ROLE_KEYS) for entry in listed) and listed:
        messages = [message for entry in listed for message in read_message(entry, f"{place}: {quoted([key])}", {})]
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{place}: {quoted([key])} ends with a message from {messages[-1]['role']}; the last one "
                            "must be the assistant's.")  # fmt: skip
        return messages[-1:] if messages[0]["role"] != "assistant" else messages  # a whole conversation: its answer
    return [{"role": "assistant", "content": text_of(value, key, place, needed=True)}]


def read_history(value: dict, key: str, place: str) -> list[dict] | None:
    """Messages of earlier turns: pairs of question and answer, or messages; None without a list of them."""
    history = from_text(value.get(key), "history", place)
    if is_empty(history) and history != []:
        return None
    if type(history) is not list:
        raise UserError(f"{place}: {quoted([key])} is {type_name(history)}; it must be a list of [question, answer].")
    messages = []
    for number, turn in enumerate(history, 1):
        if type(turn) is dict:
            messages += read_turn(turn, f"{place}: {quoted([key])} {number}", {})
        elif type(turn) is list and len(turn) == 2 and all(type(text) is str for text in turn):
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        else:
            raise UserError(
                f"{place}: turn {number} of {quoted([key])} is not [question, answer] in two texts; correct it."
            )
    return messages


def is_turns(value: object) -> bool:
    """Whether a value may be a list of turns, possibly as JSON in a text."""
    return (type(value) is list and bool(value)) or (type(value) is str and value.lstrip().startswith("["))


def is_moss_turns(value: object) -> bool:
    """Whether a value may be MOSS's object of turns."""
    return (type(value) is dict and bool(value)) or is_turns(value)


def is_moss_text(value: object) -> bool:
    """Whether a value may be MOSS's text of turns."""
    return type(value) is str and "[Human]:" in value


def read_turns(value: dict, key: str, place: str, roles: tuple[tuple[str, str], ...]) -> list[dict]:
    """The messages of a list of turns; in a table's cell the list is JSON."""
    turns = from_text(value.get(key), "a conversation", place)
    if type(turns) is not list or not turns:
        kind = type_name(turns) if type(turns) is not list else "an empty list"
        raise UserError(f"{place}: {quoted([key])} is {kind}; it must be a list of messages with role and content.")
    named = dict(roles)
    return [
        message
        for number, turn in enumerate(turns, 1)
        for message in read_turn(turn, f"{place}: message {number}", named)
    ]


def unused_in_turns(value: dict, key: str, place: str) -> set[str]:
    """Unused keys of a conversation's turns that are not empty, such as "messages[].id"."""
    turns = None if is_moss_text(value[key]) else from_text(value[key], "a conversation", place)
    listed = turns.values() if type(turns) is dict else turns if type(turns) is list else ()
    unused = set()
    for turn in listed:
        known = MESSAGE_KEYS if any(name in turn for name in ROLE_KEYS) else TURN_KEYS
        unused |= {name for name, content in turn.items() if name not in known and not is_empty(content)}
    return {f"{key}[].{name}" for name in unused}


def read_turn(turn: object, place: str, roles: dict[str, str]) -> list[dict]:
    """One entry of a conversation: a message, or an object with a question and its answer."""
    if type(turn) is dict and not any(key in turn for key in ROLE_KEYS):
        pair = next((pair for pair in PAIR_KEYS if all(turn.get(key) is not None for key in pair)), None)
        if pair:
            system = text_of(turn, "system", place)
            return [
                *([{"role": "system", "content": system}] if system else []),
                {"role": "user", "content": text_of(turn, pair[0], place)},
                *answer_messages(turn, pair[1], place, require_output=True),
            ]
    return read_message(turn, place, roles)


def read_message(message: object, place: str, roles: dict[str, str]) -> list[dict]:
    """The messages of one entry: usually one, several with tool calls.

    Args:
        roles: names of roles besides the usual ones.
    """
    if type(message) is not dict:
        raise UserError(f"{place} is {type_name(message)}; it must be an object with role and content.")
    role_key = next((key for key in ROLE_KEYS if key in message), None)
    name = message.get(role_key) if role_key else None
    known = ROLE_NAMES | roles
    role = known.get(name, known.get(name.strip().lower())) if type(name) is str else None
    if role is None:
        listed = ", ".join(dict.fromkeys([*roles, *ROLE_NAMES]))
        raise UserError(f"{place} has the role {quoted([str(name)])}; it must be one of {listed}.")
    if message.get("weight") == 0 or message.get("loss") is False or message.get("train") is False:
        raise UserError(
            f"{place} is marked as not trained (weight 0 or loss false), which is unsupported; remove the mark "
            "(--loss_on last trains only on the last answer)."
        )
    if type(name) is str and name.lower() == "tool" and "observation" in message:  # a call and its result
        call = make_call(message.get("name"), message.get("parameters", {}), place)
        observation = message["observation"]
        content = observation if type(observation) is str else json.dumps(observation, ensure_ascii=False)
        return [call, {"role": "observation", "content": content}]
    content_key = next((key for key in CONTENT_KEYS if key in message), "content")
    if role == "call":
        call = call_object(text_of(message, content_key, place, needed=True), place)
        return [make_call(call.get("name"), call.get("arguments", call.get("parameters", {})), place)]
    calls = calls_of(message, place)
    content = text_of(message, content_key, place, needed=not calls)
    result = [{"role": role, "content": content}] if content or not calls else []
    if role == "assistant" and result and message.get("metadata"):
        result[0]["metadata"] = text_of(message, "metadata", place).strip()
    if role == "system" and not is_empty(tools := tools_under(message, "tools", place)):
        return [{"role": "system", "content": join_tools(content, tools), "tools": tools}]
    return result + [make_call(call.get("name"), call.get("arguments", {}), place) for call in calls]


def calls_of(message: dict, place: str) -> list[dict]:
    """The tool calls of a message, {"name", "arguments"}: OpenAI's "tool_calls", or its older "function_call"."""
    calls = message.get("tool_calls") or []
    if type(calls) is not list:
        raise UserError(f'{place}: "tool_calls" is {type_name(calls)}; it must be a list of calls.')
    functions: list[dict] = []
    for call in calls:
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict:
            raise UserError(f'{place}: an entry of "tool_calls" has no "function"; correct it.')
        functions.append(function)
    older = message.get("function_call")
    if not is_empty(older):
        if type(older) is not dict:
            raise UserError(f'{place}: "function_call" is {type_name(older)}; it must be an object.')
        functions.append(older)
    return functions


def call_object(text: str, place: str) -> dict:
    """Parse the JSON object of a tool call or of its arguments."""
    value = parsed(text, "tools or a call", place)
    if type(value) is not dict:
        raise UserError(f"{place}: a tool call is {type_name(value)}; it must be a JSON object.")
    return value


def make_call(name: object, arguments: object, place: str) -> dict:
    """The message of a tool call, without text, which each generation writes in its own form.

    Args:
        arguments: an object, or its JSON.

    Raises:
        UserError: name or arguments have a wrong type.
        RecursionError: the arguments are nested too deeply to be written.
    """
    if type(name) is not str or not name.strip() or "\n" in name:
        raise UserError(f"{place}: a tool call needs the tool's name as a text of one line; correct it.")
    arguments = call_object(arguments, place) if type(arguments) is str else arguments
    if type(arguments) is not dict:
        raise UserError(
            f"{place}: the arguments of the call of {name} are not an object of names and values; correct them."
        )
    repr(arguments)  # an error of the writer is raised here, where the line is known
    return {"role": "assistant", "content": "", "call": {"name": name.strip(), "arguments": arguments}}


def with_tools(messages: list[dict], value: dict, key: str, place: str) -> list[dict]:
    """Append the tools under a key, if there are any, to the system message."""
    tools = tools_under(value, key, place)
    if is_empty(tools):
        return messages
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": TOOL_SYSTEM}, *messages]
    system = {**messages[0], "content": join_tools(messages[0]["content"], tools), "tools": tools}
    return [system, *messages[1:]]


def tools_under(value: dict, key: str, place: str) -> list:
    """The descriptions of tools under a key, possibly as JSON in a text; [] if there are none."""
    tools = value.get(key)
    tools = parsed(tools, "tools or a call", place) if type(tools) is str and tools.strip() else tools
    if is_empty(tools) or (type(tools) is str and not tools.strip()):
        return []
    if type(tools) is dict:
        tools = [tools]
    if type(tools) is not list:
        raise UserError(f"{place}: {quoted([key])} is {type_name(tools)}; it must be a list of descriptions of tools.")
    return [described(tool) for tool in tools]


def described(tool: object) -> object:
    """The description of a tool, which OpenAI's API wraps as {"type": "function", "function": {…, "strict"?}}."""
    if type(tool) is not dict or tool.get("type") != "function" or type(tool.get("function")) is not dict:
        return tool
    return {key: value for key, value in tool["function"].items() if key != "strict"}


def from_text(value: object, subject: str, place: str) -> object:
    """A value, parsed if it is a text that looks like a JSON list."""
    return parsed(value, subject, place) if type(value) is str and value.lstrip().startswith("[") else value


def read_moss_turns(value: dict, key: str, place: str, roles: tuple[tuple[str, str], ...]) -> list[dict]:
    """MOSS's {"turn_1": {"Human": …, "MOSS": …, "Commands": …}, …}, without its tags; a list is read as any other."""
    turns = value.get(key)
    if type(turns) is list:
        return read_turns(value, key, place, roles)
    if type(turns) is not dict or not all(type(turn) is dict for turn in turns.values()):
        raise UserError(f"{place}: {quoted([key])} is {type_name(turns)}; it must be an object of MOSS's turns.")
    messages = []
    for name, turn in turns.items():
        texts = {part: MOSS_TAGS.sub("", text_of(turn, part, f"{place}: {quoted([name])}")) for part in turn}
        called = texts.get("Commands", "").strip()
        if called not in ("", "None"):
            raise UserError(f"{place}: {quoted([name])} calls a tool in MOSS's notation, which cannot be read; remove"
                            " the record, or rewrite the call.")  # fmt: skip
        messages += [
            {"role": role, "content": MOSS_TAGS.sub("", texts.get(speaker, "")).strip()}
            for speaker, role in (("Human", "user"), ("MOSS", "assistant"))
        ]
    return messages


def read_moss_text(value: dict, key: str, place: str, roles: tuple[tuple[str, str], ...]) -> list[dict]:
    """MOSS's "[Human]: …<eoh> [MOSS]: …<eoa> …" in one text."""
    text = text_of(value, key, place, needed=True)
    turns = MOSS_TURN.findall(text)
    if not turns or MOSS_TURN.sub("", text).strip():
        raise UserError(f'{place}: {quoted([key])} is not made of turns "[Human]: …<eoh> [MOSS]: …<eoa>"; write only'
                        " such turns.")  # fmt: skip
    return [{"role": "user" if name == "Human" else "assistant", "content": text.strip()} for name, text in turns]
