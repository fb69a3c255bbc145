"""The checks of the form: at once those of the flags alone, and those of doctor/process.py, which the server starts."""

import asyncio
import contextlib
import itertools
import json
import sys
from typing import Any

from fastapi import APIRouter, Request

from options.fields import located, values_of
from options.train import TRAIN
from serving.errors import ApiError
from web.body import body_of
from web.fields import Composed, compose, numbers_of
from web.paths import REPOSITORY, Root

SECONDS = 180.0  # for an answer; the first one waits for torch
MOST_BYTES = 2**25  # of an answer
NEEDED = {"model_name_or_path", "train_path"}  # the doctor has nothing to examine without them


class Examiner:
    """The doctor's process, started when it is needed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._numbers = itertools.count()
        self._newest: dict[str, int] = {}  # page -> its newest request that waits

    async def ask(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """The doctor's answer. Of a page's requests that wait for another answer, only the newest is answered.

        Raises:
            ApiError: there is a newer one (409), or the doctor ended, or took too long (500).
        """
        number = self._newest[page] = next(self._numbers)
        async with self._lock:
            if self._newest[page] != number:
                raise ApiError(409, "A newer request of this page takes precedence.", code="superseded")
            del self._newest[page]
            line = await self._exchange(request) or await self._exchange(request)  # it may just have been ending
        if not line:
            raise ApiError(500, "The check ended without an answer: see the server's output.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _exchange(self, request: dict[str, Any]) -> bytes:
        """A line for a line; empty if the process ended."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "doctor.process", cwd=REPOSITORY, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, limit=MOST_BYTES, start_new_session=True,
            )  # fmt: skip
        process, line = self._process, b""
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        except ConnectionError:
            pass
        except TimeoutError:
            raise ApiError(504, f"The check took over {SECONDS:g} seconds: give fewer or smaller files.") from None
        finally:
            if not line:  # a late answer would be taken for that of the next request
                self._process = None
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        return line


def router(root: Root) -> APIRouter:
    """POST api/check, api/examine, api/preview: {values, launch, gpu_memory, page}."""
    routes = APIRouter()
    examiner = Examiner()

    async def composed_of(body: dict[str, Any]) -> Composed:
        return await asyncio.to_thread(compose, body.get("values"), body.get("launch"), root)

    async def ask(body: dict[str, Any], *flags: str, **details: bool) -> dict[str, Any]:
        composed = await composed_of(body)
        problems = [*composed.problems]
        known = {problem["field"] for problem in problems} - {""}  # such as a path that was left out
        if known & NEEDED:
            return {"problems": problems}
        ranks = numbers_of(body.get("launch"))[1]
        request = {"argv": [*composed.argv, *flags], "ranks": ranks, **details}
        answer = await examiner.ask(f"{body.get('page')}"[:100] + f" {details}", request)
        for field, sentence in answer["problems"]:
            problem = {"field": field, "text": sentence} if field else located(TRAIN, [sentence])[0]
            problems += [problem] if problem["field"] not in known and problem not in problems else []
        return {**answer, "problems": problems}

    @routes.post("/api/check")
    async def check(request: Request) -> dict[str, Any]:
        composed = await composed_of(await body_of(request))
        return {
            "problems": composed.problems,
            "notes": composed.notes,
            "command": composed.shown,
            "yaml": composed.yaml,
        }

    @routes.post("/api/examine")
    async def examine(request: Request) -> dict[str, Any]:
        body = await body_of(request)
        memory = str(body.get("gpu_memory") or "").strip()
        answer = await ask(body, *(["--dry_run", f"--gpu_memory={memory}"] if memory else []))
        if "memory" in answer:
            answer["memory"]["flags"] = values_of(TRAIN, answer["memory"]["flags"])
        return answer

    @routes.post("/api/preview")
    async def preview(request: Request) -> dict[str, Any]:
        return await ask(await body_of(request), preview=True)

    return routes
