"""HTTP/1.1 for the client: a pool of kept connections, each a Protocol over httptools. No redirects, cookies, proxies or compression: an API server
sends none.

It exists because every component's work is requests: this costs half the CPU that aiohttp takes for the same request (28 us with TLS, 59).

Laws:
1. A connection carries one request at a time; it goes back to the pool only after its answer has come whole and may be kept.
2. A request on a kept connection that the server closed before answering is sent again on a new one, unless it is a POST (it might have been
   carried out).
3. A stream's reader that falls behind pauses the socket: at most STREAM_BUFFER_BYTES_MAX (and one read) are held here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

CONNECTIONS_MAX = 32  # for requests; each stream has one of its own besides
STREAM_BUFFER_BYTES_MAX = 1 << 20
HEADER_BYTES_MAX = 64 * 1024
REQUEST_TIMEOUT_SECONDS = 60.0
CONNECT_TIMEOUT_SECONDS = 10.0
KEEPALIVE_SECONDS = 90.0


class BrokenConnection(Exception):
    """No whole answer came; the text says why. `resend`: nothing of an answer came on a connection that had been kept."""

    def __init__(self, why: str, resend: bool = False) -> None:
        super().__init__(why)
        self.resend = resend


class Headers(dict[str, str]):
    """Headers by lower-case name; looked up in any case. Repeated ones are joined by a comma."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        return super().get(name.lower(), default)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._parser: httptools.HttpResponseParser = None  # type: ignore[assignment]
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False
        self.used = 0  # exchanges begun
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self.headers = Headers()
        self.status = 0
        self.streaming = False
        self.complete = False
        self._keep = False
        self.sized = False
        self.headed = False  # status and headers are here
        self._header_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._paused = False
        self._failure: BrokenConnection | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self._fail("the server sent what nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._fail(f"the server does not speak HTTP: {e}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._parser is not None and not self.complete:
            if self.headed and not self.sized and exc is None:
                self.on_message_complete()  # an answer that ends with its connection
            else:
                self._fail(str(exc) if exc else "the server closed the connection", resend=self.used > 1 and not self.status)

    # --- httptools ---

    def on_status(self, status: bytes) -> None:
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX:
            raise ValueError("headers are too long")
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{super(Headers, self.headers).__getitem__(key)}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200 and self.status != 101:
            return
        self.headed = True
        self.sized = "content-length" in self.headers or "transfer-encoding" in self.headers or self.status in (204, 304)
        if self.streaming:
            self._wake()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        if self.streaming:
            self._held_bytes += len(body)
            if self._held_bytes > STREAM_BUFFER_BYTES_MAX and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        if 100 <= self.status < 200 and self.status != 101:
            self.headers.clear()
            return
        self.complete = True
        self._keep = self.sized and bool(self._parser.should_keep_alive())  # asked later, the parser has forgotten
        self._wake()

    # --- one exchange ---

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, why: str, resend: bool = False) -> None:
        if self._failure is None:
            self._failure = BrokenConnection(why, resend)
        self.close()
        self._wake()

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def send(self, head: bytes, body: bytes | None, streaming: bool) -> None:
        self._begin()
        self.used += 1
        self.streaming = streaming
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(head + body if body else head)

    async def answer(self, timeout_seconds: float) -> Answer:
        """The whole answer. Raises BrokenConnection; the connection is then closed, as it is when we are cancelled."""
        timer = self._loop.call_later(timeout_seconds, self._fail, "no answer in time")
        try:
            while not self.complete and self._failure is None:
                await self._wait()
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        if self._failure is not None:
            raise self._failure
        chunks = self._chunks
        return Answer(self.status, self.headers, chunks[0] if len(chunks) == 1 else b"".join(chunks))

    async def head(self, timeout_seconds: float) -> None:
        """Wait for status and headers of a streamed answer."""
        timer = self._loop.call_later(timeout_seconds, self._fail, "no answer in time")
        try:
            while not self.headed and self._failure is None:
                await self._wait()
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        if self._failure is not None:
            raise self._failure

    async def chunk(self) -> bytes:
        """What has come of a streamed body since the last call; b"" at its end. Raises BrokenConnection."""
        while not self._chunks:
            if self.complete:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._wait()
        chunks, self._chunks = self._chunks, deque()
        self._held_bytes = 0
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def reusable(self) -> bool:
        return not self.closed and self.complete and self._keep


class Stream:
    """A streamed answer: iterate it for chunks as they come. Close it when done."""

    def __init__(self, connection: _Connection) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._connection.chunk():
            yield data

    async def read(self) -> bytes:
        """All that is left."""
        return b"".join([data async for data in self])

    async def close(self) -> None:
        self._connection.close()


class Pool:
    """Connections to one server, given as a URL (`https://host:port`). Raises ValueError for another kind of URL."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an http or https URL")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.prefix = parts.path.rstrip("/")
        self._ssl = context if parts.scheme == "https" else None
        self._server_hostname = server_hostname
        self._host_header = f"Host: {parts.netloc.rpartition('@')[2]}\r\n"
        self._idle: list[_Connection] = []  # the last used is used next
        self._open = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._streams: set[_Connection] = set()
        self._busy: set[_Connection] = set()

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        length = f"Content-Length: {len(body or b'')}\r\n" if body is not None or method in ("POST", "PUT", "PATCH") else ""
        return f"{method} {self.prefix}{target} HTTP/1.1\r\n{self._host_header}{lines}{length}\r\n".encode("latin-1")

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                name = (self._server_hostname or self.host) if self._ssl is not None else None
                _, protocol = await loop.create_connection(lambda: _Connection(loop), self.host, self.port, ssl=self._ssl, server_hostname=name)
        except TimeoutError as e:
            raise BrokenConnection(f"cannot connect to {self.host}:{self.port} in time") from e
        except (OSError, ssl.SSLError) as e:
            raise BrokenConnection(f"cannot connect to {self.host}:{self.port}: {e}") from e
        return protocol

    async def _acquire(self) -> _Connection:
        loop = asyncio.get_running_loop()
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed and loop.time() - connection.idle_since < KEEPALIVE_SECONDS:
                    return connection
                connection.close()
                self._open -= 1
            if self._open < CONNECTIONS_MAX:
                self._open += 1
                try:
                    return await self._connect()
                except BaseException:
                    self._open -= 1
                    self._next_waiter()
                    raise
            waiter = loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._next_waiter()
                raise

    def _release(self, connection: _Connection) -> None:
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()
            self._open -= 1
        self._next_waiter()

    def _next_waiter(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """One exchange. Raises BrokenConnection."""
        head = self._head(method, target, headers, body)
        for _ in range(CONNECTIONS_MAX + 1):
            connection = await self._acquire()
            self._busy.add(connection)
            try:
                connection.send(head, body, streaming=False)
                return await connection.answer(REQUEST_TIMEOUT_SECONDS)
            except BrokenConnection as e:
                if not e.resend or method == "POST":
                    raise
            finally:
                self._busy.discard(connection)
                self._release(connection)
        raise BrokenConnection("the server closes every connection")

    async def stream(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None) -> Stream:
        """One exchange on a connection of its own; returns when the headers are here. Raises BrokenConnection."""
        connection = await self._connect()
        self._streams = {c for c in self._streams if not c.closed}
        self._streams.add(connection)
        connection.send(self._head(method, target, headers, body), body, streaming=True)
        await connection.head(REQUEST_TIMEOUT_SECONDS)
        return Stream(connection)

    def drop_idle(self) -> None:
        """Close kept connections, so that the next ones are made anew (with other credentials)."""
        for connection in self._idle:
            connection.close()
        self._open -= len(self._idle)
        self._idle.clear()

    def close(self) -> None:
        self.drop_idle()
        for connection in [*self._streams, *self._busy]:
            connection.close()
