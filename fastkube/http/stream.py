"""A connection taken over (101): bytes both ways, with backpressure both ways."""

from __future__ import annotations

import asyncio
from typing import Any

READ_BUFFER_BYTES_MAX = 256 * 1024  # unread by the stream's owner before the peer is held back


class Stream:
    """The owner's end. `connection` is the server's: its transport, its loop, and the switch of its reading."""

    def __init__(self, connection: Any) -> None:
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
            self._connection.pause_reading()
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
        if not self._eof:
            self._connection.resume_reading()
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
