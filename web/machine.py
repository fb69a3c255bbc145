"""The endpoint of this machine's use, as the watch tab shows it: CPU, RAM and GPUs."""

from typing import Any

import psutil
from fastapi import APIRouter

from memory.available import free_ram, total_ram
from memory.gpus import gpus


def router() -> APIRouter:
    """The path api/machine."""
    routes = APIRouter()

    @routes.get("/api/machine")
    def machine() -> dict[str, Any]:
        return {
            "cores": psutil.cpu_count(),
            "percent": psutil.cpu_percent(),  # since the last request
            "memory_used": total_ram() - free_ram(),
            "memory_total": total_ram(),
            "gpus": gpus(),
        }

    return routes
