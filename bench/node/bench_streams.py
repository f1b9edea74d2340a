"""Bytes through the node: SPDY framing, WebSocket messages, container logs."""

from __future__ import annotations

import asyncio

from fastkube.http import spdy, websocket
from fastkube.node import containerlogs

MIB = bytes(1 << 20)


def test_spdy_mebibyte_framed_and_read(benchmark):
    client, server = spdy.Connection(client=True), spdy.Connection(client=False)
    id = client.open({"streamtype": "stdout"})
    server.receive(client.data_to_send())

    def work() -> int:
        client.send(id, MIB)
        return sum(len(e.data) for e in server.receive(client.data_to_send()) if isinstance(e, spdy.Data))

    assert benchmark(work) == len(MIB)


class _Sink:
    async def read(self) -> bytes:
        return b""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


def test_websocket_mebibyte_in_messages_of_32_kib(benchmark):
    async def send() -> None:
        socket = websocket.WebSocket(_Sink())
        for start in range(0, len(MIB), 32768):
            await socket.send(MIB[start : start + 32768])

    benchmark(lambda: asyncio.run(send()))


def test_log_of_10_mib_read(benchmark, tmp_path):
    path = tmp_path / "0.log"
    entry = b"2026-11-20T22:43:00.123456789Z stdout F " + b"x" * 100 + b"\n"
    path.write_bytes(entry * (10 * (1 << 20) // len(entry)))

    async def read() -> int:
        return sum([len(c) async for c in containerlogs.read(str(path), containerlogs.LogOptions(), lambda: False)])

    assert benchmark(lambda: asyncio.run(read())) > 7_000_000


def test_last_ten_lines_of_10_mib(benchmark, tmp_path):
    path = tmp_path / "0.log"
    path.write_bytes(b"2026-11-20T22:43:00.123456789Z stdout F line\n" * 230_000)
    assert len(benchmark(containerlogs.tail, str(path), 10)) == 10
