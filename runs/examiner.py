"""The checks of a run before it starts: doctor/process.py, started on demand, with one request at a time."""

import asyncio
import contextlib
import itertools
import json
import sys
from typing import Any

from options.fields import located
from options.train import TRAIN
from runs.command import numbers_of
from runs.errors import Conflict, Failed
from runs.places import REPOSITORY, Root
from runs.start import check_start

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
            Conflict: there is a newer one.
            Failed: the doctor ended, or took too long.
        """
        number = self._newest[page] = next(self._numbers)
        async with self._lock:
            if self._newest[page] != number:
                raise Conflict("A newer request of this page takes precedence.", code="superseded")
            del self._newest[page]
            line = await self._exchange(request) or await self._exchange(request)  # it may just have been ending
        if not line:
            raise Failed("The check ended without an answer: see the server's output.")
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
            raise Failed(f"The check took over {SECONDS:g} seconds: give fewer or smaller files.") from None
        finally:
            if not line:  # a late answer would be taken for that of the next request
                self._process = None
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        return line

    async def examine(self, root: Root, body: dict[str, Any], *flags: str, **details: bool) -> dict[str, Any]:
        """The doctor's answer about {values, launch, page}, whose problems include those of the flags alone.

        Raises:
            Refused, Conflict, Failed: see `check_start` and `ask`.
        """
        composed = await asyncio.to_thread(check_start, root, body.get("values"), body.get("launch"))
        problems = [*composed.problems]
        known = {problem["field"] for problem in problems} - {""}  # such as a path that was left out
        if known & NEEDED:
            return {"problems": problems}
        request = {"argv": [*composed.argv, *flags], "ranks": numbers_of(body.get("launch"))[1], **details}
        answer = await self.ask(f"{body.get('page')}"[:100] + f" {details}", request)
        for field, sentence in answer["problems"]:
            problem = {"field": field, "text": sentence} if field else located(TRAIN, [sentence])[0]
            problems += [problem] if problem["field"] not in known and problem not in problems else []
        return {**answer, "problems": problems}
