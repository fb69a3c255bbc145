"""Server-sent events."""

import json

DONE = b"data: [DONE]\n\n"


def event(content: object) -> bytes:
    """An event with a JSON value."""
    return (
        b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"
    )
