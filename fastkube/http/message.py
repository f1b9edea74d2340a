"""What a handler takes and gives: `Request`, and the kinds of answer the connection knows how to write.

A handler returns a `Response` (or an awaitable of one). Its body is one of
  bytes                what is sent, with a Content-Length;
  Pieces               sent with a Content-Length, made piece by piece while being written, never whole (a list over stored objects);
  AsyncIterator[bytes] sent chunked as it comes, with backpressure; closed when the client goes away;
  Push                 a source that calls `writer.write` from callbacks (a watch): no task, no queue between the source and the socket.
`Upgrade` answers 101 and takes the connection over as a raw byte stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

QUERY_FIELDS_MAX = 1000
COLLECT_QUEUE_ITEMS_MAX = 1024  # frames a Push may run ahead of an in-process reader before `paused` says so

Headers = Sequence[tuple[str, str]]


class BadTarget(ValueError):
    """The request target is no path (bad percent-encoding, not UTF-8), or its query has too many parameters."""


class Request:
    """One request, whole. `headers` has lower-case names, repeated ones joined by a comma; it is shared and must not be changed."""

    __slots__ = ("_pairs", "audit", "body", "flow", "headers", "info", "method", "path", "peer", "raw_query", "remote", "target", "user", "version")

    def __init__(
        self, method: str, target: str, headers: dict[str, str], body: bytes = b"", *, peer: Any = None, remote: tuple[str, int] = ("", 0), version: str = "1.1"
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.peer = peer
        self.remote = remote
        self.version = version
        self.user: Any = None
        self.info: Any = None
        self.audit: Any = None  # the handler's own notes on the request
        self.flow: Any = None
        self._pairs: list[tuple[str, str]] | None = None
        path, _, self.raw_query = target.partition("?")
        if "%" in path:
            try:
                path = unquote(path, errors="strict")
            except UnicodeDecodeError as e:
                raise BadTarget("the path is not UTF-8") from e
        self.path = path

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query's (name, value) pairs in order, decoded."""
        if self._pairs is None:
            if self.raw_query.count("&") >= QUERY_FIELDS_MAX:
                raise BadTarget("too many query parameters")
            self._pairs = parse_qsl(self.raw_query, keep_blank_values=True) if self.raw_query else []
        return self._pairs

    def param(self, name: str, default: str = "") -> str:
        """The first value of `name`."""
        if self.raw_query:
            for key, value in self.query:
                if key == name:
                    return value
        return default

    def params(self, name: str) -> list[str]:
        """All values of `name`."""
        return [value for key, value in self.query if key == name] if self.raw_query else []

    @property
    def peer_certificate(self) -> bytes | None:
        """DER of the client's certificate, verified in the handshake; None when it showed none."""
        return self.peer.peer_certificate if self.peer is not None else None


class Pieces:
    """A body of known length that is made piece by piece while it is written, never whole: `make()` gives a fresh iterator of its pieces."""

    __slots__ = ("length", "pieces")

    def __init__(self, length: int, make: Callable[[], Iterator[bytes]]) -> None:
        self.length = length
        self.pieces = make

    def __len__(self) -> int:
        return self.length


class Writer(Protocol):
    """Where a Push writes. After the peer is gone, writes are dropped."""

    @property
    def paused(self) -> bool:
        """More is buffered than the peer takes: stop and wait for `resumed`."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes written that the peer has not taken."""
        ...

    def write(self, data: bytes) -> None: ...

    def end(self) -> None:
        """No more comes: the answer ends properly."""
        ...

    def abort(self) -> None:
        """Cut the connection off."""
        ...


class Push(Protocol):
    """A body that is pushed. All methods are called in the event loop, synchronously."""

    def started(self, writer: Writer) -> None:
        """The head is out; write from now on."""
        ...

    def resumed(self) -> None:
        """The writer is no longer paused."""
        ...

    def closed(self) -> None:
        """The peer is gone or the server closes; called once, also after `writer.end()`."""
        ...


Body = bytes | Pieces | AsyncIterator[bytes] | Push


class Response:
    """An answer. `headers` are further ones; `raw_headers` the same, rendered beforehand (`Name: value\\r\\n`)."""

    __slots__ = ("body", "content_type", "headers", "raw_headers", "status")

    def __init__(self, status: int = 200, body: Any = b"", content_type: str = "application/json", headers: Headers = (), raw_headers: bytes = b"") -> None:
        self.status = status
        self.body: Body = b"".join(body) if isinstance(body, list) else body
        self.content_type = content_type
        self.headers = headers
        self.raw_headers = raw_headers


class Upgrade:
    """101, then `run(stream)` owns the connection until it returns; `headers` hold at least Upgrade (Connection is added)."""

    __slots__ = ("headers", "run")

    def __init__(self, run: Callable[[Any], Awaitable[None]], headers: Headers) -> None:
        self.run = run
        self.headers = headers


Answer = Response | Upgrade
Handler = Callable[[Request], "Answer | Awaitable[Answer]"]


def reason_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def clean(value: str) -> str:
    """A header value without what would end the line."""
    return value.replace("\r", " ").replace("\n", " ").replace("\0", " ") if not value.isprintable() else value


def render_headers(headers: Headers) -> bytes:
    return "".join(f"{name}: {clean(value)}\r\n" for name, value in headers).encode("latin-1", "replace")


class _Collector:
    """The Writer of an in-process reader: an unbounded list with `paused` at COLLECT_QUEUE_ITEMS_MAX."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.ended = False
        self.wake = asyncio.Event()

    @property
    def paused(self) -> bool:
        return len(self.items) >= COLLECT_QUEUE_ITEMS_MAX

    @property
    def buffered(self) -> int:
        return sum(map(len, self.items))

    def write(self, data: bytes) -> None:
        self.items.append(data)
        self.wake.set()

    def end(self) -> None:
        self.ended = True
        self.wake.set()

    abort = end


async def iterate(response: Response) -> AsyncIterator[bytes]:
    """The body in parts, whatever its kind: for readers in the same process."""
    body: Any = response.body
    if isinstance(body, bytes):
        if body:
            yield body
    elif isinstance(body, Pieces):
        for piece in body.pieces():
            yield piece
    elif hasattr(body, "__aiter__"):
        async for piece in body:
            yield piece
    else:
        writer = _Collector()
        body.started(writer)
        try:
            while True:
                items, writer.items = writer.items, []
                for item in items:
                    yield item
                if items:
                    body.resumed()
                elif writer.ended:
                    return
                else:
                    writer.wake.clear()
                    await writer.wake.wait()
        finally:
            body.closed()


async def collect(response: Response) -> bytes:
    """The whole body."""
    if isinstance(response.body, bytes):
        return response.body
    return b"".join([piece async for piece in iterate(response)])
