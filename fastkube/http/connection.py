"""One connection: requests read from it are answered in order, one at a time, with whatever kind of body the handler gives.

States: reading, answering (`_busy`), upgraded (`stream`), refused (an answer was given that ends it; what still comes is dropped for a while, so that
the peer gets to read the answer instead of a reset).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TYPE_CHECKING, Any

from fastkube.http.message import Answer, Pieces, Push, Request, Response, Upgrade, reason_phrase, render_headers
from fastkube.http.requests import RequestReader
from fastkube.http.stream import READ_BUFFER_BYTES_MAX, Stream

if TYPE_CHECKING:
    from fastkube.http.server import Server

PIPELINED_REQUESTS_MAX = 32  # beyond it the connection is not read
HEAD_SECONDS_MAX = 32  # from a request's first byte to the end of its head
BODY_SECONDS_MAX = 60
IDLE_SECONDS_MAX = 90  # keep-alive without a request
STALL_SECONDS_MAX = 60  # an answer of which the peer takes nothing
LINGER_BYTES_MAX = 16 * 1024 * 1024  # of a refused body that are read and dropped
LINGER_SECONDS_MAX = 5
WRITE_BUFFER_BYTES_MAX = 512 * 1024  # buffered for a peer before its source is paused
TURN_BYTES_MAX = 1024 * 1024  # written for one answer before other connections get their turn
PREFIXES_MAX = 1000

_prefixes: dict[tuple[int, str], bytes] = {}


def _prefix(status: int, content_type: str) -> bytes:
    """Status line and Content-Type, rendered once per pair."""
    prefix = _prefixes.get((status, content_type))
    if prefix is None:
        prefix = f"HTTP/1.1 {status} {reason_phrase(status)}\r\n".encode()
        if content_type:
            prefix += render_headers([("Content-Type", content_type)])
        if len(_prefixes) < PREFIXES_MAX:
            _prefixes[status, content_type] = prefix
    return prefix


class Connection(asyncio.Protocol):
    """See the module. `server` is what it belongs to: handler, clock, tasks."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None
        self.stream: Stream | None = None
        self.remote: tuple[str, int] = ("", 0)
        self.peer_certificate: bytes | None = None  # DER, verified in the handshake
        self.paused = False  # the peer does not take what is written
        self._reader: RequestReader = None  # type: ignore[assignment]
        self._reading_paused = False
        self._request: Request | None = None
        self._busy = False
        self._close_after = False
        self._dropped = -1  # >= 0: refused, bytes dropped so far
        self._stalled = 0.0
        self._source: Iterator[bytes] | None = None
        self._scheduled = False
        self._pumping = False  # a transport may resume its protocol within a write
        self._push: Push | None = None
        self._task: asyncio.Task[None] | None = None
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
            self.peer_certificate = tls.getpeercert(True)
        self._reader = RequestReader(self, self.remote, self.server.body_bytes_max)
        self.server.connections.add(self)
        self._deadline = self.server.now() + HEAD_SECONDS_MAX

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if self.stream is not None:
            self.stream.feed(data)
            return
        if self._upgrading is not None:
            self._upgrading.append(data)
            if sum(map(len, self._upgrading)) > READ_BUFFER_BYTES_MAX:
                self.pause_reading()
            return
        if reader.refusal is not None:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES_MAX:
                self.transport.abort()
            return
        mid, head_done = reader.mid, reader.head_done
        reader.feed(data)
        if reader.rest is not None:
            self._upgrading = [reader.rest]
        if reader.mid and (not mid or reader.head_done is not head_done):
            self._deadline = self.server.now() + (BODY_SECONDS_MAX if reader.head_done else HEAD_SECONDS_MAX)
        if not self._busy:
            self._next()
        if len(reader.ready) > PIPELINED_REQUESTS_MAX:
            self.pause_reading()

    def eof_received(self) -> bool:
        plain = self.server.ssl_context is None
        if self.stream is not None:
            self.stream.feed_eof()
            return plain  # a plain socket may be half closed
        self._close_after = True
        return self._busy and self._push is None and plain

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._reader.ready.clear()
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
        self.paused = True
        self._stalled = self.server.now() + STALL_SECONDS_MAX
        if self.stream is not None:
            self.stream.pause()

    def resume_writing(self) -> None:
        self.paused = False
        self._stalled = 0.0
        if self.stream is not None:
            self.stream.resume()
        elif self._source is not None:
            self._pump()
        elif self._push is not None:
            self._push.resumed()
        elif self._task is not None:
            self.server.wake(self)

    def pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    # ---- answering

    def _next(self) -> None:
        """Answer what has been read, as far as it can be done at once."""
        reader = self._reader
        while not self._busy and reader.ready and not self.transport.is_closing():
            self._answer(reader.ready.popleft())
        if self.stream is None and len(reader.ready) <= PIPELINED_REQUESTS_MAX:
            self.resume_reading()
        if reader.expects and not self._busy and not self.transport.is_closing():
            reader.expects = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if reader.refusal is not None and not self._busy and self._dropped < 0 and not self.transport.is_closing():
            status, message, more = reader.refusal
            self._busy = self._close_after = True
            if more:
                self._dropped = 0
                self._deadline = self.server.now() + LINGER_SECONDS_MAX
            self._respond(None, self.server.on_error(None, status, message, None))

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
            await discard(done)
        else:
            self._respond(request, done)
            self._next()

    def _respond(self, request: Request | None, answer: Answer) -> None:
        if isinstance(answer, Upgrade):
            self._upgrade(answer)
            return
        status, body = answer.status, answer.body
        old = request is not None and request.version == "1.0"
        head = _prefix(status, answer.content_type) + answer.raw_headers
        if answer.headers:
            head += render_headers(answer.headers)
        if self._close_after or self.server.closing or (request is not None and _last(request)):
            self._close_after = True
            head += b"Connection: close\r\n"
        elif old:
            head += b"Connection: keep-alive\r\n"
        bodiless = (request is not None and request.method == "HEAD") or status in (204, 304)
        if isinstance(body, bytes):
            head += self.server.date() + (b"\r\n" if status in (204, 304) else b"Content-Length: %d\r\n\r\n" % len(body))
            if len(body) <= TURN_BYTES_MAX:
                self.transport.write(head if bodiless else head + body)
                self._finish()
            else:
                self.transport.write(head)
                self._start(iter(()) if bodiless else _slices(body))
        elif isinstance(body, Pieces):
            self.transport.write(b"%b%bContent-Length: %d\r\n\r\n" % (head, self.server.date(), body.length))
            self._start(iter(()) if bodiless else body.pieces())
        else:
            self._respond_open(answer, head, bodiless, chunked=not old)

    def _respond_open(self, answer: Response, head: bytes, bodiless: bool, chunked: bool) -> None:
        """An answer whose length is not known: chunked, or to an old client ended by the connection's end."""
        body: Any = answer.body
        if chunked:
            head += self.server.date() + b"Transfer-Encoding: chunked\r\n\r\n"
        else:
            head += self.server.date() + (b"\r\n" if self._close_after else b"Connection: close\r\n\r\n")
            self._close_after = True
        self.transport.write(head)
        if bodiless:
            self.server.run(discard(answer))
            self._finish()
        elif hasattr(body, "__aiter__"):
            self._task = self.server.run(self._iterate(body, chunked))
        else:
            self._push = body
            try:
                body.started(ChunkWriter(self, chunked))
            except Exception as e:
                self.server.on_error(self._request, 500, "a pushed answer failed", e)
                self.transport.abort()

    def _start(self, source: Iterator[bytes]) -> None:
        self._source = source
        if not self.paused:
            self._pump()

    def _pump(self) -> None:
        """Write the source out until the peer's buffer is full, at most TURN_BYTES_MAX in this turn of the loop."""
        source, written, piece = self._source, 0, None
        if source is None or self._pumping:
            return
        self._pumping = True
        while not self.paused and written < TURN_BYTES_MAX:
            piece = next(source, None)
            if piece is None:
                break
            written += len(piece)
            self.transport.write(piece)
        self._pumping = False
        if piece is None and not self.paused:
            self._source = None
            self._finish()
            self._next()
        elif not self.paused and not self._scheduled:
            self._scheduled = True
            self.server.loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._scheduled = False
        if not self.paused and not self.transport.is_closing():
            self._pump()

    async def _iterate(self, body: AsyncIterator[bytes], chunked: bool) -> None:
        try:
            async for piece in body:
                if piece:
                    self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    if self.paused:
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
        if not self._close_after:
            self._deadline = self.server.now() + IDLE_SECONDS_MAX
        elif self._dropped < 0:
            self.transport.close()
        elif self.transport.can_write_eof():
            self.transport.write_eof()

    def _upgrade(self, answer: Upgrade) -> None:
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n" + render_headers(answer.headers) + b"Connection: Upgrade\r\n\r\n")
        self.stream = Stream(self)
        for data in self._upgrading or ():
            if data:
                self.stream.feed(data)
        if self.paused:
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
            if self._reader.mid and self._reader.head_done:
                self._reader.give_up(408, "the request's body did not arrive in time")
                self._next()
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
        return self._connection.paused

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


def _last(request: Request) -> bool:
    """Whether the connection ends with this request: asked for, or the parser cannot go on behind a request for another protocol."""
    connection = request.headers.get("connection")
    if connection is None:
        return request.version == "1.0"
    connection = connection.lower()
    return "close" in connection or "upgrade" in connection or (request.version == "1.0" and "keep-alive" not in connection)


def _slices(body: bytes) -> Iterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), WRITE_BUFFER_BYTES_MAX):
        yield view[start : start + WRITE_BUFFER_BYTES_MAX]  # type: ignore[misc]


async def discard(answer: Answer) -> None:
    """Release the source of an answer that nobody will read."""
    if isinstance(answer, Response):
        close = getattr(answer.body, "aclose", None) or getattr(answer.body, "closed", None)
        if close is not None:
            done = close()
            if done is not None:
                await done
