"""The application of the page: its static files, its endpoints, and errors as JSON. Starts without torch."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from errors import UserError
from options.fields import sections_of
from options.merge import MERGE
from options.train import TRAIN
from options.webui import PageOptions
from runs.command import presets
from runs.errors import Conflict, Failed, Missing, Outside, Refused
from runs.places import Root
from runs.secret import read_secret
from serving.errors import ApiError
from serving.hosting import ChatModels
from version import VERSION
from web import browse, changes, examiner, machine, merges, models, records, runs
from web.body import Body
from web.gate import Access, Gate, cookie_text

STATIC = Path(__file__).parent / "static"
STATUS: dict[type[UserError], int] = {Outside: 403, Missing: 404, Conflict: 409, Failed: 500}  # others: 400


def make_app(options: PageOptions, root: Root, chat: ChatModels) -> ASGIApp:
    """The application behind its gate."""
    access = Access(read_secret(root.path), options.password)
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    answer_errors(app)
    app.include_router(browse.router(root))
    app.include_router(models.router(root, chat))
    app.include_router(records.router(root))
    app.include_router(changes.router(root))
    app.include_router(machine.router())
    app.include_router(runs.router(root))
    app.include_router(examiner.router(root))
    app.include_router(merges.router(root))

    @app.get("/api/start")
    def start(request: Request) -> dict[str, Any]:
        """What the page needs first; token: for all requests that change something."""
        return {
            "version": VERSION,
            "root": str(root.path),
            "programs": {"train": sections_of(TRAIN), "merge": sections_of(MERGE)},
            "presets": presets(root),
            "token": access.token_of(request.state.session or ""),
        }

    @app.post("/login")
    async def login(request: Request, body: Body) -> Response:
        access.check_password(str(body.get("password", "")))
        cookie = cookie_text(access.cookie, access.new_session(), request.headers)
        return JSONResponse({}, headers={"set-cookie": cookie})

    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return Gate(GZipMiddleware(app, minimum_size=1000), access, options.allowed_hosts)


def answer_errors(app: FastAPI) -> None:
    """Let an application answer errors as JSON."""
    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(UserError, of_user)


async def of_user(request: Request, error: Exception) -> Response:
    """What a user can fix."""
    assert isinstance(error, UserError), "registered for these"
    field, code = (error.field, error.code) if isinstance(error, Refused) else (None, None)
    status = STATUS.get(type(error), 400)
    return JSONResponse(ApiError(status, " ".join(error.sentences), param=field, code=code).content, status)


async def of_api(request: Request, error: Exception) -> Response:
    """A refused request."""
    assert isinstance(error, ApiError), "registered for these"
    return JSONResponse(error.content, error.status, error.headers)


async def of_http(request: Request, error: Exception) -> Response:
    """An unknown path or method."""
    assert isinstance(error, HTTPException), "registered for these"
    refused = ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}.")
    return JSONResponse(refused.content, error.status_code, error.headers)
