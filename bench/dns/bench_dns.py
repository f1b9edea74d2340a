"""The DNS server's hot paths, without sockets: questions to answers with 10,000 services."""

from __future__ import annotations

from typing import Any

import dnslib
import pytest

from fastkube.dns import packet
from fastkube.dns.forward import Forwarder
from fastkube.dns.server import Responder
from fastkube.dns.zone import Zone, records_of
from tests.proxy.objects import endpoint, service, slice_

NAME = "s5.default.svc.cluster.local"


@pytest.fixture(scope="module")
def zone() -> Zone:
    zone = Zone()
    for i in range(10_000):
        zone.set(("default", f"s{i}"), records_of(service(f"s{i}", f"10.96.{i >> 8}.{i & 255}"), [], zone.domain))
    return zone


def test_answer(benchmark: Any, zone: Zone) -> None:
    """One question, answered before: what most cost."""
    responder, query = Responder(zone, Forwarder([])), dnslib.DNSRecord.question(NAME).pack()
    sent: list[bytes] = []
    benchmark(lambda: responder.handle(query, sent.append, True))
    assert dnslib.DNSRecord.parse(sent[0]).rr


def test_first_answer(benchmark: Any, zone: Zone) -> None:
    question = packet.parse(dnslib.DNSRecord.question(NAME).pack())

    def answer() -> None:
        found = zone.answer(question.name, question.type)
        assert found
        packet.encode(question, found, zone.domain)

    benchmark(answer)


def test_change_of_a_service(benchmark: Any, zone: Zone) -> None:
    turn = iter(range(10**9))

    def change() -> None:
        zone.set(("default", "s5"), records_of(service("s5", f"10.97.0.{next(turn) & 255}"), [], zone.domain))

    benchmark(change)


def test_headless_of_1000(benchmark: Any) -> None:
    svc, part = service("big", "None"), slice_([endpoint(f"10.244.{i >> 8}.{i & 255}") for i in range(1000)], "big")
    benchmark(lambda: records_of(svc, [part], "cluster.local"))
