"""The HTTP/1.1 server: connections on asyncio's Protocol (uvloop), parsing by httptools, TLS by the event loop.

Laws:
- Answers leave in the order of the requests (pipelining); one request at a time is being answered per connection.
- A handler that answers without awaiting is answered in the same turn of the loop: no task, one write.
- Bounded: head, body, pipelined requests, and what is buffered for a peer that does not read. Who is too slow (half a request, no reading) is cut off.
- Whatever a handler raises, the peer gets an answer from `on_error` and the server goes on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from fastkube.http.connection import LINGER_SECONDS_MAX, Connection
from fastkube.http.message import Handler, Request, Response
from fastkube.runtime import clock, logs

BODY_BYTES_MAX = 3 * 1024 * 1024
HANDSHAKE_SECONDS_MAX = 10
SWEEP_SECONDS = 1.0

log = logs.get("http")

ErrorAnswer = Callable[[Request | None, int, str, BaseException | None], Response]


def plain_error(request: Request | None, status: int, message: str, error: BaseException | None) -> Response:
    """The answer to what went wrong, as plain text; servers with a form of their own pass theirs as `on_error`."""
    if error is not None:
        log.error("handler failed", method=request.method if request else "", path=request.path if request else "", exc_info=error)
    return Response(status, message.encode() + b"\n", "text/plain; charset=utf-8")


class Server:
    """Listens on any number of addresses and hands requests to `handler`."""

    def __init__(
        self, handler: Handler, ssl_context: ssl.SSLContext | None = None, *, on_error: ErrorAnswer = plain_error, body_bytes_max: int = BODY_BYTES_MAX
    ) -> None:
        self.handler = handler
        self.ssl_context = ssl_context
        self.on_error = on_error
        self.body_bytes_max = body_bytes_max
        self.connections: set[Connection] = set()
        self.closing = False
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self._listeners: list[asyncio.AbstractServer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._drains: dict[Connection, asyncio.Future[None]] = {}
        self._empty: asyncio.Event = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = b""
        self._date_second = 0
        self.now: Callable[[], float] = clock.monotonic

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept connections on host:port (port 0: a free one) -> the address taken. OSError when it is not to be had."""
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        tls: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_SECONDS_MAX, "ssl_shutdown_timeout": LINGER_SECONDS_MAX} if self.ssl_context else {}
        listener = await self.loop.create_server(lambda: Connection(self), host, port, ssl=self.ssl_context, backlog=1024, reuse_address=True, **tls)
        self._listeners.append(listener)
        if self._sweeper is None:
            self._sweep()
        name = listener.sockets[0].getsockname()
        return name[0], name[1]

    def date(self) -> bytes:
        """The Date header, rendered once a second."""
        second = int(clock.now())
        if second != self._date_second:
            self._date_second = second
            self._date = b"Date: " + formatdate(second, usegmt=True).encode() + b"\r\n"
        return self._date

    def run(self, work: Any) -> asyncio.Task[None]:
        """A task of this server, awaited or cancelled at its close."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _sweep(self) -> None:
        now = self.now()
        for connection in list(self.connections):
            connection.sweep(now)
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    async def drained(self, connection: Connection) -> None:
        """Wait until the connection's peer takes more (woken by `wake`)."""
        future = self._drains[connection] = self.loop.create_future()
        try:
            await future
        finally:
            self._drains.pop(connection, None)

    def wake(self, connection: Connection) -> None:
        future = self._drains.get(connection)
        if future is not None and not future.done():
            future.set_result(None)

    def left(self) -> None:
        if not self.connections:
            self._empty.set()

    async def close(self, grace_seconds: float = 0) -> None:
        """Stop accepting, let running answers end for `grace_seconds`, then cut the rest off."""
        self.closing = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.shut()
        if self.connections and grace_seconds > 0:
            self._empty.clear()
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._empty.wait()
            except TimeoutError:
                pass
        for connection in list(self.connections):
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            await listener.wait_closed()
