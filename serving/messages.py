"""The messages and tools of a chat request as a record of conversation.py, from which the generation makes its prompt.

to_record(chat, MODES["glm3"])    # {"messages": [{"role": "user", "content": "你好"}], "ready": False}
"""

from itertools import count

from conversation import Message as RecordMessage
from conversation import Record, unsuited
from data.messages import make_call, with_tools
from errors import UserError
from modes.mode import Mode
from serving.errors import invalid
from serving.schema import ChatRequest, Content, Message, NamedTool, Tool

ROLES = {"developer": "system", "tool": "observation"}
FIELDS = {"tool_calls": "assistant", "tool_call_id": "tool"}  # field -> the role that has it


def to_record(chat: ChatRequest, mode: Mode) -> Record:
    """The record of a request; the tools that may be called are at the end of its system message.

    Raises:
        ApiError: the messages are no conversation that the generation can represent.
    """
    messages: list[RecordMessage] = []
    for number, message in enumerate(chat.messages):
        place = f"messages[{number}]"
        check_fields(message, place)
        add(messages, read(message, place), place)
    if messages[-1]["role"] not in ("user", "observation"):
        last = chat.messages[-1].role
        raise invalid(f"The last message is from {last}: end with one from user or tool.", "messages")
    tools = offered(chat)
    if tools and mode.calls is None:
        raise invalid(f"tools are not supported by {mode.title}: leave them out.", "tools", "unsupported_parameter")
    if tools:
        messages = with_tools(messages, {"tools": [tool.given for tool in tools]}, "tools", "tools")
    record = {"messages": messages, "ready": False}
    clause = unsuited(record, mode.roles)
    if clause:
        raise invalid(f"The messages have {clause}, which {mode.title} does not support: leave it out.", "messages")
    return record


def offered(chat: ChatRequest) -> list[Tool]:
    """The tools that the answer may call.

    Raises:
        ApiError: tool_choice names another one, or there are none to choose from.
    """
    tools = chat.tools or []
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("Two tools have the same name: give each its own.", "tools")
    choice = chat.tool_choice
    if choice not in (None, "none", "auto") and not tools:
        raise invalid("tool_choice needs tools: give both or neither.", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise invalid("tool_choice is none of the tools: name one of them.", "tool_choice.function.name")
    return [] if choice == "none" else tools


def check_fields(message: Message, place: str) -> None:
    """Refuse fields of another role, and a message without the fields of its own."""
    for name, role in FIELDS.items():
        if name in message.model_fields_set and vars(message)[name] is not None and message.role != role:
            raise invalid(f"{place}.{name} belongs to messages from {role}: leave it out.", f"{place}.{name}")
    if message.content is None and not message.tool_calls:
        raise invalid(f"{place}.content is missing: give a text.", f"{place}.content", "missing_required_parameter")
    if message.role == "tool" and message.tool_call_id is None:
        param = f"{place}.tool_call_id"
        raise invalid(f"{param} is missing: give the id of the call.", param, "missing_required_parameter")


def read(message: Message, place: str) -> list[RecordMessage]:
    """The messages of a record that one message stands for: several where it calls tools."""
    text, role = text_of(message.content), ROLES.get(message.role, message.role)
    calls = []
    for number, call in zip(count(), message.tool_calls or [], strict=False):
        where = f"{place}.tool_calls[{number}].function"
        try:
            calls.append(make_call(call.function.name, call.function.arguments, where))
        except UserError as error:
            raise invalid(str(error), f"{where}.arguments") from None
    return [{"role": role, "content": text}] * (bool(text) or not calls) + calls


def text_of(content: Content | None) -> str:
    """The text of a content; its parts are concatenated."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def add(messages: list[RecordMessage], new: list[RecordMessage], place: str) -> None:
    """Append messages; one from the system or user that follows another one continues it on the next line."""
    for message in new:
        last = messages[-1] if messages else None
        if message["role"] == "system" and last and last["role"] != "system":
            raise invalid(f"{place} is from the system after other messages: put it first.", f"{place}.role")
        if message["role"] == "observation" and (not last or last["role"] == "user" or not called(messages)):
            raise invalid(f"{place} is from a tool that was not called: put it after the call.", f"{place}.role")
        if last and last["role"] == message["role"] and joined(last, message):
            messages[-1] = {**last, "content": f"{last['content']}\n{message['content']}"}
        else:
            messages.append(message)


def called(messages: list[RecordMessage]) -> bool:
    """Whether a tool was called since the user's last message."""
    since = next((at for at in reversed(range(len(messages))) if messages[at]["role"] == "user"), 0)
    return any("call" in message for message in messages[since:])


def joined(last: RecordMessage, message: RecordMessage) -> bool:
    """Whether two messages of one role become one: not those of tools or with calls."""
    return message["role"] != "observation" and "call" not in last and "call" not in message
