"""The client's HTTP/1.1: its laws against servers that behave badly in every way a socket allows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from fastkube.client import http1
from fastkube.client.http1 import BrokenConnection, Headers, Pool

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(serve: Serve):
    """A raw TCP server; gives a Pool for it."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """One request: its first line and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0)
    return head.split("\r\n")[0], await reader.readexactly(length)


def ok(body: bytes, extra: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        line, body = await request(reader)
        writer.write(ok(line.encode() + b" " + body))


async def test_many_requests_share_few_connections() -> None:
    seen: set[object] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.add(writer)
        await echo(reader, writer)

    async with serving(serve) as pool:
        answers = await asyncio.gather(*(pool.request("POST", f"/{i}", {}, b"x" * i) for i in range(300)))
        assert [a.body for a in answers] == [f"POST /{i} HTTP/1.1 ".encode() + b"x" * i for i in range(300)]
        assert len(seen) <= http1.CONNECTIONS_MAX


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_answers_in_any_form_and_any_cut(size: int) -> None:
    forms = [
        ok(b"sized"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsiz\r\n2\r\ned\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"sized"),
        b"HTTP/1.0 200 OK\r\n\r\nsized",  # ends with its connection
    ]
    for form in forms:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, form: bytes = form) -> None:
            await request(reader)
            for i in range(0, len(form), size):
                writer.write(form[i : i + size])
                await asyncio.sleep(0)

        async with serving(serve) as pool:
            answer = await pool.request("GET", "/", {})
            assert (answer.status, answer.body) == (200, b"sized")


async def test_a_kept_connection_that_was_closed_is_replaced_but_a_post_is_not_repeated() -> None:
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await request(reader)
        writer.write(ok(b"first"))
        await request(reader)  # the second one is read and the connection closed

    async with serving(serve) as pool:
        assert (await pool.request("GET", "/", {})).body == b"first"
        assert (await pool.request("PUT", "/", {}, b"x")).body == b"first"
        assert count == 2
        with pytest.raises(BrokenConnection):
            await pool.request("POST", "/", {}, b"x")


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-hello\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000]
)
async def test_what_is_no_answer_is_an_error(garbage: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(garbage)
        await writer.drain()

    async with serving(serve) as pool:
        for _ in range(http1.CONNECTIONS_MAX + 5):  # and costs the pool nothing
            with pytest.raises(BrokenConnection):
                await pool.request("GET", "/", {})


async def test_silence_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "REQUEST_TIMEOUT_SECONDS", 0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with serving(serve) as pool:
        with pytest.raises(BrokenConnection, match="in time"):
            await pool.request("GET", "/", {})
        with pytest.raises(BrokenConnection, match="in time"):
            await pool.stream("GET", "/", {})


async def test_cancelled_requests_free_their_connection_and_nobody_gets_their_answer() -> None:
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line, _ = await request(reader)
            if "slow" in line:
                await release.wait()
            writer.write(ok(line.encode()))

    async with serving(serve) as pool:
        slow = [asyncio.ensure_future(pool.request("GET", "/slow", {})) for _ in range(http1.CONNECTIONS_MAX + 10)]
        await asyncio.sleep(0.05)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        release.set()
        answers = await asyncio.gather(*(pool.request("GET", f"/quick{i}", {}) for i in range(100)))
        assert [a.body for a in answers] == [f"GET /quick{i} HTTP/1.1".encode() for i in range(100)]


async def test_a_slow_reader_of_a_stream_holds_the_server_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "STREAM_BUFFER_BYTES_MAX", 100_000)
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(800):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536
        writer.write(b"0\r\n\r\n")

    async with serving(serve) as pool:
        stream = await pool.stream("GET", "/", {})
        await asyncio.sleep(0.3)
        held = sent
        assert held < 50 << 20, "all of it was read ahead"
        assert len(await stream.read()) == 800 * 65536
        await stream.close()


async def test_a_stream_that_breaks_says_so_and_one_that_is_closed_goes() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, _ = await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        if "cut" in line:
            return
        assert await reader.read() == b""
        gone.set()

    async with serving(serve) as pool:
        stream = await pool.stream("GET", "/cut", {})
        got = []
        with pytest.raises(BrokenConnection):
            async for chunk in stream:
                got.append(chunk)
        assert got == [b"abc"]
        stream = await pool.stream("GET", "/", {})
        await stream.close()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_nobody_there() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    pool = Pool(f"http://127.0.0.1:{port}")
    for _ in range(http1.CONNECTIONS_MAX + 5):
        with pytest.raises(BrokenConnection, match="cannot connect"):
            await pool.request("GET", "/", {})
    for bad in ("ftp://x", "nonsense", "https://"):
        with pytest.raises(ValueError):
            Pool(bad)


def test_headers_in_any_case() -> None:
    headers = Headers({"retry-after": "1"})
    assert (
        headers["Retry-After"] == "1" and "RETRY-AFTER" in headers and headers.get("Retry-after") == "1" and headers.get("X", "d") == "d" and 1 not in headers
    )
