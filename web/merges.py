"""The endpoints of merges and exports."""

from typing import Any

from fastapi import APIRouter

from runs.merge import newest, start_merge, stop_merge
from runs.places import Root
from web.body import Body


def router(root: Root) -> APIRouter:
    """GET and POST api/merges, POST api/merges/stop."""
    routes = APIRouter()

    @routes.get("/api/merges")
    def listed() -> list[dict[str, Any]]:
        return newest(root)

    @routes.post("/api/merges")
    def start(body: Body) -> dict[str, str]:
        return {"output": start_merge(root, body.get("values"))}

    @routes.post("/api/merges/stop")
    def stop(body: Body) -> dict[str, str]:
        return {"output": stop_merge(root, body.get("output"))}

    return routes
