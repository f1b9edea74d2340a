"""Addresses and ports: never twice, never lost. The allocator against a model, then the real pipeline under a crowd."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.api import resources
from fastkube.api.errors import ApiError
from fastkube.server.allocators import Full, Pool, Services, address_pool, held_ports
from tests.access.conftest import Cluster
from tests.access.memory import MemoryReader

SERVICES = resources.parse("v1/services")
PATH = "/api/v1/namespaces/default/services"


def test_bands_are_upstreams() -> None:
    pool = address_pool(ipaddress.ip_network("10.96.0.0/12"))
    assert (str(ipaddress.ip_address(pool.first)), str(ipaddress.ip_address(pool.last))) == ("10.96.0.1", "10.111.255.254")
    lowest = ipaddress.ip_address("10.96.0.0")
    assert all(pool.next() - int(lowest) > 256 for _ in range(300))
    small = Pool(1, 20, 4)
    taken = [small.next() for _ in range(20)]
    assert sorted(taken) == list(range(1, 21)) and set(taken[:16]) == set(range(5, 21))
    with pytest.raises(Full):
        small.next()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from("abcd"), st.sampled_from(("ClusterIP", "NodePort", "LoadBalancer")), st.sampled_from((None, "10.0.0.1", "10.0.0.2")), st.sampled_from((None, 30001, 30002))),
        st.tuples(st.just("update"), st.sampled_from("abcd"), st.sampled_from(("ClusterIP", "NodePort", "ExternalName")), st.none(), st.sampled_from((None, 30001))),
        st.tuples(st.just("commit"), st.integers(0, 3), st.none(), st.none(), st.none()),
        st.tuples(st.just("fail"), st.integers(0, 3), st.none(), st.none(), st.none()),
        st.tuples(st.just("delete"), st.sampled_from("abcd"), st.none(), st.none(), st.none()),
    ),
    max_size=40,
)  # fmt: skip


def addresses(service: dict[str, Any]) -> set[str]:
    return set(service["spec"].get("clusterIPs") or ())


@settings(max_examples=200, deadline=None)
@given(steps)
def test_nothing_is_held_twice_and_nothing_is_lost(changes: list[Any]) -> None:
    reader = MemoryReader()
    services = Services(reader, ["10.0.0.0/29"], (30000, 30005))  # type: ignore[arg-type]
    flying: dict[str, tuple[dict[str, Any], list[Any]]] = {}
    for what, which, kind, ip, port in changes:
        stored = reader.get(SERVICES, "d", which) if isinstance(which, str) else None
        if what == "create" and which not in flying and stored is None:
            spec: dict[str, Any] = {"type": kind, "ports": [{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]}
            if ip:
                spec["clusterIP"] = ip
            if port and kind != "ClusterIP":
                spec["ports"][1]["nodePort"] = port
            attempt({"metadata": {"namespace": "d", "name": which}, "spec": spec}, None, which, services, flying)
        elif what == "update" and which not in flying and stored is not None:
            new = {
                "metadata": dict(stored["metadata"]),
                "spec": {"type": kind, "ports": [{"port": 80, "protocol": "TCP", **({"nodePort": port} if port and kind == "NodePort" else {})}]},
            }
            attempt(new, stored, which, services, flying)
        elif what in ("commit", "fail") and flying:
            name = sorted(flying)[which % len(flying)]
            service, rollbacks = flying.pop(name)
            if what == "commit":
                reader.put(SERVICES, service)
            else:
                for rollback in rollbacks:
                    rollback()
        elif what == "delete" and which not in flying:
            reader.delete(SERVICES, "d", which)
        holders: dict[str, list[Any]] = {}
        for service in (*reader.list(SERVICES), *(s for s, _ in flying.values())):
            for held in (*addresses(service), *held_ports(service)):
                holders.setdefault(held, []).append(service["metadata"]["name"])
        assert all(len(set(names)) == 1 for names in holders.values()), holders
        (pool,) = services._pools.values()
        assert {str(ipaddress.ip_address(v)) for v in pool._held} == {h for h in holders if isinstance(h, str)}
        assert services._ports._held == {h for h in holders if isinstance(h, int)}


def attempt(service: dict[str, Any], old: dict[str, Any] | None, name: str, services: Services, flying: dict[str, Any]) -> None:
    rollbacks: list[Any] = []
    try:
        services.create(service, rollbacks) if old is None else services.update(service, old, rollbacks)
    except ApiError as e:
        assert e.code in (422, 500)
        for rollback in rollbacks:
            rollback()
    else:
        flying[name] = (service, rollbacks)


def service(name: str, kind: str = "ClusterIP", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}], **spec}}


async def test_a_crowd_of_services(cluster: Cluster) -> None:
    answers = await asyncio.gather(*(cluster.call("POST", PATH, service(f"s{i}", "NodePort")) for i in range(100)))
    assert all(status == 201 for status, _ in answers)
    ips, ports = [a["spec"]["clusterIP"] for _, a in answers], [a["spec"]["ports"][0]["nodePort"] for _, a in answers]
    assert len(set(ips)) == len(set(ports)) == 100
    assert all(ipaddress.ip_address(ip) in ipaddress.ip_network("10.96.0.0/12") for ip in ips) and all(30086 <= p <= 32767 for p in ports)
    wished = await asyncio.gather(*(cluster.call("POST", PATH, service(f"w{i}", "NodePort", clusterIP="10.96.0.77")) for i in range(5)))
    assert sorted(status for status, _ in wished) == [201, 422, 422, 422, 422]


async def test_refusals_are_upstreams_field_errors(cluster: Cluster) -> None:
    await cluster.make(PATH, service("a", "NodePort", clusterIP="10.96.0.50", ports=[{"port": 80, "nodePort": 30080}]))

    async def refused(**spec: Any) -> str:
        status, answer = await cluster.call("POST", PATH, service("b", "NodePort", **spec))
        assert status == 422 and answer["reason"] == "Invalid"
        return answer["message"]

    prefix = 'Service "b" is invalid: '
    assert (
        await refused(clusterIP="10.96.0.50")
        == prefix + 'spec.clusterIPs[0]: Invalid value: ["10.96.0.50"]: failed to allocate IP 10.96.0.50: provided IP is already allocated'
    )
    assert await refused(ports=[{"port": 80, "nodePort": 30080}]) == prefix + "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
    outside = "provided port is not in the valid range. The range of valid ports is 30000-32767"
    assert await refused(ports=[{"port": 80, "nodePort": 20000}]) == prefix + f"spec.ports[0].nodePort: Invalid value: 20000: {outside}"
    assert "not in the valid range. The range of valid IPs is 10.96.0.0/12" in await refused(clusterIP="192.168.0.1")


async def test_what_failed_or_went_is_free_again(cluster: Cluster) -> None:
    wish = {"clusterIP": "10.96.0.60", "ports": [{"port": 80, "nodePort": 30090}]}
    assert (await cluster.call("POST", PATH + "?dryRun=All", service("dry", "NodePort", **wish)))[0] == 201
    assert (await cluster.call("POST", PATH, service("Bad_Name!", "NodePort", **wish)))[0] == 422
    await cluster.make(PATH, service("a", "NodePort", **wish))
    await cluster.call("DELETE", PATH + "/a")
    made = await cluster.make(PATH, service("b", "NodePort", **wish))
    assert made["spec"]["clusterIPs"] == ["10.96.0.60"]
    status, answer = await cluster.call("PATCH", PATH + "/b", {"spec": {"type": "ClusterIP"}})
    assert status == 200 and answer["spec"]["clusterIP"] == "10.96.0.60" and "nodePort" not in answer["spec"]["ports"][0]
    await cluster.make(PATH, service("c", "NodePort", ports=[{"port": 80, "nodePort": 30090}]))


async def test_kinds_of_services(cluster: Cluster) -> None:
    spec = (await cluster.make(PATH, service("plain")))["spec"]
    assert spec["clusterIPs"] == [spec["clusterIP"]] and spec["ipFamilies"] == ["IPv4"] and spec["ipFamilyPolicy"] == "SingleStack"
    spec = (await cluster.make(PATH, service("headless", clusterIP="None")))["spec"]
    assert spec["clusterIP"] == "None" and spec["clusterIPs"] == ["None"]
    spec = (await cluster.make(PATH, {"metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}))["spec"]
    assert "clusterIP" not in spec and "ipFamilies" not in spec
    spec = (await cluster.make(PATH, service("lb", "LoadBalancer", externalTrafficPolicy="Local")))["spec"]
    assert spec["healthCheckNodePort"] and spec["healthCheckNodePort"] != spec["ports"][0]["nodePort"]
    both = [{"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}]
    spec = (await cluster.make(PATH, service("dns", "NodePort", ports=both)))["spec"]
    assert spec["ports"][0]["nodePort"] == spec["ports"][1]["nodePort"]


async def test_addresses_have_objects(cluster: Cluster) -> None:
    made = await cluster.make(PATH, service("a"))
    address = f"/apis/networking.k8s.io/v1/ipaddresses/{made['spec']['clusterIP']}"
    for _ in range(50):
        status, obj = await cluster.call("GET", address)
        if status == 200:
            break
        await asyncio.sleep(0.02)
    assert obj["spec"]["parentRef"] == {"resource": "services", "namespace": "default", "name": "a"}
    assert obj["metadata"]["labels"] == {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
    await cluster.call("DELETE", PATH + "/a")
    for _ in range(50):
        if (await cluster.call("GET", address))[0] == 404:
            break
        await asyncio.sleep(0.02)
    assert (await cluster.call("GET", address))[0] == 404


async def test_another_range(cluster: Cluster) -> None:
    cidrs = "/apis/networking.k8s.io/v1/servicecidrs"
    await cluster.make(cidrs, {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}})
    assert (await cluster.make(PATH, service("a", clusterIP="10.200.0.9")))["spec"]["clusterIP"] == "10.200.0.9"
    assert (await cluster.call("POST", PATH, service("b", clusterIP="10.200.0.9")))[0] == 422
