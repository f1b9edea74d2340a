"""gRPC over HTTP/2, the server's side, and plain HTTP/1.1 GETs on the same port.

A connection parses frames (RFC 9113), hands whole gRPC messages to the methods, and writes their answers within the peer's windows. What a turn of the
loop answers goes out in one write. Bounded: a request's size, the streams of a connection, what waits unsent of a stream (a method's `send` waits).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastkube.runtime import logs
from fastkube.store.etcd import errors
from fastkube.store.etcd.errors import EtcdError
from fastkube.store.etcd.hpack import Decoder, HpackError
from fastkube.store.interface import StoreError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0, 1, 3, 8, 9, 11
FRAME_BYTES_MAX = 16384  # what we take
WINDOW_BYTES = 65535  # what HTTP/2 begins with
STREAM_WINDOW_BYTES = 1 << 20  # what a stream may send us before we have taken it
CONNECTION_WINDOW_BYTES = 16 << 20
WINDOW_BYTES_MAX = (1 << 31) - 1
STREAMS_MAX = 100_000  # of one connection
HEADER_BLOCK_BYTES_MAX = 64 << 10
HTTP1_BYTES_MAX = 16 << 10
BEGIN_SECONDS_MAX = 30.0  # from the connection to its first whole request line or preface
RESETS_MAX = 1000  # streams that a peer takes back unanswered, beyond those it lets be answered

CODES = {
    "OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "NOT_FOUND": 5, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9,
    "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14, "UNAUTHENTICATED": 16,
}  # fmt: skip

log = logs.get("etcd")

_FRAME = struct.Struct(">BHBBI")  # length (24 bits), type, flags, stream


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    n = len(payload)
    return _FRAME.pack(n >> 16, n & 0xFFFF, kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header, neither indexed nor packed; shorter than 127 bytes each, or by HPACK's longer form."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(n: int) -> bytes:
    if n < 127:
        return bytes([n])
    out, n = bytearray([127]), n - 127
    while n >= 128:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


_OPENING = b"\x88" + literal(b"content-type", b"application/grpc")  # :status 200
_DONE = literal(b"grpc-status", b"0")


def trailers(code: str, text: str) -> bytes:
    message = "".join(c if " " <= c <= "~" and c != "%" else "".join(f"%{b:02X}" for b in c.encode()) for c in text)
    return literal(b"grpc-status", str(CODES.get(code, 2)).encode()) + literal(b"grpc-message", message.encode())


@dataclass(frozen=True, slots=True)
class Method:
    call: Callable[..., Any]  # (request, caller) -> answer, or (requests, send, caller)
    parse: Callable[[bytes], Any]
    name: str
    requests_stream: bool
    answers_stream: bool


@dataclass(slots=True)
class Handlers:
    """What a connection serves."""

    methods: dict[bytes, Method]
    http: Callable[[str, str], tuple[int, str, str]]  # (method, path) -> (status, content type, body)
    admits: Callable[[dict[str, Any]], bool]  # by the client's certificate (ssl.getpeercert)
    ended: Callable[[str, str], None]  # (method, code): a call is over
    request_bytes_max: int


class Refused(Exception):
    """The peer broke the protocol: the connection ends."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Stream:
    """One call."""

    __slots__ = (
        "buffer",
        "connection",
        "done",
        "headers",
        "held",
        "id",
        "method",
        "opened",
        "pending",
        "queue",
        "sender",
        "taken",
        "taker",
        "task",
        "trailers",
        "window",
    )

    def __init__(self, connection: Connection, stream_id: int, headers: list[tuple[bytes, bytes]], method: Method) -> None:
        self.connection = connection
        self.id = stream_id
        self.headers = headers
        self.method = method
        self.buffer = bytearray()
        self.window = connection.peer_window
        self.pending: deque[memoryview] = deque()  # unsent
        self.trailers: bytes | None = None  # to be sent after them
        self.queue: deque[bytes] = deque()  # messages of a stream of requests, not yet taken
        self.held = 0  # bytes of them, and of the one that is coming in
        self.done = False  # the peer has sent everything
        self.opened = False  # our headers are out
        self.taken = 0  # bytes to be given back to the peer's window
        self.task: asyncio.Task[None] | None = None
        self.taker: asyncio.Future[None] | None = None
        self.sender: asyncio.Future[None] | None = None

    # auth.Caller

    def token(self) -> str:
        for name, value in self.headers:
            if name in (b"token", b"authorization"):
                return value.decode(errors="replace")
        return ""

    def common_name(self) -> str:
        return next((value for name, value in _subject(self.connection.certificate) if name == "commonName"), "")

    # What a method of streams gets

    async def requests(self) -> AsyncIterator[Any]:
        while True:
            while self.queue:
                message = self.queue.popleft()
                self.held -= len(message) + 5
                self.connection.give_back(self, len(message) + 5)
                yield self.method.parse(message)
            if self.done:
                return
            self.taker = asyncio.get_running_loop().create_future()
            await self.taker

    async def send(self, answer: Any) -> None:
        self.connection.send(self, answer if type(answer) is bytes else answer.SerializeToString())
        while self.pending or self.connection.paused:
            self.sender = asyncio.get_running_loop().create_future()
            await self.sender

    def wake(self, waiting: asyncio.Future[None] | None) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


def _subject(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    return [pair for rdn in certificate.get("subject", ()) for pair in rdn]


class Connection(asyncio.Protocol):
    def __init__(self, handlers: Handlers, connections: set[Connection]) -> None:
        self.certificate: dict[str, Any] = {}
        self.peer_window = WINDOW_BYTES  # of a new stream
        self.paused = False
        self._handlers = handlers
        self._connections = connections
        self._streams: dict[int, Stream] = {}
        self._decoder = Decoder()
        self._window = WINDOW_BYTES
        self._frame_max = 16384
        self._buffer = b""
        self._begun = False
        self._block: tuple[int, int, bytes] | None = None  # a header block that goes on: (stream, flags, so far)
        self._last_stream = 0
        self._taken = 0
        self._resets = 0
        self._out: list[bytes] = []
        self._flushing = False

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._connections.add(self)
        self._beginning = self._loop.call_later(BEGIN_SECONDS_MAX, self._not_begun)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.certificate = ssl_object.getpeercert() or {}

    def _not_begun(self) -> None:
        if not self._begun:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._beginning.cancel()
        self._connections.discard(self)
        for stream in list(self._streams.values()):
            if stream.task is not None:
                stream.task.cancel()
        self._streams.clear()

    def pause_writing(self) -> None:
        """The peer does not read: nothing more is taken from it, so that nothing more has to be answered."""
        self.paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        for stream in list(self._streams.values()):
            stream.wake(stream.sender)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        try:
            if not self._begun:
                data = self._begin(data)
            self._buffer = self._frames(data) if self._begun else data
        except Refused as e:
            self._end(e.code, str(e))
        except HpackError as e:
            self._end(COMPRESSION_ERROR, str(e))

    def _end(self, code: int, text: str) -> None:
        self._buffer = b""
        self.write(frame(GOAWAY, 0, 0, struct.pack(">II", self._last_stream, code) + text.encode()))
        self._flush()
        self._transport.close()

    def close(self) -> None:
        """Nothing more is taken; calls end."""
        self._end(NO_ERROR, "")

    # The beginning

    def _begin(self, data: bytes) -> bytes:
        if data[: len(PREFACE)] == PREFACE:
            self._begun = True
            settings = struct.pack(">HIHIHI", 3, STREAMS_MAX, 4, STREAM_WINDOW_BYTES, 6, HEADER_BLOCK_BYTES_MAX)
            self.write(frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", CONNECTION_WINDOW_BYTES - WINDOW_BYTES)))
            return data[len(PREFACE) :]
        if PREFACE.startswith(data):
            return data
        if b"\r\n\r\n" in data:
            method, target, *_ = [*data.split(b"\r\n", 1)[0].decode("latin-1").split(" "), "", ""]
            status, kind, body = self._handlers.http(method, target) if self._handlers.admits(self.certificate) else (403, "text/plain", "Forbidden\n")
            text = body.encode()
            head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
            self._transport.write(head.encode() + (b"" if method == "HEAD" else text))
            self._transport.close()
            return b""
        if len(data) > HTTP1_BYTES_MAX:
            self._transport.close()
            return b""
        return data

    # Frames

    def _frames(self, data: bytes) -> bytes:
        """Take every whole frame -> what is left."""
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream_id = _FRAME.unpack_from(data, at)
            length = high << 16 | low
            if length > FRAME_BYTES_MAX:
                raise Refused(6, "a frame is too large")
            if end - at - 9 < length:
                break
            at += 9
            self._frame(kind, flags, stream_id & 0x7FFFFFFF, data[at : at + length])
            at += length
        return data[at:]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block[0]):
            raise Refused(PROTOCOL_ERROR, "a header block is interrupted")
        if kind == DATA:
            self._data(flags, stream_id, payload)
        elif kind == HEADERS:
            payload = _unpadded(flags, payload)
            self._header_block(stream_id, flags, payload[5:] if flags & PRIORITY else payload)
        elif kind == CONTINUATION:
            if self._block is None:
                raise Refused(PROTOCOL_ERROR, "nothing is to be continued")
            _, first_flags, block = self._block
            self._block = None
            self._header_block(stream_id, first_flags & ~END_HEADERS | flags & END_HEADERS, block + payload)
        elif kind == WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == SETTINGS:
            self._settings(flags, payload)
        elif kind == PING and not flags & ACK:
            self.write(frame(PING, ACK, 0, payload[:8]))
        elif kind == RST_STREAM:
            stream = self._streams.pop(stream_id, None)
            if stream is not None:
                self._resets += 1
                if self._resets > RESETS_MAX:
                    raise Refused(ENHANCE_YOUR_CALM, "too many streams are reset")
                if stream.task is not None:
                    stream.task.cancel()

    def _header_block(self, stream_id: int, flags: int, block: bytes) -> None:
        if len(block) > HEADER_BLOCK_BYTES_MAX:
            raise Refused(ENHANCE_YOUR_CALM, "the headers are too large")
        if not flags & END_HEADERS:
            self._block = stream_id, flags, block
            return
        headers = self._decoder.decode(block)
        stream = self._streams.get(stream_id)
        if stream is not None:  # trailers
            if flags & END_STREAM:
                self._request_ends(stream)
            return
        if stream_id <= self._last_stream or not stream_id & 1:
            if stream_id <= self._last_stream and stream_id & 1:
                return  # of a stream that is over
            raise Refused(PROTOCOL_ERROR, "bad stream id")
        self._last_stream = stream_id
        path = next((value for name, value in headers if name == b":path"), b"")
        method = self._handlers.methods.get(path)
        if method is None:
            self._answer_at_once(stream_id, "UNIMPLEMENTED", f"unknown method {path.decode(errors='replace')}")
        elif not self._handlers.admits(self.certificate):
            self._answer_at_once(stream_id, errors.PERMISSION_DENIED.code, errors.PERMISSION_DENIED.text)
        elif len(self._streams) >= STREAMS_MAX:
            self.write(frame(RST_STREAM, 0, stream_id, struct.pack(">I", 7)))
        else:
            stream = self._streams[stream_id] = Stream(self, stream_id, headers, method)
            if method.requests_stream:
                stream.task = self._loop.create_task(self._run_stream(stream, stream.requests()))
            if flags & END_STREAM:
                self._request_ends(stream)

    def _answer_at_once(self, stream_id: int, code: str, text: str) -> None:
        self.write(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, _OPENING + trailers(code, text)))

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._taken += len(payload)
        if self._taken > CONNECTION_WINDOW_BYTES // 2:
            self.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_stream:
                raise Refused(PROTOCOL_ERROR, "data on an idle stream")
            return
        body = _unpadded(flags, payload)
        stream.buffer += body
        if stream.method.requests_stream:
            stream.held += len(body)
            if stream.held > STREAM_WINDOW_BYTES:
                raise Refused(FLOW_CONTROL_ERROR, "more than the stream's window")
            self.give_back(stream, len(payload) - len(body))
        else:
            self.give_back(stream, len(payload))
        self._messages(stream)
        if flags & END_STREAM and stream_id in self._streams:
            self._request_ends(stream)

    def _messages(self, stream: Stream) -> None:
        """Take whole messages of a stream of requests; see that one alone is not too large."""
        buffer, many = stream.buffer, stream.method.requests_stream
        limit = min(self._handlers.request_bytes_max, STREAM_WINDOW_BYTES // 4) if many else self._handlers.request_bytes_max
        while len(buffer) >= 5:
            n = int.from_bytes(buffer[1:5], "big")
            if buffer[0] or n > limit or (not many and len(buffer) > n + 5):
                code, text = "RESOURCE_EXHAUSTED", f"grpc: received message larger than max ({max(n, len(buffer) - 5)} vs. {limit})"
                if buffer[0]:
                    code, text = "UNIMPLEMENTED", "grpc: compressed messages are not supported"
                buffer.clear()
                self.finish(stream, code, text)
                if stream.task is not None:
                    stream.task.cancel()
                return
            if not many or len(buffer) < 5 + n:
                return
            stream.queue.append(bytes(buffer[5 : 5 + n]))
            del buffer[: 5 + n]
            stream.wake(stream.taker)

    def _request_ends(self, stream: Stream) -> None:
        stream.done = True
        method, buffer = stream.method, stream.buffer
        if method.requests_stream:
            stream.wake(stream.taker)
            return
        if len(buffer) < 5 or len(buffer) != 5 + int.from_bytes(buffer[1:5], "big"):
            self.finish(stream, "INTERNAL", "grpc: a request is one message")
            return
        try:
            request = method.parse(bytes(buffer[5:]))
        except Exception as e:
            self.finish(stream, "INTERNAL", f"grpc: error unmarshalling request: {e}")
            return
        buffer.clear()
        run = self._run_stream(stream, _once(request)) if method.answers_stream else self._run(stream, request)
        stream.task = self._loop.create_task(run)

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            return
        if len(payload) % 6:
            raise Refused(6, "bad settings")
        for name, value in struct.iter_unpack(">HI", payload):
            if name == 4:
                if value > WINDOW_BYTES_MAX:
                    raise Refused(FLOW_CONTROL_ERROR, "a window is too large")
                change, self.peer_window = value - self.peer_window, value
                for stream in self._streams.values():
                    stream.window += change
            elif name == 5:
                self._frame_max = min(max(value, 16384), 1 << 20)
        self.write(frame(SETTINGS, ACK, 0))
        self._pump_all()

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Refused(6, "bad window update")
        n = int.from_bytes(payload, "big") & WINDOW_BYTES_MAX
        if stream_id == 0:
            self._window += n
            if self._window > WINDOW_BYTES_MAX:
                raise Refused(FLOW_CONTROL_ERROR, "the window is too large")
            self._pump_all()
        elif (stream := self._streams.get(stream_id)) is not None:
            stream.window += n
            self._pump(stream)

    def give_back(self, stream: Stream, n: int) -> None:
        """Let the peer send as much more on the stream."""
        stream.taken += n
        if stream.taken > STREAM_WINDOW_BYTES // 2 and not stream.done:
            self.write(frame(WINDOW_UPDATE, 0, stream.id, struct.pack(">I", stream.taken)))
            stream.taken = 0

    # Answers

    async def _run(self, stream: Stream, request: Any) -> None:
        method = stream.method
        try:
            answer = await method.call(request, stream)
            message = answer if type(answer) is bytes else answer.SerializeToString()
        except (EtcdError, StoreError) as e:
            refusal = errors.of(e) if isinstance(e, StoreError) else e
            self.finish(stream, refusal.code, refusal.text)
        except Exception:
            log.exception("a method failed", method=method.name)
            self.finish(stream, "INTERNAL", "internal error")
        else:
            n, at = len(message) + 5, stream.id
            if n <= self._window and n <= stream.window and n <= self._frame_max and at in self._streams:
                self._window -= n
                head = frame(HEADERS, END_HEADERS, at, _OPENING)
                data = _FRAME.pack(n >> 16, n & 0xFFFF, DATA, 0, at)
                self.write(head + data + b"\0" + (n - 5).to_bytes(4, "big") + message + frame(HEADERS, END_HEADERS | END_STREAM, at, _DONE))
                self._over(stream, "OK")
            else:
                self.send(stream, message)
                self.finish(stream, "OK", "")

    async def _run_stream(self, stream: Stream, requests: AsyncIterator[Any]) -> None:
        method = stream.method
        try:
            self._open(stream)
            await method.call(requests, stream.send, stream)
        except (EtcdError, StoreError) as e:
            refusal = errors.of(e) if isinstance(e, StoreError) else e
            self.finish(stream, refusal.code, refusal.text)
        except Exception:
            log.exception("a method failed", method=method.name)
            self.finish(stream, "INTERNAL", "internal error")
        else:
            self.finish(stream, "OK", "")

    def _open(self, stream: Stream) -> None:
        if not stream.opened:
            stream.opened = True
            self.write(frame(HEADERS, END_HEADERS, stream.id, _OPENING))

    def send(self, stream: Stream, message: bytes) -> None:
        """Queue one message of the answer."""
        if stream.id not in self._streams:
            return
        self._open(stream)
        stream.pending.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
        self._pump(stream)

    def finish(self, stream: Stream, code: str, text: str) -> None:
        """The status, after everything that is queued."""
        if stream.id not in self._streams or stream.trailers is not None:
            return
        stream.trailers = (b"" if stream.opened else _OPENING) + (_DONE if code == "OK" else trailers(code, text))
        self._handlers.ended(stream.method.name, code)
        self._pump(stream)

    def _pump_all(self) -> None:
        for stream in list(self._streams.values()):
            if stream.pending:
                self._pump(stream)

    def _pump(self, stream: Stream) -> None:
        """Write as much of a stream as the windows allow."""
        pending = stream.pending
        while pending:
            room = min(self._window, stream.window, self._frame_max)
            if room <= 0:
                return
            data = pending[0]
            if len(data) <= room:
                pending.popleft()
            else:
                data, pending[0] = data[:room], data[room:]
            self._window -= len(data)
            stream.window -= len(data)
            self.write(frame(DATA, 0, stream.id, data))
        stream.wake(stream.sender)
        if stream.trailers is not None:
            self.write(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, stream.trailers))
            self._over(stream, "")

    def _over(self, stream: Stream, code: str) -> None:
        if code:
            self._handlers.ended(stream.method.name, code)
        self._resets = max(self._resets - 1, 0)
        if self._streams.pop(stream.id, None) is not None and not stream.done:
            self.write(frame(RST_STREAM, 0, stream.id, struct.pack(">I", NO_ERROR)))

    def write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(b"".join(out))


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Refused(PROTOCOL_ERROR, "bad padding")
    return payload[1 : len(payload) - payload[0]]


async def _once(request: Any) -> AsyncIterator[Any]:
    yield request
