"""The model: which frontends a Service has and where each leads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.proxy.model import Backend, Frontend, Model, Rules, Target, rules_of
from tests.proxy.objects import endpoint, service, slice_

VIP = Frontend("10.96.0.50", "tcp", 80)
NODE_PORT = Frontend("0.0.0.0", "tcp", 30080)
A, B, C = Backend("10.244.0.2", 8080, True), Backend("10.244.0.3", 8080, True), Backend("10.244.1.2", 8080, False)


def rules(svc: dict[str, Any], *slices: dict[str, Any], node: str = "n1", zone: str = "") -> Rules:
    return rules_of(svc, slices, node, zone)


def three(**more: Any) -> dict[str, Any]:
    return slice_([endpoint("10.244.0.2"), endpoint("10.244.0.3"), endpoint("10.244.1.2", "n2")], **more)


def test_cluster_ip_leads_to_ready_endpoints_of_all_slices() -> None:
    parts = slice_([endpoint("10.244.0.3")], suffix="2"), slice_([endpoint("10.244.0.2"), endpoint("10.244.1.2", "n2"), endpoint("10.244.0.9", ready=False)])
    assert rules(service(), *parts) == {VIP: Target((A, B, C))}


def test_an_address_in_two_slices_counts_once() -> None:
    assert rules(service(), three(), three(suffix="2")) == {VIP: Target((A, B, C))}


def test_conditions_that_are_not_there_mean_ready() -> None:
    assert rules(service(), slice_([{"addresses": ["10.244.0.2"], "nodeName": "n1"}])) == {VIP: Target((A,))}


def test_terminating_endpoints_serve_when_nothing_else_does() -> None:
    ending = endpoint("10.244.0.2", ready=False, serving=True, terminating=True)
    dead = endpoint("10.244.0.3", ready=False, serving=False, terminating=True)
    assert rules(service(), slice_([ending, dead]))[VIP] == Target((A,))
    assert rules(service(), slice_([ending, dead, endpoint("10.244.1.2", "n2")]))[VIP] == Target((C,))


@pytest.mark.parametrize(
    "svc",
    [
        service(ip="None"),
        service(ip=""),
        service(type="ExternalName"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
    ],
)
def test_services_without_frontends(svc: dict[str, Any]) -> None:
    assert rules(svc, three()) == {}


def test_headless_slices_are_not_looked_at() -> None:
    model = Model("n1")
    model.set_service(service())
    part = three()
    part["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
    model.set_slice(part)
    assert model.changes() == {("default", "web"): {VIP: Target(())}}


def test_internal_policy_local() -> None:
    svc = service(internalTrafficPolicy="Local")
    assert rules(svc, three())[VIP] == Target((A, B))
    assert rules(svc, three(), node="n3")[VIP] == Target((), drop=True)
    assert rules(svc)[VIP] == Target((), drop=False)


def test_external_policy_local_keeps_outside_apart() -> None:
    svc = service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}], externalTrafficPolicy="Local")
    found = rules(svc, three())
    assert found[NODE_PORT] == Target((A, B, C), outside=(A, B), external=True)
    assert found[VIP] == Target((A, B, C))
    elsewhere = rules(svc, three(), node="n3")[NODE_PORT]
    assert elsewhere.outside == () and len(elsewhere.backends) == 3


def test_external_and_balancer_addresses() -> None:
    svc = service(type="LoadBalancer", externalIPs=["198.51.100.7"], loadBalancerSourceRanges=["192.0.2.0/28"])
    svc["status"] = {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}, {"ip": "198.51.100.10", "ipMode": "Proxy"}, {"hostname": "x"}]}}
    found = rules(svc, three())
    assert set(found) == {VIP, Frontend("198.51.100.7", "tcp", 80), Frontend("198.51.100.9", "tcp", 80)}
    assert found[Frontend("198.51.100.9", "tcp", 80)].sources == ("192.0.2.0/28",)
    assert found[Frontend("198.51.100.7", "tcp", 80)].sources == ()


def test_affinity_has_a_default_timeout() -> None:
    assert rules(service(sessionAffinity="ClientIP"), three())[VIP].affinity == 10800
    svc = service(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 7}})
    assert rules(svc, three())[VIP].affinity == 7


def test_ports_are_matched_by_name_and_protocol() -> None:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    part = slice_([endpoint("10.244.0.2")], ports=[{"name": "dns", "port": 10053, "protocol": "UDP"}, {"name": "dns-tcp", "port": 10054, "protocol": "TCP"}])
    found = rules(service(ports=ports), part)
    assert found[Frontend("10.96.0.50", "udp", 53)].backends == (Backend("10.244.0.2", 10053, True),)
    assert found[Frontend("10.96.0.50", "tcp", 53)].backends == (Backend("10.244.0.2", 10054, True),)


def test_unnamed_ports_match() -> None:
    part = slice_([endpoint("10.244.0.2")], ports=[{"name": "", "port": 8080, "protocol": "TCP"}])
    assert rules(service(ports=[{"port": 80}]), part)[VIP].backends == (A,)


def test_zone_hints_hold_when_all_have_them_and_one_is_ours() -> None:
    def hinted(ip: str, *zones: str) -> dict[str, Any]:
        return endpoint(ip, hints={"forZones": [{"name": z} for z in zones]} if zones else None)

    both = slice_([hinted("10.244.0.2", "a"), hinted("10.244.0.3", "b")])
    assert rules(service(), both, zone="a")[VIP].backends == (A,)
    assert rules(service(), both, zone="c")[VIP].backends == (A, B)
    assert rules(service(), both, zone="")[VIP].backends == (A, B)
    partly = slice_([hinted("10.244.0.2", "a"), hinted("10.244.0.3")])
    assert rules(service(), partly, zone="a")[VIP].backends == (A, B)


def test_node_hints_go_before_zone_hints() -> None:
    def hinted(ip: str, node: str) -> dict[str, Any]:
        return endpoint(ip, hints={"forNodes": [{"name": node}], "forZones": [{"name": "a"}]})

    part = slice_([hinted("10.244.0.2", "n1"), hinted("10.244.0.3", "n2")])
    assert rules(service(), part, zone="a")[VIP].backends == (A,)
    assert [b.ip for b in rules(service(), part, node="n9", zone="a")[VIP].backends] == [A.ip, B.ip]


def test_dual_stack() -> None:
    svc = service(clusterIPs=["10.96.0.50", "fd00::50"], type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}])
    six = slice_([endpoint("fd01::2")], suffix="6", addressType="IPv6")
    found = rules(svc, three(), six)
    assert found[Frontend("fd00::50", "tcp", 80)].backends == (Backend("fd01::2", 8080, True),)
    assert found[Frontend("::", "tcp", 30080)].backends == (Backend("fd01::2", 8080, True),)
    assert found[VIP].backends == (A, B, C)


def test_health_check_port_counts_local_ready_endpoints() -> None:
    model = Model("n1")
    model.set_service(service(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=31000))
    model.set_slice(three())
    [health] = model.health().values()
    assert (health.port, health.local_endpoints) == (31000, 2)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("service"), st.sampled_from("abc"), st.integers(0, 3)),
        st.tuples(st.just("no service"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("slice"), st.sampled_from("abc"), st.integers(0, 3)),
        st.tuples(st.just("no slice"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("zone"), st.just(""), st.integers(0, 2)),
    ),
    max_size=30,
)


@given(STEPS, st.integers(1, 5))
def test_changes_since_the_last_call_amount_to_the_whole(steps: list[tuple[str, str, int]], every: int) -> None:
    """Asked now and then, the model tells of every service whose rules differ: taken together, the same as all rules worked out anew."""
    model, told = Model("n1"), {}
    for i, (what, name, n) in enumerate(steps):
        if what == "service":
            model.set_service(service(name, f"10.96.0.{n + 1}", sessionAffinity="ClientIP" if n % 2 else "None"))
        elif what == "no service":
            model.delete_service(service(name))
        elif what == "slice":
            model.set_slice(slice_([endpoint(f"10.244.0.{k}", hints={"forZones": [{"name": str(k % 2)}]}) for k in range(1, n + 1)], name))
        elif what == "no slice":
            model.delete_slice(slice_([], name))
        else:
            model.set_zone(str(n))
        if i % every == 0:
            told.update(model.changes())
    told.update(model.changes())
    whole = {key: model.rules(key) for key in model.services}
    assert {key: found for key, found in told.items() if found} == {key: found for key, found in whole.items() if found}
