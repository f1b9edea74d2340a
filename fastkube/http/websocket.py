"""WebSocket (RFC 6455) on a connection that was taken over: handshake and messages, both sides. Frames are the `websockets` library's sans-IO core.

The handshake is ours because Kubernetes speaks sub-protocols whose names are no HTTP tokens (`SPDY/3.1+portforward.k8s.io`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from websockets.exceptions import ConnectionClosed, InvalidState, ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol as Frames
from websockets.protocol import Side, State

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class BadHandshake(ValueError):
    """The request asks for no WebSocket that we speak."""


class ByteStream(Protocol):
    """What a WebSocket runs on: `http.server.Stream`, or a client's connection wrapped alike."""

    async def read(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


def is_requested(headers: Mapping[str, str]) -> bool:
    """Whether a request (lower-case header names) asks for WebSocket."""
    return headers.get("upgrade", "").lower() == "websocket" and "upgrade" in headers.get("connection", "").lower()


def offered(headers: Mapping[str, str]) -> list[str]:
    """The sub-protocols a client offers, in its order."""
    return [p.strip() for p in headers.get("sec-websocket-protocol", "").split(",") if p.strip()]


def accept_key(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()


def answer(headers: Mapping[str, str], protocol: str) -> list[tuple[str, str]]:
    """The headers of the 101 answer that accepts `protocol` ("": none). BadHandshake."""
    key = headers.get("sec-websocket-key", "")
    if headers.get("sec-websocket-version") != "13" or len(key) != 24:
        raise BadHandshake("not a WebSocket handshake of version 13")
    out = [("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept_key(key))]
    if protocol:
        out.append(("Sec-WebSocket-Protocol", protocol))
    return out


def choose(headers: Mapping[str, str], known: Sequence[str]) -> str | None:
    """The first sub-protocol of the client's that is known; "" when it offers none; None when we speak none of its."""
    asked = offered(headers)
    if not asked:
        return ""
    return next((p for p in asked if p in known), None)


class WebSocket:
    """Messages over `stream`, pings answered. One reader; any number of senders."""

    def __init__(self, stream: ByteStream, *, client: bool = False) -> None:
        self.stream = stream
        self._frames = Frames(Side.CLIENT if client else Side.SERVER, state=State.OPEN, max_size=MESSAGE_BYTES_MAX)
        self._parts: list[bytes] = []
        self._messages: list[bytes] = []

    async def receive(self) -> bytes | None:
        """The next message, text as UTF-8; None when the peer closed or the connection ended."""
        while not self._messages:
            data = await self.stream.read()
            if not data:
                return None
            with contextlib.suppress(ProtocolError, EOFError):
                self._frames.receive_data(data)
            self._take(self._frames.events_received())
            with contextlib.suppress(ConnectionError):  # no pong and no close for a peer that is gone, but what it sent counts
                await self._flush()
            if not self._messages and self._frames.state is not State.OPEN:
                return None
        return self._messages.pop(0)

    def _take(self, events: Sequence[Any]) -> None:
        for frame in events:
            if isinstance(frame, Frame) and frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._parts.append(bytes(frame.data))
                if frame.fin:
                    self._messages.append(b"".join(self._parts))
                    self._parts.clear()

    async def send(self, data: bytes) -> None:
        """A binary message. ConnectionResetError when the peer is gone."""
        try:
            self._frames.send_binary(data)
        except (InvalidState, ConnectionClosed) as e:
            raise ConnectionResetError("the peer has closed the WebSocket") from e
        await self._flush()

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Say that we are done; the peer's own close may still come."""
        if self._frames.state is State.OPEN:
            self._frames.send_close(code, reason)
            with contextlib.suppress(ConnectionError):
                await self._flush()

    async def _flush(self) -> None:
        for data in self._frames.data_to_send():
            if data:
                self.stream.write(data)
        await self.stream.drain()
