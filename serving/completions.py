"""/v1/completions: prompts without a template, as a text or as ids."""

from collections.abc import Sequence

from generation.request import Request, Token
from generation.stream import AnswerStream
from serving.answers import Choice, Piece, TextWriter
from serving.errors import invalid
from serving.models import ServedModel
from serving.schema import CompletionRequest
from serving.task import Head, Json, Task, answer_tokens, finite, sampling_of, stops_of, stream_options

DEFAULT_TOKENS = 16  # of OpenAI's API
MOST_CHOICES = 128


def completion_task(completion: CompletionRequest, model: ServedModel) -> Task:
    """Check a request and make its prompts.

    Raises:
        ApiError: a field cannot be used.
    """
    count = completion.n or 1
    if completion.best_of not in (None, count):
        message = "best_of is not supported by this server: leave it out, or give the value of n."
        raise invalid(message, "best_of", "unsupported_parameter")
    if completion.echo and completion.logprobs is not None:
        message = "echo with logprobs is not supported by this server: give only one."
        raise invalid(message, "echo", "unsupported_parameter")
    stream, include_usage = stream_options(completion)
    prompts = prompts_of(completion, model)
    if len(prompts) * count > MOST_CHOICES:
        raise invalid(f"The prompts times n are more than {MOST_CHOICES}: send fewer at once.", "prompt")
    stops, choices = stops_of(completion), []
    for prompt in prompts:
        max_new_tokens = answer_tokens(len(prompt), completion.max_tokens, "max_tokens", model, DEFAULT_TOKENS)
        for index in range(count):
            sampling = sampling_of(completion, model, index, completion.logprobs)
            request = Request(prompt, max_new_tokens, model.stop_ids, sampling)
            choices.append(Choice(request, TextWriter(AnswerStream(model.mode, model.tokenizer, stops))))
    echoed = echoes(completion, prompts, model) if completion.echo else [""] * len(prompts)
    output = CompletionFormat(model, completion.logprobs, [text for text in echoed for _ in range(count)])
    return Task(model, choices, sum(map(len, prompts)), stream, include_usage, output)


def prompts_of(completion: CompletionRequest, model: ServedModel) -> list[list[int]]:
    """The ids of all prompts. A text becomes the ids that a record without a template has; ids are taken as they are.

    Raises:
        ApiError: an id is not in the vocabulary.
    """
    prompt = completion.prompt
    if isinstance(prompt, str):
        prompt = [prompt]
    prompts: list[list[int]] = []
    for part in [prompt] if isinstance(prompt[0], int) else prompt:
        if isinstance(part, str):
            record = {"messages": [{"role": "user", "content": part}], "ready": True}
            prompts.append(model.mode.prompt_ids(model.tokenizer, record))
        else:
            assert isinstance(part, list), "a text or ids, by the schema"
            prompts.append(part)
    largest = max(max(ids) for ids in prompts)
    if largest >= model.vocab_size:
        message = f"prompt has the token {largest}, but the model's last is {model.vocab_size - 1}."
        raise invalid(message, "prompt")
    return prompts


def echoes(completion: CompletionRequest, prompts: list[list[int]], model: ServedModel) -> list[str]:
    """The text of every prompt, to be repeated in front of its answers."""
    prompt = completion.prompt
    texts = [prompt] if isinstance(prompt, str) else prompt
    given = [text for text in texts if isinstance(text, str)]
    return given or [model.tokenizer.decode(ids) for ids in prompts]


class CompletionFormat:
    """Text completions, and chunks of them.

    Args:
        logprobs: see `Sampling`.
        echoed: the text in front of each choice's answer.
    """

    def __init__(self, model: ServedModel, logprobs: int | None, echoed: Sequence[str]):
        self._head = Head("cmpl", model)
        self._logprobs = logprobs
        self._echoed = echoed
        self._offsets = [len(text) for text in echoed]  # characters before each choice's next token

    def opening(self) -> list[Json]:
        """A chunk for every text that is echoed."""
        return [self._chunk(index, text, [], None) for index, text in enumerate(self._echoed) if text]

    def chunks(self, piece: Piece) -> list[Json]:
        """One chunk."""
        return [self._chunk(piece.index, text_of(piece), piece.tokens, piece.finish_reason)]

    def closing(self) -> Json:
        """A chunk without choices."""
        return self._head.wrap("text_completion", [])

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """A completion."""
        choices = []
        for index, echoed in enumerate(self._echoed):
            of_choice = [piece for piece in pieces if piece.index == index]
            text = echoed + "".join(text_of(piece) for piece in of_choice)
            tokens = [token for piece in of_choice for token in piece.tokens]
            choices.append(self._choice(index, text, tokens, of_choice[-1].finish_reason))
        return self._head.wrap("text_completion", choices)

    def _chunk(self, index: int, text: str, tokens: Sequence[Token], reason: str | None) -> Json:
        return self._head.wrap("text_completion", [self._choice(index, text, tokens, reason)])

    def _choice(self, index: int, text: str, tokens: Sequence[Token], reason: str | None) -> Json:
        logprobs = None if self._logprobs is None else self._logprobs_of(index, tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs_of(self, index: int, tokens: Sequence[Token]) -> Json:
        """The older format: a list for each kind of value."""
        names = [self._name(token.id) for token in tokens]
        offsets = []
        for name in names:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(name)
        top = [
            {self._name(id): finite(logprob) for id, logprob in (*token.top, (token.id, token.logprob))}
            for token in tokens
        ]
        return {
            "tokens": names,
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": top if self._logprobs else None,
            "text_offset": offsets,
        }

    def _name(self, index: int) -> str:
        """A token's text; for a part of a character, its bytes as OpenAI writes them."""
        spelled = self._head.model.token_bytes[index]
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def text_of(piece: Piece) -> str:
    """The text of a piece."""
    return "".join(delta["content"] for delta in piece.deltas)
