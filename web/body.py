"""The JSON object of a request's body, bounded in bytes and time."""

from typing import Annotated, Any

from fastapi import Depends, Request

from serving.body import read_json
from serving.errors import ApiError

MAX_BYTES = 2**20
SECONDS = 30.0


async def body_of(request: Request) -> dict[str, Any]:
    """The object.

    Raises:
        ApiError: it is too large (413), too slow (408), or no JSON object (400).
    """
    body = await read_json(request, MAX_BYTES, SECONDS)
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object: send one.")
    return body


Body = Annotated[dict[str, Any], Depends(body_of)]  # of an endpoint
