"""The body of a request: bytes within limits, as JSON without values that nothing else could use."""

import asyncio
import json
import math
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from serving.errors import ApiError, invalid
from texts import counted, one_line

GONE = 499  # nginx's status for a client that has gone, for the log
DEEPEST = 64  # nested lists and objects


async def read_json(request: Request, max_bytes: int, seconds: float) -> object:
    """The JSON value of a request's body.

    Raises:
        ApiError: the body is of another type, too large, too slow, or not such JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"The content type is {kind or 'missing'}: send application/json.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "The body is compressed: send it as it is.")
    try:
        async with asyncio.timeout(seconds):
            return parse(await read_body(request, max_bytes))
    except ClientDisconnect:
        raise ApiError(GONE, "The client closed the connection.") from None
    except TimeoutError:
        message = f"The body was not complete after {seconds:g} seconds: send it faster."
        raise ApiError(408, message, code="timeout", headers={"connection": "close"}) from None


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body, of which no more than the limit are kept."""
    error = ApiError(413, f"The body has more than {counted(max_bytes, 'byte')}: send less.", code="too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise error
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise error
    return bytes(body)


def parse(body: bytes) -> object:
    """The JSON value of some bytes in UTF-8."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8 at byte {error.start}: encode it as UTF-8.") from None
    except RecursionError:
        raise invalid(f"The body is nested more than {DEEPEST} levels deep: flatten it.") from None
    except ValueError as error:  # also a whole number of thousands of digits
        raise invalid(f"The body is not JSON: {one_line(error)}.") from None
    check(value)
    return value


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not a number of JSON")


def check(value: object) -> None:
    """Refuse depth, numbers that become infinite, and halves of surrogate pairs."""
    left: list[tuple[object, int]] = [(value, 1)]
    while left:
        value, depth = left.pop()
        if depth > DEEPEST:
            raise invalid(f"The body is nested more than {DEEPEST} levels deep: flatten it.")
        if isinstance(value, dict):
            left += [(part, depth + 1) for part in (*value, *value.values())]
        elif isinstance(value, list):
            left += [(part, depth + 1) for part in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise invalid("The body has a number beyond the range of floats: give a smaller one.")
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise invalid("The body has half of a surrogate pair (\\ud83d): send whole characters.") from None
