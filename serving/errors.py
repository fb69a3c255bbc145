"""Errors of a request as OpenAI's error object."""

from collections.abc import Mapping

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}  # others by class


class ApiError(Exception):
    """A response other than 200.

    status: of HTTP. message: one sentence or two. param: the field that it is about, such as messages[0].content.
    code: a word for programs. headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def content(self) -> dict[str, object]:
        """The error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """An error of the request's content: 400."""
    return ApiError(400, message, param=param, code=code)
