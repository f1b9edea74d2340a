"""The zone: names and records of Services (the DNS-based service discovery specification, section by section)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.dns.zone import AAAA, CNAME, NOERROR, NXDOMAIN, PTR, SRV, TXT, A, Zone, dashed, records_of
from tests.proxy.objects import endpoint, service, slice_

WEB = "web.default.svc.cluster.local"


def zone_with(svc: dict[str, Any], *slices: dict[str, Any]) -> Zone:
    zone = Zone(reverse_cidrs=["10.96.0.0/12", "10.244.0.0/16", "fd00::/108"])
    zone.set(("default", svc["metadata"]["name"]), records_of(svc, slices, zone.domain))
    return zone


def data(zone: Zone, name: str, type_: int) -> list[Any]:
    answer = zone.answer(name, type_)
    assert answer is not None
    return [r.data for r in answer.records]


def rcode(zone: Zone, name: str, type_: int = A) -> int:
    answer = zone.answer(name, type_)
    assert answer is not None
    return answer.rcode


def headless(**more: Any) -> dict[str, Any]:
    return service(ip="None", clusterIPs=["None"], ports=[{"name": "http", "port": 80, "protocol": "TCP"}], **more)


def test_cluster_ip() -> None:
    zone = zone_with(service(ports=[{"name": "http", "port": 80, "protocol": "TCP"}, {"port": 9, "protocol": "UDP"}]))
    assert data(zone, WEB, A) == ["10.96.0.50"]
    assert data(zone, f"_http._tcp.{WEB}", SRV) == [(0, 100, 80, WEB)]
    answer = zone.answer(f"_http._tcp.{WEB}", SRV)
    assert answer and [r.data for r in answer.additional] == ["10.96.0.50"]
    assert data(zone, "50.0.96.10.in-addr.arpa", PTR) == [WEB]
    assert (rcode(zone, WEB, AAAA), data(zone, WEB, AAAA)) == (NOERROR, [])


def test_dual_stack() -> None:
    zone = zone_with(service(clusterIPs=["10.96.0.50", "fd00::50"]))
    assert data(zone, WEB, AAAA) == ["fd00::50"]
    assert data(zone, "0.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", PTR) == [WEB]


def test_headless_has_an_address_for_each_ready_endpoint() -> None:
    parts = slice_([endpoint("10.244.0.2", hostname="web-0"), endpoint("10.244.0.3"), endpoint("10.244.0.4", ready=False)])
    zone = zone_with(headless(), parts)
    assert data(zone, WEB, A) == ["10.244.0.2", "10.244.0.3"]
    assert data(zone, f"web-0.{WEB}", A) == ["10.244.0.2"]
    assert data(zone, f"10-244-0-3.{WEB}", A) == ["10.244.0.3"]
    assert rcode(zone, f"web-1.{WEB}") == NXDOMAIN
    assert data(zone, f"_http._tcp.{WEB}", SRV) == [(0, 100, 8080, f"web-0.{WEB}"), (0, 100, 8080, f"10-244-0-3.{WEB}")]
    assert data(zone, "2.0.244.10.in-addr.arpa", PTR) == [f"web-0.{WEB}"]
    assert data(zone_with(headless(publishNotReadyAddresses=True), parts), WEB, A) == ["10.244.0.2", "10.244.0.3", "10.244.0.4"]


def test_headless_without_ready_endpoints_does_not_exist() -> None:
    assert rcode(zone_with(headless(), slice_([endpoint("10.244.0.4", ready=False)])), WEB) == NXDOMAIN


def test_headless_without_ports_still_has_addresses() -> None:
    svc = headless()
    svc["spec"].pop("ports")
    assert data(zone_with(svc, slice_([endpoint("10.244.0.2")], ports=[])), WEB, A) == ["10.244.0.2"]


def test_external_name() -> None:
    zone = zone_with(service(ip="", type="ExternalName", externalName="Example.COM."))
    answer = zone.answer(WEB, A)
    assert answer and [(r.type, r.data) for r in answer.records] == [(CNAME, "example.com")] and answer.chase == "example.com"
    zone.set(("default", "db"), records_of(service("db", "10.96.0.60"), [], zone.domain))
    zone.set(("default", "web"), records_of(service(ip="", type="ExternalName", externalName="db.default.svc.cluster.local"), [], zone.domain))
    assert data(zone, WEB, A) == ["db.default.svc.cluster.local", "10.96.0.60"]
    zone.set(("default", "web"), records_of(service(ip="", type="ExternalName", externalName=WEB), [], zone.domain))
    assert set(data(zone, WEB, A)) == {WEB}  # an alias of itself ends
    zone.set(("default", "web"), records_of(service(ip="", type="ExternalName", externalName=f"no.{WEB}"), [], zone.domain))
    assert rcode(zone, WEB) == NXDOMAIN


@pytest.mark.parametrize(
    ("name", "address"),
    [("10-1-2-3", "10.1.2.3"), ("fd00--1", "fd00::1"), ("2001-db8-0-0-0-0-0-1", "2001:db8::1")],
)
def test_pod_names(name: str, address: str) -> None:
    zone = Zone()
    assert data(zone, f"{name}.default.pod.cluster.local", AAAA if ":" in address else A) == [address]
    assert rcode(zone, f"{name}.default.pod.cluster.local", TXT) == NOERROR


@pytest.mark.parametrize("name", ["x.default.pod", "10-1-2.default.pod", "10-1-2-999.default.pod", "default.pod", "a.10-1-2-3.default.pod", "nope"])
def test_names_that_are_none(name: str) -> None:
    assert rcode(Zone(), f"{name}.cluster.local") == NXDOMAIN


def test_names_between_exist_without_records() -> None:
    zone = zone_with(service())
    for name in ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", f"_tcp.{WEB}"):
        answer = zone.answer(name, A)
        assert answer and (answer.rcode, answer.records) == (NOERROR, ()), name
    assert rcode(zone, "other.svc.cluster.local") == NXDOMAIN


def test_schema_version_and_apex() -> None:
    zone = Zone()
    assert data(zone, "dns-version.cluster.local", TXT) == ["1.1.0"]
    assert data(zone, "cluster.local", 2) == ["ns.dns.cluster.local"]


def test_what_is_ours_to_answer() -> None:
    zone = zone_with(service())
    assert zone.answer("example.com", A) is None
    assert zone.answer("notcluster.local", A) is None
    assert zone.answer("8.8.8.8.in-addr.arpa", PTR) is None
    assert rcode(zone, "9.9.96.10.in-addr.arpa", PTR) == NXDOMAIN  # the cluster's own ranges are never asked upstream
    assert zone.answer("x.96.10.in-addr.arpa", PTR) is None


def test_a_reverse_name_may_have_two_owners() -> None:
    part = slice_([endpoint("10.244.0.2", hostname="h")])
    zone = zone_with(headless(), part)
    zone.set(("default", "two"), records_of(service("two", "None", clusterIPs=["None"]), [part], zone.domain))
    name = "2.0.244.10.in-addr.arpa"
    assert data(zone, name, PTR) == ["h.two.default.svc.cluster.local", f"h.{WEB}"]
    zone.set(("default", "web"), {})
    assert data(zone, name, PTR) == ["h.two.default.svc.cluster.local"]


def test_dashed_is_a_label() -> None:
    assert dashed("::1") == "1" and dashed("fd00::") == "fd00" and dashed("::") == "0"


names = st.sampled_from([WEB, f"a.{WEB}", f"b.a.{WEB}", "x.y.svc.cluster.local", "1.0.96.10.in-addr.arpa"])
histories = st.lists(
    st.tuples(
        st.sampled_from([("default", "web"), ("default", "b"), ("ns", "c")]),
        st.dictionaries(names, st.dictionaries(st.sampled_from([A, PTR]), st.just(("10.0.0.1",))), max_size=3),
    ),
    max_size=12,
)


@given(histories)
def test_setting_and_unsetting_leaves_no_trace(history: list[Any]) -> None:
    zone, fresh = Zone(), Zone()
    last = {}
    for key, found in history:
        zone.set(key, found)
        last[key] = found
    for key, found in last.items():
        fresh.set(key, found)
    assert zone.below == fresh.below and zone.names == fresh.names
    for key in last:
        zone.set(key, {})
    empty = Zone()
    assert zone.names == empty.names and zone.below == empty.below
    version = zone.version
    zone.set(("default", "web"), {})
    assert zone.version == version  # nothing changed, nothing is forgotten by caches
