"""Who may use the page: names it answers to, requests of other sites, the password, and the headers of all answers.

A session is a cookie that only this process's key can have signed. It is given to everyone who opens a page without a
password, and after the password otherwise. A request that changes something also needs the session's token as a header,
which no other site can read.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from options.webui import is_ip
from serving.errors import ApiError
from texts import shown

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
GUARDED = ("/api", "/v1")  # everything else is the same for everyone
SESSION_SECONDS = 30 * 24 * 3600
FAILURES, FAILURE_SECONDS = 5, 30.0  # wrong passwords, and how long the next attempt then waits


class Access:
    """The password, sessions and their tokens. No password is kept, only what scrypt makes of it."""

    def __init__(self, secret: bytes, password: str | None):
        self.needs_password = password is not None
        self._secret = secret
        self._key = self._derive(password or "")
        self._bearers: set[bytes] = set()  # of Bearer tokens that were right, because scrypt is slow
        self.cookie = f"webui_{hashlib.sha256(secret).hexdigest()[:8]}"  # cookies are shared by the ports of a host
        self._failures, self._wait_until = 0, 0.0

    def _derive(self, password: str) -> bytes:
        return hashlib.scrypt(password.encode(), salt=self._secret, n=2**14, r=8, p=1)

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()

    def check_password(self, password: str) -> None:
        """Compare a password.

        Raises:
            ApiError: it is wrong (401), or too many were wrong shortly before (429).
        """
        left = self._wait_until - time.monotonic()
        if left > 0:
            seconds = str(int(left) + 1)
            raise ApiError(429, f"Too many wrong passwords: wait {seconds} seconds.", headers={"retry-after": seconds})
        if hmac.compare_digest(self._derive(password), self._key):
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures, self._wait_until = 0, time.monotonic() + FAILURE_SECONDS
        raise ApiError(401, "The password is wrong: try again.", code="wrong_password")

    def new_session(self) -> str:
        """A session for a cookie."""
        text = f"{int(time.time()) + SESSION_SECONDS}.{secrets.token_hex(16)}"
        return f"{text}.{self._sign(text)}"

    def is_session(self, session: str) -> bool:
        """Whether a session was made with this secret and password, and is not too old."""
        text, _, signature = session.rpartition(".")
        expires = text.partition(".")[0]
        signed = session.isascii() and hmac.compare_digest(signature, self._sign(text))
        return signed and expires.isdecimal() and int(expires) > time.time()

    def token_of(self, session: str) -> str:
        """The token that requests of a session must carry."""
        return self._sign(f"token {session}")

    def session_of(self, headers: Headers) -> str | None:
        """The valid session of a request's cookies."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return None
        return morsel.value if morsel is not None and self.is_session(morsel.value) else None

    def is_bearer(self, headers: Headers) -> bool:
        """Whether a request has the password as Authorization: Bearer, as clients of /v1 send it.

        Raises:
            ApiError: it has a wrong one.
        """
        kind, _, password = headers.get("authorization", "").partition(" ")
        if not self.needs_password or kind.lower() != "bearer":
            return False
        password = password.encode("latin-1").decode("utf-8", "replace")  # headers are bytes
        digest = hmac.new(self._key, password.encode(), "sha256").digest()
        if digest not in self._bearers:
            self.check_password(password)
            self._bearers = {digest}
        return True


class Gate:
    """Lets requests through to the application, or answers them itself.

    Args:
        names: hosts that requests may be for, besides localhost and IP addresses, which no foreign name can stand for.
    """

    def __init__(self, app: ASGIApp, access: Access, names: tuple[str, ...]):
        self._app, self._access = app, access
        self._names = {name.lower() for name in ("localhost", *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        session = self._access.session_of(headers)
        fresh = None
        if session is None and not self._access.needs_password and scope["method"] == "GET":
            fresh = session = self._access.new_session()
        with_headers = self._answering(headers, send, fresh if scope["path"] in ("/", "/index.html") else None)
        scope.setdefault("state", {})["session"] = session
        try:
            self._check_host(headers)
            self._check_origin(scope["method"], headers)
            if scope["path"].startswith(GUARDED):
                self._check_session(scope["method"], scope["path"], headers, session if fresh is None else None)
        except ApiError as error:
            await JSONResponse(error.content, error.status, error.headers)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _answering(self, headers: Headers, send: Send, fresh: str | None) -> Callable:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(raw=list(message.get("headers", [])))
                for name, value in HEADERS.items():
                    answered.setdefault(name, value)
                if fresh is not None:
                    answered.append("set-cookie", cookie_text(self._access.cookie, fresh, headers))
                message = {**message, "headers": answered.raw}
            await send(message)

        return with_headers

    def _check_host(self, headers: Headers) -> None:
        host = host_of(headers.get("host", ""))
        if not (is_ip(host) or host in self._names):
            raise ApiError(
                403,
                f"This page does not answer to the name {shown(host, 100)}: give it as --allowed_hosts.",
                code="host",
            )

    def _check_origin(self, method: str, headers: Headers) -> None:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            foreign = site not in ("same-origin", "none") and not (method == "GET" and is_navigation(headers))
        else:
            foreign = origin is not None and not self._is_own(origin, headers)
        if foreign:
            raise ApiError(403, "The request comes from another site: open the page itself.", code="origin")

    def _is_own(self, origin: str, headers: Headers) -> bool:
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return place != "" and (
            place == headers.get("host", "").lower() or host_of(place) in self._names - {"localhost"}
        )

    def _check_session(self, method: str, path: str, headers: Headers, session: str | None) -> None:
        if self._access.is_bearer(headers):
            return  # no browser adds it by itself
        if session is None and self._access.needs_password:
            raise ApiError(401, "The page has a password: log in.", code="password")
        if path.startswith("/v1") or method in ("GET", "HEAD"):
            return  # bodies of /v1 are JSON, which another site cannot send without asking
        given = headers.get("x-csrf-token", "")
        if session is None or not hmac.compare_digest(given.encode(), self._access.token_of(session).encode()):
            raise ApiError(403, "The request has no valid token: reload the page.", code="token")


def host_of(place: str) -> str:
    """The host of "host:port", in lower case."""
    host = place.lower()
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def is_navigation(headers: Headers) -> bool:
    """Whether a request opens the page itself, as a link does."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def cookie_text(name: str, session: str, headers: Headers) -> str:
    """A session's cookie. Without a path, it holds for the directory that the browser sees, whatever the proxy."""
    secure = "; Secure" if headers.get("x-forwarded-proto", "").lower() == "https" else ""
    return f"{name}={session}; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict{secure}"
