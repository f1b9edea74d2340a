"""The HTTP server, spoken to in bytes over real sockets."""

import asyncio
import contextlib
import itertools
import ssl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastkube.http import connection as http
from fastkube.http import requests as reading
from fastkube.http.message import Pieces, Request, Response, Upgrade
from fastkube.http.server import BODY_BYTES_MAX, Server
from fastkube.http.tls import server_context
from fastkube.runtime.pki import Pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


class Wire:
    """A raw connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def head(self):
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        line, *rest = raw.decode().split("\r\n")[:-2]
        headers = {k.lower(): v for k, v in (h.split(": ", 1) for h in rest)}
        return int(line.split()[1]), headers

    async def answer(self, head=False):
        status, headers = await self.head()
        body = b""
        if not head and "content-length" in headers:
            body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 5)
        elif headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readline()).strip(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        return status, headers, body

    async def eof(self):
        assert await asyncio.wait_for(self.reader.read(), 5) == b""

    def send(self, data):
        self.writer.write(data)


@contextlib.asynccontextmanager
async def serving(handler, context=None, **options):
    server = Server(handler, context, **options)
    _, port = await server.listen("127.0.0.1", 0)
    wires = []

    async def connect(tls=None, limit=2**16):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=limit)
        wires.append(writer)
        return Wire(reader, writer)

    server.connect = connect
    try:
        yield server
    finally:
        for writer in wires:
            writer.transport.abort()
        await server.close()


def echo(request: Request) -> Response:
    return Response(200, f"{request.method} {request.path} {request.raw_query} {len(request.body)}".encode(), "text/plain")


async def test_keep_alive_and_repeated_heads():
    async with serving(echo) as server:
        wire = await server.connect()
        for i in range(5):
            wire.send(f"GET /pods/{i}?a={i} HTTP/1.1\r\nHost: x\r\nX-A: b\r\n\r\n".encode())
            status, headers, body = await wire.answer()
            assert (status, body) == (200, f"GET /pods/{i} a={i} 0".encode())
            assert headers["content-type"] == "text/plain" and headers["date"].endswith("GMT")


async def test_pipelined_requests_are_answered_in_order():
    async def slow_first(request):
        if request.path == "/0":
            await asyncio.sleep(0.05)
        return echo(request)

    async with serving(slow_first) as server:
        wire = await server.connect()
        wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(200)))
        for i in range(200):
            assert (await wire.answer())[2].startswith(b"GET /%d " % i)


STREAM = b"".join(
    [
        b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PUT /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n",
        b"DELETE /e HTTP/1.1\r\nHost: h\r\n\r\n",
    ]
)
ANSWERS = [b"GET /a x=1 0", b"POST /b  5", b"GET /c  0", b"PUT /d  7", b"GET /c  0", b"DELETE /e  0"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_requests_may_be_cut_anywhere(cuts):
    async def run():
        async with serving(echo) as server:
            wire = await server.connect()
            edges = [0, *sorted(cuts), len(STREAM)]
            for start, end in itertools.pairwise(edges):
                wire.send(STREAM[start:end])
                await asyncio.sleep(0)
            for expected in ANSWERS:
                assert (await wire.answer())[2] == expected

    asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a plain port
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
    ],
)
async def test_garbage_is_a_400_and_a_closed_connection(data):
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(data)
        assert (await wire.answer())[0] == 400
        await wire.eof()
        other = await server.connect()
        other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await other.answer())[0] == 200


async def test_heads_are_bounded():
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (reading.HEAD_BYTES_MAX // 6 + 10))
        assert (await wire.answer())[0] == 431


@pytest.mark.parametrize("how", ["length", "chunks"])
async def test_a_body_too_large_is_refused_and_the_answer_can_be_read(how):
    async with serving(echo) as server:
        wire = await server.connect()
        body = b"x" * (4 << 20)
        if how == "length":
            wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        status, headers, _ = await wire.answer()
        assert status == 413 and headers["connection"] == "close"
        await wire.eof()


async def test_the_largest_body_is_taken():
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES_MAX + b"x" * BODY_BYTES_MAX)
        assert (await wire.answer())[2] == b"POST /p  %d" % BODY_BYTES_MAX


async def test_100_continue():
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(b"POST /p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert (await wire.head())[0] == 100
        wire.send(b"abc")
        assert (await wire.answer())[2] == b"POST /p  3"


async def test_head_has_the_length_and_no_body():
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(b"HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\nGET /abc HTTP/1.1\r\nHost: x\r\n\r\n")
        _, headers, _ = await wire.answer(head=True)
        assert headers["content-length"] == "12"
        assert (await wire.answer())[2] == b"GET /abc  0"


@pytest.mark.parametrize(
    ("request_", "stays"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", False),
    ],
)
async def test_when_the_connection_stays(request_, stays):
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(request_)
        status, headers, _ = await wire.answer()
        assert status == 200 and (headers.get("connection") == "close") is not stays
        if stays:
            wire.send(request_)
            assert (await wire.answer())[0] == 200
        else:
            await wire.eof()


async def test_a_failing_handler_is_a_500_and_the_server_goes_on():
    async def later(request):
        raise RuntimeError("secret detail")

    def now(request):
        if request.path == "/later":
            return later(request)
        raise RuntimeError("secret detail")

    async with serving(now) as server:
        wire = await server.connect()
        for path in (b"/now", b"/later", b"/now"):
            wire.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _, body = await wire.answer()
            assert status == 500 and b"secret" not in body


async def test_header_values_cannot_split_the_answer():
    async with serving(lambda r: Response(200, b"", "text/plain", [("X-A", "a\r\nX-B: c")])) as server:
        wire = await server.connect()
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        _, headers, _ = await wire.answer()
        assert "x-b" not in headers


async def test_pieces_and_slow_readers():
    """A reader that takes nothing holds back the source, not the server; what it gets in the end is whole."""
    made = []

    def pieces():
        for i in range(64):
            made.append(i)
            yield bytes([i]) * 100_000

    async with serving(lambda r: Response(200, Pieces(6_400_000, pieces))) as server:
        wire = await server.connect(limit=1000)
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        assert len(made) < 64
        _, headers = await wire.head()
        assert int(headers["content-length"]) == 6_400_000
        body = await asyncio.wait_for(wire.reader.readexactly(6_400_000), 10)
        assert body == b"".join(bytes([i]) * 100_000 for i in range(64))


async def test_who_reads_nothing_is_cut_off():
    async with serving(lambda r: Response(200, b"x" * (32 << 20))) as server:
        wire = await server.connect(limit=1000)
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.head()
        async with asyncio.timeout(10):
            while server.connections:  # the kernel's buffers grow for a while: the writer pauses and resumes
                for connection in list(server.connections):
                    connection.sweep(server.now() + http.STALL_SECONDS_MAX + 1)
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", False), (b"GET / HT", False), (b"GET / HTTP/1.1\r\nHost: x\r\n", False), (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", True)],
)
async def test_half_a_request_is_given_up(sent, answered):
    async with serving(echo) as server:
        wire = await server.connect()
        wire.send(sent)
        await asyncio.sleep(0.05)
        (connection,) = server.connections
        connection.sweep(server.now() + 1)
        assert server.connections
        connection.sweep(server.now() + http.BODY_SECONDS_MAX + http.HEAD_SECONDS_MAX)
        if answered:
            assert (await wire.answer())[0] == 408
        await wire.eof()


async def test_streams_are_chunked_and_closed_with_the_peer():
    closed = asyncio.Event()

    async def body():
        try:
            for i in range(10**9):
                yield b"%d\n" % i
                await asyncio.sleep(0)
        finally:
            closed.set()

    async with serving(lambda r: Response(200, body())) as server:
        wire = await server.connect()
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        _, headers = await wire.head()
        assert headers["transfer-encoding"] == "chunked"
        assert await wire.reader.readexactly(7) == b"2\r\n0\n\r\n"
        wire.writer.transport.abort()
        await asyncio.wait_for(closed.wait(), 5)


async def test_a_short_stream_ends_properly_and_the_connection_stays():
    async def body():
        yield b"ab"
        yield b"c"

    async with serving(lambda r: Response(200, body())) as server:
        wire = await server.connect()
        for _ in range(2):
            wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await wire.answer())[2] == b"abc"


class Ticker:
    """A Push that writes when told."""

    def __init__(self):
        self.writer = None
        self.ended = 0
        self.resumes = 0

    def started(self, writer):
        self.writer = writer
        writer.write(b"first\n")

    def resumed(self):
        self.resumes += 1

    def closed(self):
        self.ended += 1


async def test_pushed_answers():
    ticker = Ticker()
    async with serving(lambda r: Response(200, ticker)) as server:
        wire = await server.connect()
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.head()
        ticker.writer.write(b"second\n")
        assert await wire.reader.readexactly(23) == b"6\r\nfirst\n\r\n7\r\nsecond\n\r\n"
        ticker.writer.end()
        assert await wire.reader.readexactly(5) == b"0\r\n\r\n"
        assert ticker.ended == 1
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.head()
        wire.writer.transport.abort()
        await asyncio.sleep(0.05)
        assert ticker.ended == 2


async def test_upgrade_takes_the_connection_over():
    async def run(stream):
        while data := await stream.read():
            stream.write(data.upper())
            await stream.drain()

    async with serving(lambda r: Upgrade(run, [("Upgrade", "loud")])) as server:
        wire = await server.connect()
        wire.send(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: loud\r\n\r\nearly")
        status, headers = await wire.head()
        assert status == 101 and headers["upgrade"] == "loud"
        assert await wire.reader.readexactly(5) == b"EARLY"
        wire.send(b"more")
        assert await wire.reader.readexactly(4) == b"MORE"
        wire.writer.write_eof()
        await wire.eof()


async def test_tls_shows_the_clients_certificate(pki):
    serving_pair = pki.apiserver(["127.0.0.1"])
    seen = []

    def handler(request):
        seen.append(request.peer_certificate)
        return echo(request)

    async with serving(handler, server_context(serving_pair.cert, serving_pair.key, pki.ca.cert)) as server:
        context = ssl.create_default_context(cafile=str(pki.ca.cert))
        wire = await server.connect(context)
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer())[0] == 200
        client = pki.client("admin")
        context.load_cert_chain(client.cert, client.key)
        context.set_alpn_protocols(["h2", "http/1.1"])
        wire = await server.connect(context)
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer())[0] == 200
        assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert seen[0] is None and seen[1].startswith(b"\x30")


async def test_close_lets_running_answers_end():
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(request):
        begun.set()
        await go.wait()
        return echo(request)

    async with serving(handler) as server:
        busy, idle = await server.connect(), await server.connect()
        busy.send(b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        closing = asyncio.create_task(server.close(5))
        await idle.eof()
        go.set()
        status, headers, _ = await busy.answer()
        assert status == 200 and headers["connection"] == "close"
        await closing
