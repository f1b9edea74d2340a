"""SPDY/3.1, as much of it as Kubernetes speaks: streams of bytes with headers, over one connection (draft-mbelshe-httpbis-spdy-00, version 3).

`Connection` is sans-IO: bytes in, events out; calls in, bytes out. Laws: a stream's data comes in the order it was sent; each side ends its own
direction once (FIN) and may reset a stream; header blocks share one compression context per direction, so they are made and read in order.
There is no flow control: the peers (docker/spdystream and what descends from it) have none, TCP's backpressure serves.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FRAME_BYTES_MAX = 16 * 1024 * 1024 - 1
DATA_BYTES = 32 * 1024  # how much of a write goes into one frame
HEADER_BLOCK_BYTES_MAX = 256 * 1024
STREAMS_MAX = 1024

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 1
PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM, CANCEL = 1, 2, 3, 5

_NAMES = (
    "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|allow|"
    "authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|content-location|"
    "content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|"
    "if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|proxy-authorization|range|"
    "referer|retry-after|server|te|trailer|transfer-encoding|upgrade|user-agent|vary|via|warning|www-authenticate|method"
    "|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|keep-alive|origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content"
    "301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
# The dictionary of section 2.6.10.1; its Adler-32 is 0xe3c6a7c2.
DICTIONARY = b"".join(struct.pack(">I", len(w)) + w.encode() for w in _NAMES.split("|")) + _TAIL.encode()


class SpdyError(Exception):
    """The peer does not speak SPDY/3.1; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream."""

    id: int
    headers: dict[str, str]
    ended: bool


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer accepted a stream of ours."""

    id: int


@dataclass(frozen=True, slots=True)
class Data:
    id: int
    data: bytes
    ended: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    id: int
    status: int


@dataclass(frozen=True, slots=True)
class Closed:
    """GOAWAY: the peer opens and accepts no more streams."""


Event = StreamOpened | StreamAccepted | Data | StreamReset | Closed


class Connection:
    def __init__(self, *, client: bool) -> None:
        self._next_id = 1 if client else 2
        self._client = client
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._open: set[int] = set()  # streams that the peer opened

    # --- out ---

    def data_to_send(self) -> bytes:
        """What has to go to the peer, taken once."""
        out, self._out = b"".join(self._out), []
        return out

    def open(self, headers: Mapping[str, str], *, ended: bool = False) -> int:
        """Open a stream; its id. `ended`: we send nothing on it."""
        id, self._next_id = self._next_id, self._next_id + 2
        self._control(SYN_STREAM, FIN if ended else 0, struct.pack(">IIH", id, 0, 0) + self._block(headers))
        return id

    def accept(self, id: int, headers: Mapping[str, str] | None = None) -> None:
        """Answer a stream that the peer opened."""
        self._control(SYN_REPLY, 0, struct.pack(">I", id) + self._block(headers or {}))

    def send(self, id: int, data: bytes, *, ended: bool = False) -> None:
        """Data on a stream; `ended` half-closes it from our side."""
        view = memoryview(data)
        for start in range(0, max(len(view), 1), DATA_BYTES):
            part = view[start : start + DATA_BYTES]
            last = start + DATA_BYTES >= len(view)
            self._out.append(struct.pack(">I", id) + ((FIN if ended and last else 0) << 24 | len(part)).to_bytes(4, "big") + part)

    def reset(self, id: int, status: int = CANCEL) -> None:
        self._open.discard(id)
        self._control(RST_STREAM, 0, struct.pack(">II", id, status))

    def close(self) -> None:
        """GOAWAY."""
        self._control(GOAWAY, 0, struct.pack(">II", 0, 0))

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        self._out.append(struct.pack(">HHI", 0x8003, kind, flags << 24 | len(payload)) + payload)

    def _block(self, headers: Mapping[str, str]) -> bytes:
        plain = struct.pack(">I", len(headers)) + b"".join(_counted(k.lower()) + _counted(v) for k, v in headers.items())
        return self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    # --- in ---

    def receive(self, data: bytes) -> Sequence[Event]:
        """Events of the frames that `data` completes. SpdyError."""
        self._buffer += data
        events: list[Event] = []
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            length = second & 0xFFFFFF
            if len(self._buffer) < 8 + length:
                break
            with memoryview(self._buffer) as view:
                payload = bytes(view[8 : 8 + length])
            del self._buffer[: 8 + length]
            if first & 0x80000000:
                if (first >> 16) & 0x7FFF != 3:
                    raise SpdyError("the peer speaks another version of SPDY")
                events += self._frame(first & 0xFFFF, second >> 24, payload)
            else:
                events.append(Data(first, payload, bool(second >> 24 & FIN)))
        return events

    def _frame(self, kind: int, flags: int, payload: bytes) -> list[Event]:
        try:
            if kind == SYN_STREAM:
                id = struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF
                headers = self._headers(payload[10:])
                if (id % 2 == 1) == self._client or id in self._open:
                    raise SpdyError(f"the peer opened stream {id}, which is not its to open")
                if len(self._open) >= STREAMS_MAX:
                    self.reset(id, REFUSED_STREAM)
                    return []
                self._open.add(id)
                return [StreamOpened(id, headers, bool(flags & FIN))]
            if kind == SYN_REPLY:
                self._headers(payload[4:])
                return [StreamAccepted(struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF)]
            if kind == RST_STREAM:
                id, status = struct.unpack_from(">II", payload)
                self._open.discard(id)
                return [StreamReset(id, status)]
            if kind == PING:
                number = struct.unpack_from(">I", payload)[0]
                if (number % 2 == 1) != self._client:  # the peer's own: sent back
                    self._control(PING, 0, payload[:4])
                return []
            if kind == GOAWAY:
                return [Closed()]
            if kind == HEADERS:
                self._headers(payload[4:])
        except struct.error as e:
            raise SpdyError("a frame is cut short") from e
        return []  # SETTINGS, WINDOW_UPDATE and what is unknown are no matter

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, HEADER_BLOCK_BYTES_MAX)
        except zlib.error as e:
            raise SpdyError(f"a header block cannot be read: {e}") from e
        if self._inflate.unconsumed_tail:
            raise SpdyError("a header block is too long")
        (count,) = struct.unpack_from(">I", plain)
        at, out = 4, {}
        for _ in range(min(count, len(plain))):
            name, at = _take(plain, at)
            value, at = _take(plain, at)
            out[name.lower()] = value.replace("\0", ", ")
        return out


def _counted(text: str) -> bytes:
    data = text.encode("latin-1", "replace")
    return struct.pack(">I", len(data)) + data


def _take(block: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">I", block, at)
    end = at + 4 + length
    if end > len(block):
        raise SpdyError("a header block is cut short")
    return block[at + 4 : end].decode("latin-1"), end
