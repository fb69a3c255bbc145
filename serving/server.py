"""uvicorn with our errors, deadlines and end: after SIGTERM running requests finish, and new ones are refused."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from errors import UserError
from serving.errors import ApiError
from texts import shown

HEADER_SECONDS = 30.0  # for a client to send the headers of a request
SEND_BUFFER = 2**16  # bytes of a connection that its client has not taken yet
KEEP_ALIVE_SECONDS = 60  # of a connection without requests; longer than clients keep them
LAST_SECONDS = 3  # for connections to close at the end
Received = asyncio.Queue[int]  # the numbers of signals


def bind(host: str, port: int, seconds: float) -> socket.socket:
    """A socket at the address of --host and --port, which does not listen yet.

    Args:
        seconds: after which a connection is closed whose client takes nothing.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(min(seconds, 86400) * 1000))
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise address_error(host, port, error) from None
    return listener


def address_error(host: str, port: int, error: Exception) -> UserError:
    """Why a server cannot listen, as a sentence."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return UserError(f"--port {port} is in use: give another one, or 0 for any free port.")
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return UserError(f"--port {port} is reserved for the administrator: give one from 1024.")
    return UserError(f"--host {shown(host)} is no address of this machine: give 127.0.0.1 or 0.0.0.0.")


def url_of(listener: socket.socket) -> str:
    """The URL of a socket; of all networks, that of this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Protocol(H11Protocol):
    """HTTP/1.1 whose own errors are error objects, and which does not wait for headers for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._is_answering():
            self._await_headers()
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no request."""
        self._refuse(ApiError(400, f"{msg.rstrip('.')}: send HTTP/1.1."))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        message = f"The headers were not complete after {HEADER_SECONDS:g} seconds: send them faster."
        self._refuse(ApiError(408, message, code="timeout"))

    def _refuse(self, error: ApiError) -> None:
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.content).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            response = h11.Response(status_code=error.status, headers=list(headers.items()))
            for part in (response, h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    announcement = ""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.announcement, file=sys.stderr, flush=True)


def make_server(app: ASGIApp, announcement: str) -> Server:
    """A server of an application.

    Args:
        announcement: printed on stderr once it listens.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = Server(config)
    server.announcement = announcement
    return server


def run(server: Server, listener: socket.socket, drain: Callable[[Received], Awaitable[None]]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        drain: called before the end with the further signals; refuses new requests and waits for the running ones.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
        OSError: another program has taken the address since `bind`.
    """
    if asyncio.run(serve(server, listener, drain)) == signal.SIGINT:
        raise KeyboardInterrupt


async def serve(server: Server, listener: socket.socket, drain: Callable[[Received], Awaitable[None]]) -> int | None:
    """Run a server to its end; returns the signal that ended it."""
    loop = asyncio.get_running_loop()
    received: Received = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received.put_nowait, number)
    serving = asyncio.create_task(server.serve([listener]))
    waiting: asyncio.Task[Any] = asyncio.create_task(received.get())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        waiting.cancel()
        serving.result()
        return None
    await drain(received)
    server.should_exit = True
    await serving
    return waiting.result()


def process_note() -> str:
    """How to end this process."""
    return f"kill {os.getpid()} or Ctrl-C ends it after running answers."
