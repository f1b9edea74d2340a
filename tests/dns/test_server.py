"""The server on real sockets, with an upstream of its own on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import dnslib
import pytest

from fastkube.dns import forward
from fastkube.dns.forward import Forwarder, Upstream, upstreams_of
from fastkube.dns.server import Responder, Server
from fastkube.dns.zone import NXDOMAIN, Zone, records_of
from tests.proxy.objects import endpoint, service, slice_

WEB = "web.default.svc.cluster.local"


class Internet(asyncio.DatagramProtocol):
    """An upstream resolver: knows example.com, is silent about silent.test, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.transport: Any = None
        self.tcp: Any = None

    async def start(self) -> Upstream:
        self.tcp = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.tcp.sockets[0].getsockname()[1]
        self.transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", port))
        return Upstream("127.0.0.1", port)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        message = self.answer(data, True)
        if message:
            self.transport.sendto(b"\xff\xff" + message[2:], addr)  # a forger who does not know the id
            self.transport.sendto(message, addr)

    def answer(self, data: bytes, udp: bool) -> bytes:
        query = dnslib.DNSRecord.parse(data)
        name = str(query.q.qname).lower()
        self.asked.append(name)
        reply = query.reply()
        if name == "silent.test.":
            return b""
        if name == "big.test.":
            if udp:
                reply.header.tc = 1
            else:
                reply.add_answer(*(dnslib.RR(name, dnslib.QTYPE.TXT, rdata=dnslib.TXT("x" * 200), ttl=60) for _ in range(20)))
        elif name == "example.com.":
            reply.add_answer(dnslib.RR(name, rdata=dnslib.A("192.0.2.80"), ttl=60))
        else:
            reply.header.rcode = NXDOMAIN
        if query.ar:
            reply.add_ar(dnslib.EDNS0(udp_len=1232))
        return reply.pack()

    async def _serve(self, reader: Any, writer: Any) -> None:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        message = self.answer(data, False)
        writer.write(len(message).to_bytes(2, "big") + message)
        writer.close()

    def close(self) -> None:
        self.transport.close()
        self.tcp.close()


class Dns:
    def __init__(self, zone: Zone, forwarder: Forwarder, internet: Internet) -> None:
        self.zone, self.forwarder, self.internet = zone, forwarder, internet
        self.server = Server(Responder(zone, forwarder))
        self.port = 0

    async def ask(self, name: str, type_: str = "A", tcp: bool = False, edns: int = 0, **more: Any) -> dnslib.DNSRecord:
        query = dnslib.DNSRecord.question(name, type_)
        for key, value in more.items():
            setattr(query.header, key, value)
        if edns:
            query.add_ar(dnslib.EDNS0(udp_len=edns))
        data = await asyncio.to_thread(query.send, "127.0.0.1", self.port, tcp, 5)
        reply = dnslib.DNSRecord.parse(data)
        assert reply.header.id == query.header.id and str(reply.q.qname) == str(query.q.qname)
        return reply


@pytest.fixture
async def dns() -> AsyncIterator[Dns]:
    internet = Internet()
    zone = Zone()
    zone.set(("default", "web"), records_of(service(), [], zone.domain))
    many = [endpoint(f"10.244.0.{i}") for i in range(1, 101)]
    zone.set(("default", "many"), records_of(service("many", "None"), [slice_(many, "many")], zone.domain))
    zone.set(("default", "away"), records_of(service("away", "", type="ExternalName", externalName="example.com"), [], zone.domain))
    dns = Dns(zone, Forwarder([await internet.start()]), internet)
    dns.port = await dns.server.listen("127.0.0.1", 0)
    yield dns
    await dns.server.close()
    internet.close()


def addresses(reply: dnslib.DNSRecord) -> list[str]:
    return [str(rr.rdata) for rr in reply.rr if rr.rtype == 1]


@pytest.mark.parametrize("tcp", [False, True])
async def test_zone_answers(dns: Dns, tcp: bool) -> None:
    for name in (WEB, WEB.upper(), WEB + "."):
        assert addresses(await dns.ask(name, tcp=tcp)) == ["10.96.0.50"]
    assert (await dns.ask(f"nope.{WEB}", tcp=tcp)).header.rcode == NXDOMAIN
    assert not dns.internet.asked


async def test_answers_change_with_the_zone(dns: Dns) -> None:
    assert addresses(await dns.ask(WEB)) == ["10.96.0.50"]
    dns.zone.set(("default", "web"), records_of(service(ip="10.96.0.51"), [], dns.zone.domain))
    assert addresses(await dns.ask(WEB)) == ["10.96.0.51"]


async def test_large_answers_are_cut_over_udp_and_whole_over_tcp(dns: Dns) -> None:
    name = "many.default.svc.cluster.local"
    for edns in (0, 1232, 65535):
        reply = await dns.ask(name, edns=edns)
        assert reply.header.tc == 1 and not reply.rr
    assert len(addresses(await dns.ask(name, tcp=True))) == 100


async def test_addresses_take_turns(dns: Dns) -> None:
    first = {addresses(await dns.ask("many.default.svc.cluster.local", tcp=True))[0] for _ in range(16)}
    assert len(first) == 16


async def test_forwarding_caching_and_edns(dns: Dns) -> None:
    for edns in (0, 1232, 0):
        reply = await dns.ask("Example.com", edns=edns)
        assert addresses(reply) == ["192.0.2.80"] and bool(reply.ar) == bool(edns)
    assert dns.internet.asked == ["example.com."]
    assert (await dns.ask("nowhere.test")).header.rcode == NXDOMAIN


async def test_equal_questions_under_way_are_asked_once(dns: Dns) -> None:
    replies = await asyncio.gather(*(dns.ask("example.com") for _ in range(8)))
    assert {tuple(addresses(r)) for r in replies} == {("192.0.2.80",)} and len(dns.internet.asked) == 1


async def test_answers_that_do_not_fit_come_over_tcp(dns: Dns) -> None:
    assert len((await dns.ask("big.test", "TXT", tcp=True)).rr) == 20
    assert (await dns.ask("big.test", "TXT")).header.tc == 1


async def test_an_alias_brings_what_it_leads_to(dns: Dns) -> None:
    for edns in (0, 1232):
        reply = await dns.ask("away.default.svc.cluster.local", edns=edns)
        assert [rr.rtype for rr in reply.rr] == [5, 1] and addresses(reply) == ["192.0.2.80"]
        assert bool(reply.ar) == bool(edns)


async def test_silent_upstreams_end_in_servfail(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "TRY_SECONDS_MAX", 0.1)
    assert (await dns.ask("silent.test")).header.rcode == 2
    dns.forwarder.upstreams = []
    assert (await dns.ask("other.test")).header.rcode == 2


async def test_the_next_upstream_is_asked(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "TRY_SECONDS_MAX", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        dns.forwarder.upstreams.insert(0, Upstream("127.0.0.1", mute.getsockname()[1]))
        assert addresses(await dns.ask("example.com")) == ["192.0.2.80"]


async def test_a_circle_is_found_and_cut(dns: Dns) -> None:
    dns.forwarder.upstreams = [Upstream("127.0.0.1", dns.port)]
    await dns.forwarder.probe()
    assert dns.forwarder.upstreams == []
    assert addresses(await dns.ask(WEB)) == ["10.96.0.50"]


async def test_refusals(dns: Dns) -> None:
    assert (await dns.ask(WEB, "AXFR", tcp=True)).header.rcode == 5
    assert (await dns.ask(WEB, opcode=2)).header.rcode == 4
    query = dnslib.DNSRecord.question(WEB)
    query.add_ar(dnslib.EDNS0(version=1))
    reply = dnslib.DNSRecord.parse(await asyncio.to_thread(query.send, "127.0.0.1", dns.port, False, 5))
    assert reply.ar[0].ttl >> 24 == 1


async def test_noise_is_survived(dns: Dns) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for noise in (b"", b"x", b"\0" * 12, b"\xff" * 600, b"\0\1\0\0\0\1\0\0\0\0\0\0\xc0\x0c"):
            client.sendto(noise, ("127.0.0.1", dns.port))
    reader, writer = await asyncio.open_connection("127.0.0.1", dns.port)
    writer.write(b"\0\3abc\0\1x")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert addresses(await dns.ask(WEB)) == ["10.96.0.50"]


async def test_two_questions_on_one_connection(dns: Dns) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", dns.port)
    for name, address in ((WEB, "10.96.0.50"), ("example.com", "192.0.2.80")):
        data = dnslib.DNSRecord.question(name).pack()
        writer.write(len(data).to_bytes(2, "big") + data)
        reply = dnslib.DNSRecord.parse(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        assert addresses(reply) == [address]
    writer.close()


def test_own_addresses_are_no_upstreams(tmp_path: Any) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search x\nnameserver 10.96.0.10\nnameserver 192.0.2.53\n# nameserver 1.1.1.1\noptions ndots:5\nnameserver 2001:db8::53\n")
    assert upstreams_of(conf, {"10.96.0.10"}) == [Upstream("192.0.2.53"), Upstream("2001:db8::53")]
    assert upstreams_of(tmp_path / "none", set()) == []


async def test_the_cache_is_bounded_and_forgets(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CACHE_ENTRIES_MAX", 2)
    for _ in range(2):
        await dns.ask("example.com")
    dns.forwarder.cache[("a.test", 1, False)] = dns.forwarder.cache[("example.com", 1, False)]
    dns.forwarder.cache[("b.test", 1, False)] = dns.forwarder.cache[("example.com", 1, False)]
    dns.forwarder.cache.pop(("example.com", 1, False))
    await dns.ask("example.com")
    assert len(dns.forwarder.cache) == 2
    entry = dns.forwarder.cache[("example.com", 1, False)]
    dns.forwarder.cache[("example.com", 1, False)] = entry._replace(expires_at=entry.stored_at)
    await dns.ask("example.com")
    assert dns.internet.asked.count("example.com.") == 3
