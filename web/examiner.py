"""The endpoints of the form's checks: at once those of the flags alone, and those of the doctor."""

from typing import Any

from fastapi import APIRouter

from options.fields import values_of
from options.train import TRAIN
from runs.examiner import Examiner
from runs.places import Root
from runs.start import check_start
from web.body import Body


def router(root: Root) -> APIRouter:
    """POST api/check, api/examine, api/preview: {values, launch, gpu_memory, page}."""
    routes = APIRouter()
    examiner = Examiner()

    @routes.post("/api/check")
    def check(body: Body) -> dict[str, Any]:
        composed = check_start(root, body.get("values"), body.get("launch"))
        of_flags = {"problems": composed.problems, "notes": composed.notes}
        return {**of_flags, "command": composed.shown, "yaml": composed.yaml}

    @routes.post("/api/examine")
    async def examine(body: Body) -> dict[str, Any]:
        memory = str(body.get("gpu_memory") or "").strip()
        answer = await examiner.examine(root, body, *(["--dry_run", f"--gpu_memory={memory}"] if memory else []))
        if "memory" in answer:
            answer["memory"]["flags"] = values_of(TRAIN, answer["memory"]["flags"])
        return answer

    @routes.post("/api/preview")
    async def preview(body: Body) -> dict[str, Any]:
        return await examiner.examine(root, body, preview=True)

    return routes
