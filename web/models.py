"""The endpoints of models: those below the root, those of the chat, and its /v1."""

from typing import Any

from fastapi import APIRouter
from starlette.routing import Route

from runs.models import find_models
from runs.places import Root
from serving.hosting import ChatModels
from web.body import Body


def router(root: Root, models: ChatModels) -> APIRouter:
    """GET api/models and api/models/found, POST api/models/load and unload, and everything below /v1."""
    routes = APIRouter()
    routes.routes.append(Route("/v1/{path:path}", models))

    @routes.get("/api/models")
    async def listed() -> dict[str, Any]:
        return {"models": models.listed()}

    @routes.get("/api/models/found")
    def found() -> list[dict[str, str]]:
        return sorted(find_models(root), key=lambda model: (model["kind"] == "checkpoint", model["path"]))

    @routes.post("/api/models/load")
    async def load(body: Body) -> dict[str, Any]:
        return {"name": models.load(body)}

    @routes.post("/api/models/unload")
    async def unload(body: Body) -> dict[str, Any]:
        await models.unload(str(body.get("name")))
        return {"name": body.get("name")}

    return routes
