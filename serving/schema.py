"""The fields of requests, after OpenAI's description of its API; what is unknown or unsupported is an error.

chat = check(ChatRequest, {"model": "glm3", "messages": [{"role": "user", "content": "你好"}]})
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from serving.errors import ApiError, invalid
from texts import quote, shown

Schema = TypeVar("Schema", bound=BaseModel)
SMALLEST_INTEGER, LARGEST_INTEGER = -(2**63), 2**63 - 1


def refuse(value: object) -> None:
    """Refuse any value but null."""
    if value is not None:
        raise PydanticCustomError("unsupported", "is not supported by this server: leave it out")


def refuse_true(value: object) -> object:
    """Refuse true."""
    if value is True:
        raise PydanticCustomError("unsupported", "is not supported by this server: leave it out, or give false")
    return value


def only(text: str, *parts: tuple[type, str]) -> Any:
    """The discriminator of a union of JSON types, so that an error names the type that was meant.

    Args:
        text: the tag of all other types. parts: (Python type, tag).
    """
    return Discriminator(lambda value: next((tag for kind, tag in parts if isinstance(value, kind)), text))


Unsupported = Annotated[None, BeforeValidator(refuse)]
Off = Annotated[bool | None, BeforeValidator(refuse_true)]
TEXT, PARTS, MODE, CHOICE, IDS, LISTS = "<text>", "<parts>", "<mode>", "<choice>", "<ids>", "<lists>"


class Strict(BaseModel):
    """An object without unknown fields, in which "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Unsupported = None


Content = Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[TextPart], Tag(PARTS)], only(TEXT, (list, PARTS))]


class CalledFunction(Strict):
    """Name and arguments of a tool call; the arguments are JSON in a text."""

    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Strict):
    """A call that the assistant made earlier."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """A message of any role; serving/messages.py checks which fields a role has."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, min_length=1)
    tool_call_id: str | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None


class Function(Strict):
    """The description of a tool. parameters: a JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function
    _given: dict[str, Any]

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, validate: ModelWrapValidatorHandler["Tool"]) -> "Tool":
        tool = validate(value)
        tool._given = value
        return tool

    @property
    def given(self) -> dict[str, Any]:
        """As the client wrote it: the order of keys is that of the prompt."""
        return self._given


class FunctionName(Strict):
    """The tool of tool_choice."""

    name: str


class NamedTool(Strict):
    """tool_choice: this tool."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(MODE)] | Annotated[NamedTool, Tag(CHOICE)],
    only(MODE, (dict, CHOICE)),
]


class JsonSchema(Strict):
    """The JSON schema of an answer."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of an answer. json_schema: of the type json_schema only."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Off = None


Stops = Annotated[
    Annotated[str, Field(min_length=1), Tag(TEXT)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=4), Tag(PARTS)],
    only(TEXT, (list, PARTS)),
]


TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class SamplingFields(Strict):
    """Fields that both kinds of requests have."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=LARGEST_INTEGER)
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=SMALLEST_INTEGER, le=LARGEST_INTEGER)
    stop: Stops | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatRequest(SamplingFields):
    """A request of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Off = None
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def kind_of_prompt(value: object) -> str:
    """The tag of a prompt, by its first element."""
    first = value[0] if isinstance(value, list) and value else ""
    if isinstance(value, list):
        return LISTS if isinstance(first, list) else PARTS if isinstance(first, str) else IDS
    return TEXT


class CompletionRequest(SamplingFields):
    """A request of /v1/completions."""

    prompt: Annotated[
        Annotated[str, Field(min_length=1), Tag(TEXT)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), Tag(PARTS)]
        | Annotated[Ids, Tag(IDS)]
        | Annotated[list[Ids], Field(min_length=1), Tag(LISTS)],
        Discriminator(kind_of_prompt),
    ]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=20)
    suffix: Unsupported = None


def check(schema: type[Schema], value: object) -> Schema:
    """A request's body as an object of its schema.

    Raises:
        ApiError: the first field that is wrong.
    """
    if not isinstance(value, dict):
        raise invalid(f"The body is {quote(value)}: send a JSON object.")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise field_error(error.errors(include_url=False)[0]) from None


def field_error(error: ErrorDetails) -> ApiError:
    """An error of pydantic as a sentence that names the field."""
    param = path_of(error["loc"])
    kind = error["type"]
    if kind == "missing":
        return invalid(f"{param} is missing.", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(f"{param} is an unknown field: leave it out.", param, "unknown_parameter")
    if kind == "unsupported":
        return invalid(f"{param} {error['msg']}.", param, "unsupported_parameter")
    wanted = error["msg"][:1].lower() + error["msg"][1:]
    return invalid(f"{param} is {quote(error['input'])}: {wanted}.", param, "invalid_value")


def path_of(location: tuple[int | str, ...]) -> str:
    """A place in the body, such as messages[0].content; tags of unions are left out."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not (step.startswith("<") and step.endswith(">")):
            path += f".{step}" if path else step
    return shown(path)
