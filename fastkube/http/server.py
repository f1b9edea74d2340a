"""The HTTP/1.1 server: connections on asyncio's Protocol (uvloop), parsing by httptools, TLS by the event loop.

Laws:
- Answers leave in the order of the requests (pipelining); one request at a time is being answered per connection.
- A handler that answers without awaiting is answered in the same turn of the loop: no task, one write.
- Bounded: head, body, pipelined requests, and what is buffered for a peer that does not read. Who is too slow (half a request, no reading) is cut off.
- Whatever a handler raises, the peer gets an answer from `on_error` and the server goes on.

A client repeats its header lines from request to request. So the header block of a connection's last bodiless request is kept, and a request
with the very same block skips the parser: only its first line is looked at.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import formatdate
from typing import Any

import httptools

from fastkube.http.message import Answer, BadTarget, Handler, Pieces, Push, Request, Response, Upgrade, reason_phrase, render_headers
from fastkube.runtime import clock, logs

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 3 * 1024 * 1024
PIPELINED_REQUESTS_MAX = 32  # beyond it the connection is not read
HEAD_SECONDS_MAX = 32  # from a request's first byte to the end of its head
BODY_SECONDS_MAX = 60
IDLE_SECONDS_MAX = 90  # keep-alive without a request
STALL_SECONDS_MAX = 60  # an answer of which the peer takes nothing
HANDSHAKE_SECONDS_MAX = 10
LINGER_BYTES_MAX = 16 * 1024 * 1024  # of a refused body that are read and dropped, so that the peer sees the answer
LINGER_SECONDS_MAX = 5
WRITE_BUFFER_BYTES_MAX = 512 * 1024  # buffered for a peer before its source is paused
READ_BUFFER_BYTES_MAX = 256 * 1024  # of an upgraded stream, unread by its owner
TURN_BYTES_MAX = 1024 * 1024  # written for one answer before other connections get their turn
SWEEP_SECONDS = 1.0

log = logs.get("http")

ErrorAnswer = Callable[[Request | None, int, str, BaseException | None], Response]


def plain_error(request: Request | None, status: int, message: str, error: BaseException | None) -> Response:
    """The answer to what went wrong, as plain text; servers with a form of their own pass theirs as `on_error`."""
    if error is not None:
        log.error("handler failed", method=request.method if request else "", path=request.path if request else "", exc_info=error)
    return Response(status, message.encode() + b"\n", "text/plain; charset=utf-8")


_prefixes: dict[tuple[int, str], bytes] = {}


def _prefix(status: int, content_type: str) -> bytes:
    """Status line and Content-Type, rendered once per pair."""
    key = (status, content_type)
    prefix = _prefixes.get(key)
    if prefix is None:
        prefix = f"HTTP/1.1 {status} {reason_phrase(status)}\r\n".encode()
        if content_type:
            prefix += render_headers([("Content-Type", content_type)])
        if len(_prefixes) < 1000:
            _prefixes[key] = prefix
    return prefix


class Connection(asyncio.Protocol):
    """One connection. States: reading a request, answering (`_busy`), upgraded (`stream`), lingering (reads are dropped)."""

    __slots__ = (
        "_block",
        "_block_headers",
        "_body",
        "_body_size",
        "_busy",
        "_close_after",
        "_deadline",
        "_dropped",
        "_head_done",
        "_head_size",
        "_headers",
        "_mid",
        "_parser",
        "_paused",
        "_peer",
        "_push",
        "_queue",
        "_request",
        "_scheduled",
        "_source",
        "_stalled",
        "_task",
        "_upgrading",
        "_url",
        "reading_paused",
        "remote",
        "server",
        "stream",
        "transport",
    )  # fmt: skip

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None
        self.stream: Stream | None = None
        self.remote: tuple[str, int] = ("", 0)
        self.reading_paused = False
        self._parser: Any = None
        self._mid = False  # a request has begun and is not complete
        self._head_done = False
        self._head_size = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_size = 0
        self._block = b""  # the header block of the last bodiless request, with the CRLF before and the empty line behind
        self._block_headers: dict[str, str] = {}
        self._queue: deque[Request] = deque()
        self._request: Request | None = None
        self._busy = False
        self._close_after = False
        self._dropped = -1  # >= 0: lingering, bytes dropped so far
        self._paused = False
        self._stalled = 0.0
        self._source: Iterator[bytes] | None = None
        self._scheduled = False
        self._push: Push | None = None
        self._task: asyncio.Task[None] | None = None
        self._peer: bytes | None = None
        self._upgrading: list[bytes] | None = None  # bytes behind a request for another protocol, until it is answered
        self._deadline = 0.0

    # ---- what the transport calls

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES_MAX)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self.remote = (peername[0], peername[1])
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._peer = tls.getpeercert(True)
        self.server.connections.add(self)
        self._parser = httptools.HttpRequestParser(self)
        self._deadline = self.server.now() + HEAD_SECONDS_MAX

    @property
    def peer_certificate(self) -> bytes | None:
        return self._peer

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.feed(data)
        elif self._upgrading is not None:
            self._upgrading.append(data)
            if sum(map(len, self._upgrading)) > READ_BUFFER_BYTES_MAX:
                self._pause_reading()
        elif self._dropped >= 0:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES_MAX:
                self.transport.abort()
        elif self._block and not self._mid and not self._busy and data.endswith(self._block) and data.startswith(b"GET ") and self._repeat(data):
            pass
        else:
            self._parse(data)

    def eof_received(self) -> bool:
        if self.stream is not None:
            self.stream.feed_eof()
            return self.server.ssl_context is None  # a plain socket may be half closed
        self._close_after = True
        return self._busy and self._push is None and self.server.ssl_context is None

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._queue.clear()
        if self.stream is not None:
            self.stream.feed_eof()
            self.stream.released()
        self._source = None
        if self._task is not None:
            self._task.cancel()
        push, self._push = self._push, None
        if push is not None:
            push.closed()
        self.server.left()

    def pause_writing(self) -> None:
        self._paused = True
        self._stalled = self.server.now() + STALL_SECONDS_MAX
        if self.stream is not None:
            self.stream.pause()

    def resume_writing(self) -> None:
        self._paused = False
        self._stalled = 0.0
        if self.stream is not None:
            self.stream.resume()
        elif self._source is not None:
            self._pump()
        elif self._push is not None:
            self._push.resumed()
        elif self._task is not None:
            self.server.wake(self)

    # ---- reading requests

    def _repeat(self, data: bytes) -> bool:
        """A GET whose header block is the last one's: the parser need not see it again. False: it is not such a request."""
        block = self._block
        end = len(data) - len(block)
        if data.find(b"\r\n") != end or data[end - 9 : end] != b" HTTP/1.1":
            return False
        try:
            target = data[4 : end - 9].decode("ascii")
        except UnicodeDecodeError:
            return False
        if not target.startswith("/") or " " in target or not target.isprintable() or "#" in target:
            return False
        try:
            request = Request("GET", target, self._block_headers, peer=self, remote=self.remote)
        except BadTarget:
            return False
        self._answer(request)
        return True

    def _parse(self, data: bytes) -> None:
        fresh = not self._mid
        if not self._head_done:
            self._head_size += len(data)
        queued = len(self._queue) + self._busy
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            # The parser stops after a request that asks for another protocol: what follows belongs to it. An ordinary answer ends the connection.
            self._upgrading = [data[e.args[0] :]]
        except httptools.HttpParserError as e:
            if self._dropped < 0:
                self._refuse(400, f"malformed request: {e}")
            return
        if self._dropped >= 0:
            return
        if self._mid and not self._head_done and self._head_size > HEAD_BYTES_MAX:
            self._refuse(431, "request header fields too large")
            return
        if fresh and not self._mid and len(self._queue) + self._busy == queued + 1 and data.startswith(b"GET "):
            self._remember(data)
        if fresh and self._mid:
            self._deadline = self.server.now() + (BODY_SECONDS_MAX if self._head_done else HEAD_SECONDS_MAX)
        if not self._busy:
            self._next()
        if len(self._queue) > PIPELINED_REQUESTS_MAX:
            self._pause_reading()

    def _remember(self, data: bytes) -> None:
        headers = self._headers
        start = data.find(b"\r\n")
        plain = not ({"content-length", "transfer-encoding", "upgrade", "expect", "connection"} & headers.keys()) or (
            headers.get("connection", "").lower() == "keep-alive" and not ({"content-length", "transfer-encoding", "upgrade", "expect"} & headers.keys())
        )
        if plain and data.endswith(b"\r\n\r\n") and data.find(b"\r\n\r\n") == len(data) - 4 and data[start - 9 : start] == b" HTTP/1.1":
            self._block = data[start:]
            self._block_headers = headers

    def on_message_begin(self) -> None:
        self._mid = True
        self._head_done = False
        self._url = b""
        self._headers = {}
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > HEAD_BYTES_MAX:
            self._refuse(414, "request URI too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers = self._headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        self._head_done = True
        self._head_size = 0
        headers = self._headers
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.server.body_bytes_max:
            self._refuse(413, f"Request entity too large: limit is {self.server.body_bytes_max}")
        elif headers.get("expect", "").lower() == "100-continue" and not self._busy and not self._queue and self._parser.get_http_version() == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._dropped >= 0:
            return
        self._body_size += len(body)
        if self._body_size > self.server.body_bytes_max:
            self._refuse(413, f"Request entity too large: limit is {self.server.body_bytes_max}")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._mid = False
        self._head_done = False
        if self._dropped >= 0:
            return
        parser = self._parser
        version = parser.get_http_version()
        target = self._url.decode("latin-1")
        if not target.startswith("/") and "://" in target:
            target = "/" + target.split("://", 1)[1].partition("/")[2]
        if "#" in target:
            target = target.partition("#")[0]
        try:
            request = Request(parser.get_method().decode("ascii"), target, self._headers, b"".join(self._body), peer=self, remote=self.remote, version=version)
            if not target.isascii():
                raise BadTarget("the target is not ASCII")
        except BadTarget as e:
            self._refuse(400, f"malformed request: {e}", linger=False)
            return
        self._queue.append(request)

    def _refuse(self, status: int, message: str, linger: bool = True) -> None:
        """Answer, then close; what the peer may still be sending is dropped for a while (`linger`), so that it gets to read the answer."""
        self._dropped = 0 if linger else -1
        self._mid = False
        self._close_after = True
        self._deadline = self.server.now() + LINGER_SECONDS_MAX
        if self._busy or self._queue:  # answers are owed before: no way to say it in order
            self.transport.close()
            return
        self._busy = True
        self._respond(None, self.server.on_error(None, status, message, None))

    # ---- answering

    def _next(self) -> None:
        while not self._busy and self._queue and not self.transport.is_closing():
            self._answer(self._queue.popleft())
        if self.reading_paused and self.stream is None and len(self._queue) <= PIPELINED_REQUESTS_MAX:
            self.reading_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self.reading_paused:
            self.reading_paused = True
            self.transport.pause_reading()

    def _answer(self, request: Request) -> None:
        self._busy = True
        self._request = request
        try:
            answer = self.server.handler(request)
        except Exception as e:
            answer = self.server.on_error(request, 500, "internal error", e)
        if isinstance(answer, (Response, Upgrade)):
            self._respond(request, answer)
        else:
            self.server.run(self._await(request, answer))

    async def _await(self, request: Request, answer: Awaitable[Answer]) -> None:
        try:
            done: Answer = await answer
        except Exception as e:
            done = self.server.on_error(request, 500, "internal error", e)
        if self.transport.is_closing():
            await _discard(done)
        else:
            self._respond(request, done)
            self._next()

    def _respond(self, request: Request | None, answer: Answer) -> None:
        if isinstance(answer, Upgrade):
            self._upgrade(answer)
            return
        status, body = answer.status, answer.body
        old = request is not None and request.version == "1.0"
        close = self._close_after or self.server.closing or (request is not None and _last(request))
        head = _prefix(status, answer.content_type if body.__class__ is not bytes or body or answer.content_type else "") + answer.raw_headers
        if answer.headers:
            head += render_headers(answer.headers)
        if close:
            self._close_after = True
            head += b"Connection: close\r\n"
        elif old:
            head += b"Connection: keep-alive\r\n"
        bodiless = (request is not None and request.method == "HEAD") or status == 204 or status == 304
        if isinstance(body, bytes):
            head += b"%sContent-Length: %d\r\n\r\n" % (self.server.date(), len(body)) if status not in (204, 304) else self.server.date() + b"\r\n"
            if len(body) <= TURN_BYTES_MAX:
                self.transport.write(head if bodiless else head + body)
                self._finish()
            else:
                self.transport.write(head)
                self._start(iter(()) if bodiless else _slices(body))
        elif isinstance(body, Pieces):
            self.transport.write(head + b"%sContent-Length: %d\r\n\r\n" % (self.server.date(), body.length))
            self._start(iter(()) if bodiless else body.pieces())
        else:
            chunked = not old
            if not chunked:
                self._close_after = True
            self.transport.write(head + self.server.date() + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n" if not close else b"\r\n"))
            if bodiless:
                self.server.run(_discard(answer))
                self._finish()
            elif hasattr(body, "__aiter__"):
                self._task = self.server.run(self._iterate(body, chunked))  # type: ignore[arg-type]
            else:
                self._push = body  # type: ignore[assignment]
                try:
                    self._push.started(ChunkWriter(self, chunked))  # type: ignore[union-attr]
                except Exception as e:
                    self.server.on_error(request, 500, "a pushed answer failed", e)
                    self.transport.abort()

    def _start(self, source: Iterator[bytes]) -> None:
        self._source = source
        if not self._paused:
            self._pump()

    def _pump(self) -> None:
        """Write the source out until the peer's buffer is full, at most TURN_BYTES_MAX in this turn of the loop."""
        source, written = self._source, 0
        while source is not None and not self._paused:
            if written >= TURN_BYTES_MAX:
                if not self._scheduled:
                    self._scheduled = True
                    self.server.loop.call_soon(self._continue)
                return
            piece = next(source, None)
            if piece is None:
                self._source = None
                self._finish()
                self._next()
                return
            written += len(piece)
            self.transport.write(piece)

    def _continue(self) -> None:
        self._scheduled = False
        if not self._paused and not self.transport.is_closing():
            self._pump()

    async def _iterate(self, body: AsyncIterator[bytes], chunked: bool) -> None:
        try:
            async for piece in body:
                if piece:
                    self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    if self._paused:
                        await self.server.drained(self)
            if chunked:
                self.transport.write(b"0\r\n\r\n")
            self._task = None
            self._finish()
            self._next()
        except Exception as e:  # the head is out: all that can be said is that the answer is not whole
            self.server.on_error(self._request, 500, "a streamed answer failed", e)
            self.transport.abort()
        finally:
            self._task = None
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def push_ended(self, chunked: bool) -> None:
        push, self._push = self._push, None
        if push is None:
            return
        if chunked:
            self.transport.write(b"0\r\n\r\n")
        push.closed()
        self._finish()
        self._next()

    def _finish(self) -> None:
        self._busy = False
        self._request = None
        if self._close_after:
            if self._dropped < 0:
                self.transport.close()
            elif self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self._deadline = self.server.now() + IDLE_SECONDS_MAX

    def _upgrade(self, answer: Upgrade) -> None:
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n" + render_headers(answer.headers) + b"Connection: Upgrade\r\n\r\n")
        self.stream = Stream(self)
        for data in self._upgrading or ():
            if data:
                self.stream.feed(data)
        if self._paused:
            self.stream.pause()
        self._task = self.server.run(self._own(answer))

    async def _own(self, answer: Upgrade) -> None:
        stream = self.stream
        assert stream is not None
        try:
            await answer.run(stream)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as e:
            self.server.on_error(self._request, 500, "an upgraded connection failed", e)
        finally:
            self._task = None
            stream.close()

    # ---- what the server calls

    def sweep(self, now: float) -> None:
        """Cut the connection off when it is too slow."""
        if self.stream is not None:
            return
        if self._stalled and now > self._stalled and self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self._dropped >= 0:
            if now > self._deadline:
                self.transport.abort()
        elif not self._busy and now > self._deadline:
            if self._mid and self._head_done:
                self._refuse(408, "the request's body did not arrive in time")
            else:
                self.transport.close()

    def shut(self) -> None:
        """Close when idle; otherwise after the answer being given."""
        if self._busy:
            self._close_after = True
        elif self.stream is None:
            self.transport.close()


class ChunkWriter:
    """The Writer of a connection: each write is one chunk (message.Writer)."""

    __slots__ = ("_chunked", "_connection", "_ended")

    def __init__(self, connection: Connection, chunked: bool) -> None:
        self._connection = connection
        self._chunked = chunked
        self._ended = False

    @property
    def paused(self) -> bool:
        return self._connection._paused

    @property
    def buffered(self) -> int:
        return self._connection.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._connection.push_ended(self._chunked)

    def abort(self) -> None:
        self._connection.transport.abort()


class Stream:
    """A connection taken over: bytes both ways, with backpressure both ways."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._eof = False
        self._lost = False
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def remote(self) -> tuple[str, int]:
        return self._connection.remote

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > READ_BUFFER_BYTES_MAX:
            self._connection._pause_reading()
        self._wake()

    def feed_eof(self) -> None:
        self._eof = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def pause(self) -> None:
        self._writable.clear()

    def resume(self) -> None:
        self._writable.set()

    def released(self) -> None:
        self._lost = True
        self._writable.set()

    async def read(self) -> bytes:
        """What has come, at least a byte; b"" at the end. One reader at a time."""
        while not self._parts and not self._eof:
            self._reader = self._connection.server.loop.create_future()
            await self._reader
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._connection.reading_paused and not self._eof:
            self._connection.reading_paused = False
            self._connection.transport.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        if not self._lost:
            self._connection.transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer takes more; ConnectionResetError when it is gone."""
        await self._writable.wait()
        if self._lost:
            raise ConnectionResetError("the peer is gone")

    def write_eof(self) -> None:
        """Half-close where the transport can (TLS cannot)."""
        if not self._lost and self._connection.transport.can_write_eof():
            self._connection.transport.write_eof()

    def close(self) -> None:
        self._connection.transport.close()


def _last(request: Request) -> bool:
    """Whether the connection ends with this request."""
    connection = request.headers.get("connection")
    if connection is None:
        return request.version == "1.0"
    connection = connection.lower()
    return "close" in connection or "upgrade" in connection or (request.version == "1.0" and "keep-alive" not in connection)


def _slices(body: bytes) -> Iterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), WRITE_BUFFER_BYTES_MAX):
        yield view[start : start + WRITE_BUFFER_BYTES_MAX]  # type: ignore[misc]


async def _discard(answer: Answer) -> None:
    """Release the source of an answer that nobody will read."""
    if isinstance(answer, Response):
        close = getattr(answer.body, "aclose", None) or getattr(answer.body, "closed", None)
        if close is not None:
            done = close()
            if done is not None:
                await done


class Server:
    """Listens on any number of addresses and hands requests to `handler`."""

    def __init__(self, handler: Handler, ssl_context: ssl.SSLContext | None = None, *, on_error: ErrorAnswer = plain_error, body_bytes_max: int = BODY_BYTES_MAX) -> None:
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
