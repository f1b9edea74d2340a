"""The wire: HPACK by the examples of RFC 7541, flow control with large messages, slow readers, peers that break the protocol or send noise."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
import urllib.request

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.store.etcd import h2, hpack
from fastkube.store.etcd import messages as m


def test_header_blocks_of_the_rfc() -> None:
    decoder = hpack.Decoder()  # appendix C.4: requests with Huffman coding
    assert decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")) == [
        (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com"),
    ]  # fmt: skip
    assert decoder.decode(bytes.fromhex("828684be5886a8eb10649cbf"))[3:] == [(b":authority", b"www.example.com"), (b"cache-control", b"no-cache")]
    assert decoder.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))[3:] == [
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]


@given(st.binary(max_size=200))
def test_noise_in_a_header_block_is_an_error_or_headers(data: bytes) -> None:
    try:
        assert all(len(header) == 2 for header in hpack.Decoder().decode(data))
    except hpack.HpackError:
        pass


class Wire(asyncio.Transport):
    """What a connection writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        high, low, kind, flags, stream = struct.unpack_from(">BHBBI", data, at)
        n = high << 16 | low
        found.append((kind, flags, stream, data[at + 9 : at + 9 + n]))
        at += 9 + n
    return found


async def echo(request, caller) -> bytes:
    return request.SerializeToString()


def connection() -> tuple[h2.Connection, Wire]:
    method = h2.Method(echo, m.PutRequest.FromString, "/t/Echo", False, False)
    handlers = h2.Handlers({b"/t/Echo": method}, lambda method, path: (200, "text/plain", path), lambda certificate: True, lambda name, code: None, 1000)
    wire, made = Wire(), h2.Connection(handlers, set())
    made.connection_made(wire)
    return made, wire


def request(stream: int, body: bytes) -> bytes:
    head = h2.literal(b":path", b"/t/Echo")
    message = b"\0" + len(body).to_bytes(4, "big") + body
    return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, head) + h2.frame(h2.DATA, h2.END_STREAM, stream, message)


async def test_the_same_whatever_the_pieces() -> None:
    """However the bytes arrive, the answers are the same."""
    body = m.PutRequest(key=b"k", value=b"v" * 300).SerializeToString()
    data = h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + b"".join(request(i, body) for i in (1, 3, 5))
    for seed in range(20):
        r = random.Random(seed)
        made, wire = connection()
        at = 0
        while at < len(data):
            n = r.randint(1, 40)
            made.data_received(data[at : at + n])
            at += n
        for _ in range(5):
            await asyncio.sleep(0)
        answers = [f for f in frames(wire.written) if f[2]]
        assert [f[3][5:] for f in answers if f[0] == h2.DATA] == [body] * 3 and sum(f[1] & h2.END_STREAM for f in answers) == 3


async def test_answers_wait_for_the_window() -> None:
    made, wire = connection()
    body = m.PutRequest(key=b"k", value=b"v" * 300).SerializeToString()
    made.data_received(h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0, struct.pack(">HI", 4, 100)) + request(1, body))
    for _ in range(5):
        await asyncio.sleep(0)
    sent = b"".join(f[3] for f in frames(wire.written) if f[0] == h2.DATA)
    assert len(sent) == 100
    made.data_received(h2.frame(h2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1000)))
    await asyncio.sleep(0)
    got = frames(wire.written)
    assert b"".join(f[3] for f in got if f[0] == h2.DATA)[5:] == body and got[-1][1] & h2.END_STREAM


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=60)), max_size=12))
def test_frames_without_sense_never_raise(noise) -> None:
    async def feed() -> None:
        made, _ = connection()
        made.data_received(h2.PREFACE + b"".join(h2.frame(*f) for f in noise))
        await asyncio.sleep(0)
        made.connection_lost(None)

    asyncio.run(feed())


async def test_too_large_and_too_many() -> None:
    made, wire = connection()
    made.data_received(h2.PREFACE + request(1, b"x" * 1001))
    await asyncio.sleep(0)
    assert b"grpc: received message larger than max (1001 vs. 1000)" in wire.written
    made, wire = connection()
    opening = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.literal(b":path", b"/t/Echo"))
    for i in range(h2.RESETS_MAX + 2):
        made.data_received(
            (h2.PREFACE if i == 0 else b"") + opening[:5] + struct.pack(">I", 2 * i + 1) + opening[9:] + h2.frame(h2.RST_STREAM, 0, 2 * i + 1, bytes(4))
        )
    assert wire.closed


# Against the process


def test_pages_on_the_client_port(ours) -> None:
    with urllib.request.urlopen(f"{ours.url}/health", timeout=5) as answer:
        assert json.load(answer)["health"] == "true"


def test_large_values_and_ranges(ours) -> None:
    client = ours.client()
    for i in range(12):
        client.Put(key=b"large/%d" % i, value=bytes([i]) * (1 << 20))
    found = client.Range(key=b"large/", range_end=b"large0", sort_order=1)
    assert sorted(len(kv.value) for kv in found.kvs) == [1 << 20] * 12
    with pytest.raises(grpc.RpcError) as e:
        client.Put(key=b"large/no", value=b"x" * (1600 << 10))
    assert e.value.code().name == "INVALID_ARGUMENT" and "request is too large" in e.value.details()
    with pytest.raises(grpc.RpcError) as e:
        client.Put(key=b"large/no", value=b"x" * (3 << 20))
    assert e.value.code().name == "RESOURCE_EXHAUSTED"
    client.DeleteRange(key=b"large/", range_end=b"large0")


def test_a_watcher_that_does_not_read_misses_nothing_and_holds_up_nobody(ours) -> None:
    client = ours.client()
    slow = grpc.insecure_channel(ours.address, options=[("grpc.http2.lookahead_bytes", 65536), ("grpc.max_receive_message_length", -1)])
    requests = iter([m.WatchRequest(create_request=m.WatchCreateRequest(key=b"slow/", range_end=b"slow0"))])
    stop = threading.Event()

    def sending():
        yield next(requests)
        stop.wait(60)

    call = slow.stream_stream("/etcdserverpb.Watch/Watch", m.WatchRequest.SerializeToString, m.WatchResponse.FromString)(sending())
    assert next(call).created
    puts = 25_000
    value = b"x" * 200

    async def load() -> None:
        async with grpc.aio.insecure_channel(ours.address) as channel:
            put = channel.unary_unary("/etcdserverpb.KV/Put", m.PutRequest.SerializeToString, m.PutResponse.FromString)

            async def writer(w: int) -> None:
                for i in range(w, puts, 50):
                    await put(m.PutRequest(key=b"slow/%d" % (i % 100), value=value))

            await asyncio.gather(*(writer(w) for w in range(50)))

    asyncio.run(load())
    assert client.Range(key=b"slow/0").count == 1
    revisions: list[int] = []
    deadline = time.monotonic() + 60
    while len(revisions) < puts:
        assert time.monotonic() < deadline, len(revisions)
        revisions += [e.kv.mod_revision for e in next(call).events]
    assert revisions == list(range(revisions[0], revisions[0] + puts))
    stop.set()
    call.cancel()


def test_many_idle_streams_and_half_open_connections(ours) -> None:
    client = ours.client()
    halves = []
    for i in range(50):
        s = socket.create_connection((ours.address.split(":")[0], int(ours.address.split(":")[1])))
        s.sendall([b"", h2.PREFACE[:10], h2.PREFACE, b"GET /hea", b"\xff" * 100][i % 5])
        halves.append(s)

    async def idle() -> None:
        async with grpc.aio.insecure_channel(ours.address) as channel:
            watch = channel.stream_stream("/etcdserverpb.Watch/Watch", m.WatchRequest.SerializeToString, m.WatchResponse.FromString)
            calls = []
            for i in range(2000):
                call = watch()
                await call.write(m.WatchRequest(create_request=m.WatchCreateRequest(key=b"idle/%d" % i)))
                calls.append(call)
            for call in calls:
                assert (await call.read()).created
            client.Put(key=b"idle/1999", value=b"1")
            assert (await calls[1999].read()).events[0].kv.key == b"idle/1999"

    asyncio.run(idle())
    for s in halves:
        s.close()
    assert client.Range(key=b"idle/1999").count == 1
