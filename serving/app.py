"""The application: paths, access, and every error as OpenAI's error object."""

import asyncio
import hmac
import sys
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.body import read_json
from serving.chat import chat_task
from serving.completions import completion_task
from serving.errors import ApiError
from serving.openapi import CHAT, COMPLETION, JSON_MODEL, MODEL_LIST, describe
from serving.schema import ChatRequest, CompletionRequest, check
from serving.service import Service
from texts import one_line, shown

PROBED = ("/health", "/metrics")
BODY_SECONDS = 30.0  # for a client to send a body


def make_app(service: Service, key: str | None, body_seconds: float = BODY_SECONDS) -> ASGIApp:
    """The application.

    Args:
        key: that clients must send; None for none.
    """
    app = FastAPI(title="chatglm-finetuning", openapi_url=None)
    models, limits = service.models, service.limits

    async def body_of(request: Request) -> object:
        return await read_json(request, limits.max_body_bytes, body_seconds)

    @app.get("/health", response_class=Response)
    async def health() -> Response:
        if not models.alive:
            raise ApiError(503, "A model has failed: the server's log says why; start the server again.")
        return Response()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", openapi_extra=MODEL_LIST)
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model.card for model in models.by_name.values()]})

    @app.get("/v1/models/{name:path}", openapi_extra=JSON_MODEL)
    async def retrieve_model(name: str) -> JSONResponse:
        return JSONResponse(models.find(name).card)

    @app.post("/v1/chat/completions", openapi_extra=CHAT)
    async def create_chat_completion(request: Request) -> Response:
        chat = check(ChatRequest, await body_of(request))
        task = await asyncio.to_thread(chat_task, chat, models.find(chat.model))
        return service.respond(task, request.scope)

    @app.post("/v1/completions", openapi_extra=COMPLETION)
    async def create_completion(request: Request) -> Response:
        completion = check(CompletionRequest, await body_of(request))
        task = await asyncio.to_thread(completion_task, completion, models.find(completion.model))
        return service.respond(task, request.scope)

    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(Exception, of_server)
    description = describe(app)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(description)

    return Gate(app, service, key)


async def of_http(request: Request, error: Exception) -> Response:
    """An unknown path or method as an error object."""
    assert isinstance(error, HTTPException), "registered for these"
    texts = {404: f"{request.method} {shown(request.url.path, 100)} is unknown: see docs/serving.md for the paths."}
    allowed = (error.headers or {}).get("Allow", "another method")
    texts[405] = f"{request.method} is not allowed for {shown(request.url.path, 100)}: use {allowed}."
    message = texts.get(error.status_code, str(error.detail))
    return JSONResponse(ApiError(error.status_code, message).content, error.status_code, error.headers)


async def of_api(request: Request, error: Exception) -> Response:
    """An error of this package."""
    assert isinstance(error, ApiError), "registered for these"
    request.scope["state"]["error"] = error
    return as_response(error)


async def of_server(request: Request, error: Exception) -> Response:
    """An error of the program itself, whose traceback uvicorn prints."""
    return as_response(ApiError(500, "The server failed: its log says why."))


def as_response(error: ApiError) -> Response:
    """An error object as a response."""
    return JSONResponse(error.content, error.status, error.headers)


class Gate:
    """Refuses requests without the key or while draining, and logs each request in one line without its content."""

    def __init__(self, app: ASGIApp, service: Service, key: str | None):
        self._app, self._service = app, service
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        state: dict[str, Any] = scope.setdefault("state", {})

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, noting_status)
        except ApiError as error:
            await as_response(error)(scope, receive, noting_status)
        finally:
            log_request(scope, state.get("status", status), time.monotonic() - began, state)

    def _check(self, scope: Scope) -> None:
        path = scope["path"]
        if self._service.draining and path != "/metrics":
            raise ApiError(
                503, "The server is shutting down: try another one.", code="shutting_down", headers={"retry-after": "5"}
            )
        if self._expected is None or not path.startswith("/v1"):
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            message = "The API key is wrong: send it as Authorization: Bearer KEY."
            if not given:
                message = "The API key is missing: send it as Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def log_request(scope: Scope, status: int, seconds: float, state: Mapping[str, Any]) -> None:
    """Print a line about a request on stderr, but not about checks of health; a failed model's error as well."""
    if scope["path"] in PROBED and status == 200:
        return
    client = ":".join(map(str, scope.get("client") or ("?",)))
    words = [time.strftime("%Y-%m-%d %H:%M:%S"), client, scope["method"], shown(scope["path"], 100), str(status or 500)]
    words.append(f"{seconds:.3f} s")
    if "task" in state:
        usage = state["task"].usage()
        words.append(f"{usage['prompt_tokens']}+{usage['completion_tokens']} tokens")
    if "error" in state and state["error"].status >= 500:
        words.append(one_line(state["error"].__cause__ or state["error"]))
    print(" ".join(words), file=sys.stderr, flush=True)
