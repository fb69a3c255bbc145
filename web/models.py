"""The endpoints of the chat's models, and /v1."""

from typing import Any

from fastapi import APIRouter
from starlette.routing import Route

from serving.hosting import ChatModels
from web.body import Body


def router(models: ChatModels) -> APIRouter:
    """GET api/models, POST api/models/load and unload, and everything below /v1."""
    routes = APIRouter()
    routes.routes.append(Route("/v1/{path:path}", models))

    @routes.get("/api/models")
    async def listed() -> dict[str, Any]:
        return {"models": models.listed()}

    @routes.post("/api/models/load")
    async def load(body: Body) -> dict[str, Any]:
        return {"name": models.load(body)}

    @routes.post("/api/models/unload")
    async def unload(body: Body) -> dict[str, Any]:
        await models.unload(str(body.get("name")))
        return {"name": body.get("name")}

    return routes
