"""exec, attach and port-forward: the client's connection joined to the runtime's own streaming server (a URL that CRI gives, on loopback).

The runtime's server speaks SPDY/3.1 and WebSocket up to v4.channel.k8s.io, so those connections are tunnelled: its answer to the handshake is
the client's answer, then bytes pass unread. Two things it does not speak end here: `v5.channel.k8s.io` (v4 with a way to close stdin), which becomes
SPDY streams; and `SPDY/3.1+portforward.k8s.io`, which is SPDY in WebSocket messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httptools

from fastkube.api.errors import ApiError
from fastkube.http import spdy, websocket
from fastkube.http.message import Answer, Request, Response, Upgrade
from fastkube.runtime import logs

V5 = "v5.channel.k8s.io"
PORT_FORWARD_TUNNEL = "SPDY/3.1+portforward.k8s.io"
PORT_FORWARD = "portforward.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
READ_BYTES = 64 * 1024
HEAD_BYTES_MAX = 64 * 1024
CONNECT_SECONDS_MAX = 10.0

log = logs.get("streaming")

_PASSED = ("sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "x-stream-protocol-version", "upgrade", "connection", "origin")


class Far:
    """A connection to the runtime's streaming server, as a byte stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.rest = b""  # behind the head

    async def read(self) -> bytes:
        if self.rest:
            rest, self.rest = self.rest, b""
            return rest
        return await self._reader.read(READ_BYTES)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def write_eof(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()

    # httptools' callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    async def head(self) -> None:
        """Read the answer's head."""
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            block = await self._reader.read(READ_BYTES)
            if not block or len(data) > HEAD_BYTES_MAX:
                raise ConnectionError("the runtime's streaming server gave no proper answer")
            data += block
        parser = httptools.HttpResponseParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            parser.feed_data(bytes(data[: end + 4]))
        self.status = parser.get_status_code()
        self.rest = bytes(data[end + 4 :])


async def connect(url: str, headers: Sequence[tuple[str, str]]) -> Far:
    """GET `url` asking for another protocol. ApiError 500 when the runtime's server is not to be reached."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc}", *(f"{k}: {v}" for k, v in headers), "", ""]
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            tls = ssl._create_unverified_context() if parts.scheme == "https" else None  # loopback, a certificate of the runtime's own making
            far = Far(*await asyncio.open_connection(parts.hostname, parts.port, ssl=tls))
            far.write("\r\n".join(lines).encode("latin-1", "replace"))
            await far.head()
            return far
    except (OSError, TimeoutError) as e:
        raise ApiError(500, "InternalError", f"the container runtime's streaming server does not answer: {e or 'timeout'}") from None


async def serve(request: Request, url: Callable[[], Awaitable[str]], *, port_forward: bool = False) -> Answer:
    """Join the client that sent `request` with the session behind `url()`. ApiError."""
    if websocket.is_requested(request.headers):
        offered = websocket.offered(request.headers)
        if port_forward and PORT_FORWARD_TUNNEL in offered:
            return await _spdy_in_websocket(request, await url())
        if not port_forward and V5 in offered:
            return await _v5(request, await url())
    elif "spdy/3.1" not in request.headers.get("upgrade", "").lower():
        raise ApiError(400, "BadRequest", "unable to upgrade: WebSocket or SPDY/3.1 is wanted")
    return await _tunnel(request, await url())


async def _tunnel(request: Request, url: str) -> Answer:
    """Hand the handshake on and join the two."""
    headers = [(name, request.headers[name]) for name in _PASSED if name in request.headers]
    far = await connect(url, headers)
    if far.status != 101:
        body = await far.read()
        far.close()
        return Response(far.status, body, "text/plain; charset=utf-8")

    async def run(stream: Any) -> None:
        await join(stream, far)

    return Upgrade(run, [(k, v) for k, v in far.headers if k.lower() != "connection"])


async def join(near: Any, far: Any) -> None:
    """Bytes both ways. The far side's end ends it all; the near side's end is handed on, and what is on its way back still arrives."""

    async def outward() -> None:
        while data := await near.read():
            far.write(data)
            await far.drain()
        far.write_eof()

    out = asyncio.create_task(outward(), name="stream/outward")
    try:
        while data := await far.read():
            near.write(data)
            await near.drain()
    except ConnectionError:
        pass
    finally:
        out.cancel()
        await asyncio.gather(out, return_exceptions=True)
        far.close()
        near.close()


# --- SPDY in WebSocket messages (kubectl port-forward) ---


async def _spdy_in_websocket(request: Request, url: str) -> Answer:
    headers = _websocket_answer(request, PORT_FORWARD_TUNNEL)
    far = await connect(url, [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", PORT_FORWARD)])
    if far.status != 101:
        body = await far.read()
        far.close()
        return Response(far.status, body, "text/plain; charset=utf-8")

    async def run(stream: Any) -> None:
        await join(_Messages(websocket.WebSocket(stream)), far)

    return Upgrade(run, headers)


class _Messages:
    """A WebSocket as a byte stream: message boundaries mean nothing."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self.socket = socket
        self._out: list[bytes] = []

    async def read(self) -> bytes:
        while (message := await self.socket.receive()) is not None:
            if message:
                return message
        return b""

    def write(self, data: bytes) -> None:
        self._out.append(data)

    async def drain(self) -> None:
        data, self._out = b"".join(self._out), []
        await self.socket.send(data)

    def close(self) -> None:
        self.socket.stream.close()


def _websocket_answer(request: Request, protocol: str) -> list[tuple[str, str]]:
    try:
        return websocket.answer(request.headers, protocol)
    except websocket.BadHandshake as e:
        raise ApiError(400, "BadRequest", str(e)) from None


# --- v5.channel.k8s.io to SPDY streams (kubectl exec and attach) ---


async def _v5(request: Request, url: str) -> Answer:
    headers = _websocket_answer(request, V5)
    far = await connect(url, [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "v4.channel.k8s.io")])
    if far.status != 101:
        body = await far.read()
        far.close()
        return Response(far.status, body, "text/plain; charset=utf-8")
    wanted = {name for name, value in request.query if name in ("input", "output", "error", "tty") and value in ("1", "true")}

    async def run(stream: Any) -> None:
        await Translation(websocket.WebSocket(stream), far, wanted).run()

    return Upgrade(run, headers)


class Translation:
    """One session: WebSocket messages that begin with their channel's number, on one side; a SPDY stream per channel on the other."""

    def __init__(self, socket: websocket.WebSocket, far: Far, wanted: set[str]) -> None:
        self.socket = socket
        self.far = far
        self.spdy = spdy.Connection(client=True)
        kinds = {ERROR: "error"}
        if "input" in wanted:
            kinds[STDIN] = "stdin"
        if "output" in wanted:
            kinds[STDOUT] = "stdout"
        if "error" in wanted and "tty" not in wanted:
            kinds[STDERR] = "stderr"
        if "tty" in wanted:
            kinds[RESIZE] = "resize"
        self._streams = {channel: self.spdy.open({"streamtype": kind}) for channel, kind in kinds.items()}
        self._channels = {id: channel for channel, id in self._streams.items()}
        self._error = b""

    async def run(self) -> None:
        """Until the session ended; the status is the last message before the close."""
        inward = asyncio.create_task(self._inward(), name="stream/inward")
        try:
            await self._flush()
            first = min((c for c in self._streams if c in (STDOUT, STDERR)), default=None)
            if first is not None:
                await self.socket.send(bytes((first,)))  # an empty message tells the client that it is through
            await self._outward()
            await self.socket.close()
        except ConnectionError:
            pass
        finally:
            inward.cancel()
            await asyncio.gather(inward, return_exceptions=True)
            self.far.close()
            self.socket.stream.close()

    async def _inward(self) -> None:
        """From the client: stdin, its end, and terminal sizes. Its going away ends the session."""
        while (message := await self.socket.receive()) is not None:
            if not message:
                continue
            channel, data = message[0], message[1:]
            if channel == CLOSE:
                id = self._streams.get(data[0]) if data else None
                if id is not None:
                    self.spdy.send(id, b"", ended=True)
            elif channel in (STDIN, RESIZE) and channel in self._streams and data:
                self.spdy.send(self._streams[channel], data)
            await self._flush()
        self.far.close()

    async def _outward(self) -> None:
        """From the runtime: output, then the status, which the runtime writes last."""
        over = False
        while not over:
            data = await self.far.read()
            over = not data
            for event in self.spdy.receive(data):
                if isinstance(event, spdy.Data):
                    channel = self._channels.get(event.id, CLOSE)
                    if channel == ERROR:
                        self._error += event.data
                        over = over or event.ended
                    elif channel in (STDOUT, STDERR) and event.data:
                        await self.socket.send(bytes((channel,)) + event.data)
                elif isinstance(event, spdy.Closed) or (isinstance(event, spdy.StreamReset) and self._channels.get(event.id) == ERROR):
                    over = True
            await self._flush()
        if self._error:
            await self.socket.send(bytes((ERROR,)) + self._error)

    async def _flush(self) -> None:
        data = self.spdy.data_to_send()
        if data:
            self.far.write(data)
            await self.far.drain()
