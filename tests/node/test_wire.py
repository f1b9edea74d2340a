"""SPDY/3.1 and WebSocket as protocols: what one side says, the other understands, however it is cut into pieces; nonsense is refused."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.http import spdy, websocket

header = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
calls = st.lists(st.one_of(st.tuples(st.just("open"), st.dictionaries(header.map(str.lower), header, max_size=3)), st.tuples(st.just("data"), st.binary(max_size=100_000)), st.tuples(st.just("end"), st.none()), st.tuples(st.just("reset"), st.none())), max_size=8)  # fmt: skip


@given(calls, st.lists(st.integers(1, 5000), max_size=20))
def test_one_side_hears_what_the_other_says(calls, cuts):
    client, server = spdy.Connection(client=True), spdy.Connection(client=False)
    said: list[object] = []
    current = 0
    for kind, value in calls:
        if kind == "open":
            current = client.open(value)
            said.append(("open", current, value))
        elif current:
            if kind == "data":
                client.send(current, value)
                said.append(("data", current, value))
            elif kind == "end":
                client.send(current, b"", ended=True)
                said.append(("end", current))
                current = 0
            else:
                client.reset(current)
                said.append(("reset", current))
                current = 0
    wire = client.data_to_send()
    heard: list[object] = []
    at = 0
    for size in [*cuts, len(wire)]:
        for event in server.receive(wire[at : at + size]):
            if isinstance(event, spdy.StreamOpened):
                heard.append(("open", event.id, event.headers))
            elif isinstance(event, spdy.Data) and event.ended:
                heard.append(("end", event.id))
            elif isinstance(event, spdy.Data):
                if event.data and heard and heard[-1][0] == "more":
                    heard[-1] = ("more", event.id, heard[-1][2] + event.data)
                elif event.data:
                    heard.append(("more", event.id, event.data))
            elif isinstance(event, spdy.StreamReset):
                heard.append(("reset", event.id))
        at += size
    flat: list[object] = []
    for item in said:
        if item[0] == "data":
            if not item[2]:
                continue
            if flat and flat[-1][0] == "more":
                flat[-1] = ("more", item[1], flat[-1][2] + item[2])
            else:
                flat.append(("more", item[1], item[2]))
        else:
            flat.append(item)
    assert heard == flat


def test_dictionary_is_the_specifications():
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


def test_replies_pings_and_goodbyes():
    client, server = spdy.Connection(client=True), spdy.Connection(client=False)
    id = client.open({"streamtype": "data"})
    server.receive(client.data_to_send())
    server.accept(id)
    server.close()
    assert list(client.receive(server.data_to_send())) == [spdy.StreamAccepted(id), spdy.Closed()]
    server.receive(b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x07")
    assert server.data_to_send() == b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x07"


@pytest.mark.parametrize(
    "wire",
    [b"\x80\x02\x00\x01\x00\x00\x00\x00", b"\x80\x03\x00\x01\x00\x00\x00\x02xx", b"\x80\x03\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00zz"],
)
def test_nonsense_is_refused(wire):
    with pytest.raises(spdy.SpdyError):
        spdy.Connection(client=False).receive(wire)


def test_a_peer_may_not_open_our_streams_nor_too_many():
    server = spdy.Connection(client=False)
    with pytest.raises(spdy.SpdyError, match="not its to open"):
        server.receive(_opened(spdy.Connection(client=False)))
    client, server = spdy.Connection(client=True), spdy.Connection(client=False)
    opened = 0
    for _ in range(spdy.STREAMS_MAX + 5):
        opened += len(server.receive(_opened(client)))
    assert opened == spdy.STREAMS_MAX and server.data_to_send()


def _opened(connection: spdy.Connection) -> bytes:
    connection.open({})
    return connection.data_to_send()


def test_header_bombs_are_refused():
    client, server = spdy.Connection(client=True), spdy.Connection(client=False)
    client.open({"x": "a" * (spdy.HEADER_BLOCK_BYTES_MAX * 2)})
    with pytest.raises(spdy.SpdyError, match="too long"):
        server.receive(client.data_to_send())


# --- WebSocket ---


class Pipe:
    """Two byte streams joined: what one writes the other reads, in pieces of `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = b""
        self.other: Pipe | None = None

    async def read(self) -> bytes:
        data, self.data = self.data[: self.size], self.data[self.size :]
        return data

    def write(self, data: bytes) -> None:
        assert self.other
        self.other.data += data

    async def drain(self) -> None: ...
    def close(self) -> None: ...


@given(st.lists(st.binary(max_size=70_000), max_size=4), st.integers(1, 4096).map(lambda n: n * 17))
async def test_messages_arrive(messages, size):
    a, b = Pipe(size), Pipe(size)
    a.other, b.other = b, a
    client, server = websocket.WebSocket(a, client=True), websocket.WebSocket(b)
    for message in messages:
        await client.send(message)
    await client.close()
    assert [m async for m in _all(server)] == messages


async def _all(socket):
    while (message := await socket.receive()) is not None:
        yield message


def test_handshake():
    headers = {
        "upgrade": "websocket",
        "connection": "keep-alive, Upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
        "sec-websocket-protocol": "x, SPDY/3.1+portforward.k8s.io",
    }
    assert websocket.is_requested(headers)
    assert ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") in websocket.answer(headers, "x")
    assert websocket.choose(headers, ["SPDY/3.1+portforward.k8s.io"]) == "SPDY/3.1+portforward.k8s.io"
    assert websocket.choose(headers, ["y"]) is None and websocket.choose({}, ["y"]) == ""
    with pytest.raises(websocket.BadHandshake):
        websocket.answer({**headers, "sec-websocket-version": "8"}, "")
