"""The grammar that an answer must follow: response_format, or a tool_choice that requires a call."""

from collections.abc import Callable

from generation.request import Constraint
from serving.errors import invalid
from serving.messages import offered
from serving.models import ServedModel
from serving.schema import ChatRequest, NamedTool


def constraint_of(chat: ChatRequest, model: ServedModel) -> Callable[[], Constraint] | None:
    """Makes the constraint of each answer of a request; None for free text.

    Raises:
        ApiError: a schema cannot be used.
    """
    output = chat.response_format
    if output is not None and (output.json_schema is None) != (output.type != "json_schema"):
        raise invalid("response_format.json_schema belongs to the type json_schema: give both or neither.",
                      "response_format")  # fmt: skip
    is_json = output is not None and output.type != "text"
    if is_json and offered(chat):
        raise invalid("response_format and tools are mutually exclusive: give only one.", "response_format")
    if output is not None and output.json_schema is not None and output.json_schema.schema_ is not None:
        schema = output.json_schema.schema_
        return checked(lambda: model.vocabulary.json_schema(schema), "response_format.json_schema.schema")
    if is_json:
        return checked(model.vocabulary.json_object, "response_format")
    return call_constraint(chat, model)


def call_constraint(chat: ChatRequest, model: ServedModel) -> Callable[[], Constraint] | None:
    """As `constraint_of`, for tool_choice."""
    choice = chat.tool_choice
    if choice in (None, "none", "auto"):
        return None
    assert model.mode.calls is not None, "checked by to_record"
    name = choice.function.name if isinstance(choice, NamedTool) else None
    functions = [tool.function for tool in offered(chat) if name in (None, tool.function.name)]
    described = [function.model_dump(exclude_none=True) for function in functions]
    write_grammar = model.mode.calls.constraint
    return checked(lambda: model.vocabulary.lark(write_grammar(described)), "tools")


def checked(make: Callable[[], Constraint], param: str) -> Callable[[], Constraint]:
    """The function, which has made its first constraint without an error.

    Raises:
        ApiError: it cannot make one.
    """
    try:
        make()
    except ValueError as error:
        raise invalid(str(error), param) from None
    return make
