"""Models that are loaded and unloaded on request, from below a root; the application of serve.py answers at /v1.

Nothing here imports torch before the first model is loaded.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from errors import UserError
from options.serve import ServeOptions, parse_serve
from runs.errors import Conflict
from runs.places import Root
from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.loading import Loaded, Loader

MAX_SEQS = 4  # answers of a model at once
FLAGS = ("quantization_bit", "precision", "device")


@dataclass
class Entry:
    """A model. state: "loading", "loaded", "failed" or "unloading". problem: why it failed."""

    state: str = "loading"
    problem: str = ""
    loaded: "Loaded | None" = None


class ChatModels:
    """The models of a page by their names, which are paths; as an application, its /v1."""

    def __init__(self, root: Root):
        self._root = root
        self._entries: dict[str, Entry] = {}
        self._turn = asyncio.Lock()  # one is loaded at a time
        self._tasks: set[asyncio.Task[None]] = set()
        self._loader: Loader | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = JSONResponse({"object": "list", "data": []})
        if self._loader is not None:
            app = self._loader.app
        elif (scope["method"], scope["path"]) != ("GET", "/v1/models"):
            error = ApiError(404, "No model is loaded: load one first.", param="model", code="model_not_found")
            app = JSONResponse(error.content, error.status)
        await app(scope, receive, send)

    def listed(self) -> list[dict[str, Any]]:
        """The models; memory is in bytes of own weights, and of those shared with other loaded models."""
        loaded = [entry.loaded for entry in self._entries.values() if entry.loaded is not None]
        about: dict[str, dict[str, Any]] = {}
        if loaded:
            from serving.loading import memory_of

            for name, memory in memory_of(loaded).items():
                about[name] = dict(zip(("memory", "shared"), memory, strict=True))
        for model in loaded:
            base, method = model.unloaded.base, model.unloaded.checkpoint.train_type
            about[model.served.name] |= {"base": self._root.name(base.path), "mode": base.mode, "train_type": method}
        return [
            {"name": name, "state": entry.state, "problem": entry.problem, **about.get(name, {})}
            for name, entry in self._entries.items()
        ]

    def load(self, body: dict[str, Any]) -> str:
        """Begin to load a model; returns its name.

        Raises:
            Conflict: it is there.
            UserError: it cannot be loaded.
        """
        path = self._root.below(body.get("path"))
        name = self._root.name(path)
        if name in self._entries and self._entries[name].state != "failed":
            raise Conflict(f"{name} is {self._entries[name].state} already.")
        words = [f"--model_path={path}", f"--served_model_name={name}", f"--max_num_seqs={MAX_SEQS}"]
        options, problems = parse_serve(words + [f"--{flag}={body[flag]}" for flag in FLAGS if body.get(flag)])
        if problems:
            raise UserError(*map(self._shown, problems))
        entry = self._entries[name] = Entry()
        task = asyncio.create_task(self._load(entry, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return name

    async def _load(self, entry: Entry, options: ServeOptions) -> None:
        entry.problem = "The server failed: its log says why."
        try:
            async with self._turn:
                loaded = await asyncio.to_thread(self._load_weights, options)
            assert self._loader is not None, "made with the first model"
            self._loader.service.add(loaded.served)
            entry.loaded, entry.problem = loaded, ""
        except UserError as error:
            entry.problem = self._shown(" ".join(error.sentences))
        finally:
            entry.state = "failed" if entry.problem else "loaded"

    def _load_weights(self, options: ServeOptions) -> "Loaded":
        from serving.loading import Loader
        from serving.models import find_models

        loader = self._loader = self._loader or Loader(options.limits)
        found = find_models(options)
        self._root.below(str(found.base.base.path))
        return loader.load(found, options)

    def _shown(self, sentence: str) -> str:
        return sentence.replace(f"{self._root.path}/", "")

    async def unload(self, name: str) -> None:
        """Unload a model, which ends its answers, or forget one that failed.

        Raises:
            Conflict: there is none of this name, or it is not loaded yet.
        """
        entry = self._entries.get(name)
        if entry is None or entry.state not in ("loaded", "failed"):
            raise Conflict(f"{name[:100]} is {entry.state if entry else 'not loaded'}: choose a loaded model.")
        if entry.loaded is not None and self._loader is not None:
            from serving.loading import free

            entry.state = "unloading"
            await asyncio.to_thread(self._loader.service.remove(name).engine.close)
            entry.loaded = None
            await asyncio.to_thread(free)
        del self._entries[name]

    def close(self) -> None:
        """Unload all at the end of the server."""
        if self._loader is not None:
            self._loader.close()
