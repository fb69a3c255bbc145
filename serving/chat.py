"""/v1/chat/completions: a request as a Task, and its answers as chat completions."""

from collections.abc import Sequence

from generation.request import Request, Token
from generation.stream import AnswerStream
from serving.answers import Choice, Delta, Piece, TextWriter, Writer
from serving.constraints import constraint_of
from serving.errors import invalid
from serving.messages import offered, to_record
from serving.models import ServedModel
from serving.schema import ChatRequest
from serving.task import Head, Json, Task, answer_tokens, finite, sampling_of, stops_of, stream_options
from serving.tool_calls import CallWriter


def chat_task(chat: ChatRequest, model: ServedModel) -> Task:
    """Check a request and make its prompt.

    Raises:
        ApiError: a field cannot be used.
    """
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid("top_logprobs needs logprobs: give both or neither.", "top_logprobs")
    stream, include_usage = stream_options(chat)
    record = to_record(chat, model.mode)
    prompt = model.mode.prompt_ids(model.tokenizer, record)
    asked, param = asked_tokens(chat)
    max_new_tokens = answer_tokens(len(prompt), asked, param, model)
    logprobs = chat.top_logprobs or 0 if chat.logprobs else None
    stops, constraint = stops_of(chat), constraint_of(chat, model)
    choices = []
    for index in range(chat.n or 1):
        sampling = sampling_of(chat, model, index, logprobs)
        own = constraint() if constraint else None  # it has the state of one answer
        request = Request(prompt, max_new_tokens, model.stop_ids, sampling, own)
        choices.append(Choice(request, make_writer(chat, model, AnswerStream(model.mode, model.tokenizer, stops))))
    return Task(model, choices, len(prompt), stream, include_usage, ChatFormat(model, bool(chat.logprobs)))


def make_writer(chat: ChatRequest, model: ServedModel, stream: AnswerStream) -> Writer:
    """Writes an answer, which calls a tool only if tools are offered."""
    if model.mode.calls is None or not offered(chat):
        return TextWriter(stream)
    return CallWriter(stream, model.mode.calls, whole=not chat.stream)


def asked_tokens(chat: ChatRequest) -> tuple[int | None, str]:
    """(maximum number of tokens, the field that has it)."""
    older, newer = chat.max_tokens, chat.max_completion_tokens
    if older is not None and newer is not None and older != newer:
        raise invalid("max_tokens and max_completion_tokens differ: give only one.", "max_tokens")
    return (older, "max_tokens") if newer is None else (newer, "max_completion_tokens")


class ChatFormat:
    """Chat completions, and chunks of them. logprobs: whether they have those of tokens."""

    def __init__(self, model: ServedModel, logprobs: bool):
        self._head = Head("chatcmpl", model)
        self._logprobs = logprobs
        self._opened: set[int] = set()

    def opening(self) -> list[Json]:
        """Nothing: each choice opens with its first piece."""
        return []

    def chunks(self, piece: Piece) -> list[Json]:
        """A chunk for the role, for every delta, and for the end."""
        deltas = list(piece.deltas)
        if piece.index not in self._opened:
            self._opened.add(piece.index)
            content = None if any("tool_calls" in delta for delta in deltas) else ""
            deltas.insert(0, {"role": "assistant", "content": content, "refusal": None})
        reasons: list[str | None] = [None] * len(deltas)
        if piece.finish_reason is not None:
            deltas.append({})
            reasons.append(piece.finish_reason)
        chunks = []
        holder = min(1, len(deltas) - 1) if "role" in deltas[0] else 0  # of the tokens: not the chunk of the role
        for number, (delta, reason) in enumerate(zip(deltas, reasons, strict=True)):
            choice = {
                "index": piece.index,
                "delta": delta,
                "logprobs": self._logprobs_of(piece.tokens if number == holder else []),
                "finish_reason": reason,
            }
            chunks.append(self._head.wrap("chat.completion.chunk", [choice]))
        return chunks

    def closing(self) -> Json:
        """A chunk without choices."""
        return self._head.wrap("chat.completion.chunk", [])

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """A chat completion: what the chunks of a stream amount to."""
        choices = []
        for index in sorted({piece.index for piece in pieces}):
            of_choice = [piece for piece in pieces if piece.index == index]
            choices.append(
                {
                    "index": index,
                    "message": message_of([delta for piece in of_choice for delta in piece.deltas]),
                    "logprobs": self._logprobs_of([token for piece in of_choice for token in piece.tokens]),
                    "finish_reason": of_choice[-1].finish_reason,
                }
            )
        return self._head.wrap("chat.completion", choices)

    def _logprobs_of(self, tokens: Sequence[Token]) -> Json | None:
        if not self._logprobs:
            return None
        return {"content": [self._entry(token) for token in tokens], "refusal": None}

    def _entry(self, token: Token) -> Json:
        top = [self._token(index, logprob) for index, logprob in token.top]
        return {**self._token(token.id, token.logprob), "top_logprobs": top}

    def _token(self, index: int, logprob: float | None) -> Json:
        spelled = self._head.model.token_bytes[index]
        return {"token": spelled.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(spelled)}


def message_of(deltas: Sequence[Delta]) -> Json:
    """The assistant's message that deltas amount to."""
    content = ""
    calls: list[Json] = []
    for delta in deltas:
        content += delta.get("content") or ""
        for part in delta.get("tool_calls", []):
            function = part["function"]
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": "function", "function": {"name": "", "arguments": ""}})
            for key, value in function.items():
                calls[part["index"]]["function"][key] += value
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message |= {"content": content or None, "tool_calls": calls}
    return message
