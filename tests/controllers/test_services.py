"""Endpoints and EndpointSlices on the real API server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controllers.world import World, deployment, world

SERVICES, SLICES, ENDPOINTS, PODS = "v1/services", "discovery.k8s.io/v1/endpointslices", "v1/endpoints", "v1/pods"


@pytest.fixture
async def w():
    async with world() as running:
        await running.start("serviceaccount-controller", "deployment-controller", "replicaset-controller", "endpoints-controller", "endpointslice-controller")
        yield running


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": {"s": "x"}},
        "spec": {"selector": {"app": "web"}, "ports": ports, **spec},
    }


async def slices(w: World, name: str = "web") -> list[dict[str, Any]]:
    return await w.items(SLICES, labels=f"kubernetes.io/service-name={name}")


async def ready_count(w: World, name: str = "web") -> int:
    return sum(e["conditions"]["ready"] for s in await slices(w, name) for e in s.get("endpoints") or ())


async def has_ready(w: World, count: int, name: str = "web") -> None:
    async def yes() -> bool:
        return await ready_count(w, name) == count

    await w.until(yes)


async def test_ready_pods_stand_behind_their_service(w: World) -> None:
    await w.run_pods()
    await w.client.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node0", "labels": {"topology.kubernetes.io/zone": "a"}}})
    await w.client.create(SERVICES, service())
    await w.client.create("apps/v1/deployments", deployment(replicas=3))
    await has_ready(w, 3)
    (one,) = await slices(w)
    assert one["metadata"]["labels"] == {
        "s": "x",
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    assert one["metadata"]["name"].startswith("web-") and one["metadata"]["ownerReferences"][0]["kind"] == "Service"
    assert one["addressType"] == "IPv4" and one["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    pods = {p["metadata"]["name"]: p for p in await w.items(PODS)}
    for e in one["endpoints"]:
        pod = pods[e["targetRef"]["name"]]
        assert e["addresses"] == [pod["status"]["podIP"]] and e["targetRef"]["uid"] == pod["metadata"]["uid"]
        assert (e["nodeName"], e["zone"], e["conditions"]) == ("node0", "a", {"ready": True, "serving": True, "terminating": False})

    async def all_listed() -> Any:
        found = await w.exists(ENDPOINTS, "web", "default")
        return found if found and found.get("subsets") and len(found["subsets"][0].get("addresses") or ()) == 3 else None

    endpoints = await w.until(all_listed)
    assert [a["ip"] for a in endpoints["subsets"][0]["addresses"]] == sorted(p["status"]["podIP"] for p in pods.values())
    assert endpoints["subsets"][0]["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    assert not await w.rest()


async def test_unready_and_terminating_pods(w: World) -> None:
    kubelet = await w.run_pods()
    await w.client.create(SERVICES, service())
    await w.client.create("apps/v1/deployments", deployment(replicas=3))
    await has_ready(w, 3)
    pod = (await w.items(PODS))[0]
    before = w.writes["PUT endpointslices"]
    await kubelet.report(pod, False)
    await has_ready(w, 2)
    assert w.writes["PUT endpointslices"] == before + 1, "one pod's change is one slice write"
    shown = next(e for s in await slices(w) for e in s["endpoints"] if e["targetRef"]["name"] == pod["metadata"]["name"])
    assert shown["conditions"] == {"ready": False, "serving": False, "terminating": False}

    async def not_ready_listed() -> bool:
        subsets = (await w.client.get(ENDPOINTS, "web", "default"))["subsets"]
        return [a["targetRef"]["name"] for s in subsets for a in s.get("notReadyAddresses") or ()] == [pod["metadata"]["name"]]

    await w.until(not_ready_listed)
    await kubelet.report(pod, True)
    await has_ready(w, 3)


async def test_terminating_pods_serve_on(w: World) -> None:
    await w.client.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node0"}})
    kubelet = await w.run_pods()
    await w.client.create(SERVICES, service())
    await w.client.create("apps/v1/deployments", deployment(replicas=1))
    await has_ready(w, 1)
    (pod,) = await w.items(PODS)

    async def leave_it(pod: Any) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            await type(kubelet).handle(kubelet, pod)

    kubelet.handle = leave_it  # type: ignore[method-assign]
    await w.client.delete(PODS, pod["metadata"]["name"], "default")

    async def terminating() -> bool:
        return any(e["conditions"] == {"ready": False, "serving": True, "terminating": True} for s in await slices(w) for e in s["endpoints"] or ())

    await w.until(terminating)
    await w.client.delete(PODS, pod["metadata"]["name"], "default", grace_seconds=0)

    async def gone() -> bool:
        return all(e["targetRef"]["name"] != pod["metadata"]["name"] for s in await slices(w) for e in s["endpoints"] or ())

    await w.until(gone)


async def test_a_service_without_pods_has_an_empty_slice_and_one_without_selector_none(w: World) -> None:
    await w.client.create(SERVICES, service())
    await w.client.create(SERVICES, service("bare", selector=None))

    async def one() -> Any:
        return await slices(w)

    (empty,) = await w.until(one)
    assert not empty.get("endpoints") and not empty.get("ports")
    assert await slices(w, "bare") == []
    assert not await w.rest()


async def test_headless_and_unready_published(w: World) -> None:
    await w.run_pods(ready=lambda pod: False)
    await w.client.create(SERVICES, service(clusterIP="None", publishNotReadyAddresses=True, ports=None))
    await w.client.create("apps/v1/deployments", deployment(replicas=2))
    await has_ready(w, 2)
    (one,) = await slices(w)
    assert one["metadata"]["labels"]["service.kubernetes.io/headless"] == "" and not one.get("ports")
    assert not await w.rest()


async def test_many_endpoints_fill_slices_of_a_hundred(w: World) -> None:
    await w.run_pods()
    await w.client.create(SERVICES, service())
    await w.client.create("apps/v1/deployments", deployment(replicas=250))
    await has_ready(w, 250)
    sizes = sorted(len(s["endpoints"]) for s in await slices(w))
    assert sum(sizes) == 250 and max(sizes) <= 100 and len(sizes) <= 5
    await w.client.patch("apps/v1/deployments", "web", {"spec": {"replicas": 0}}, "default")
    await has_ready(w, 0)

    async def one_left() -> bool:
        return len(await slices(w)) == 1 and not await w.items(PODS)

    await w.until(one_left)
    await w.rest()
    assert not await w.rest()


async def test_a_slice_that_somebody_broke_is_mended_and_a_deleted_service_leaves_nothing(w: World) -> None:
    await w.run_pods()
    await w.client.create(SERVICES, service())
    await w.client.create("apps/v1/deployments", deployment(replicas=2))
    await has_ready(w, 2)
    (one,) = await slices(w)
    await w.client.update(SLICES, {**one, "endpoints": one["endpoints"][:1]})
    await has_ready(w, 2)
    for found in await slices(w):
        await w.client.delete(SLICES, found["metadata"]["name"], "default")
    await has_ready(w, 2)
    await w.client.delete(SERVICES, "web", "default")

    async def gone() -> bool:
        return not await slices(w) and not await w.exists(ENDPOINTS, "web", "default")

    await w.until(gone)


async def test_changes_of_the_service(w: World) -> None:
    await w.run_pods()
    await w.client.create(SERVICES, service())
    await w.client.create("apps/v1/deployments", deployment(replicas=2))
    await has_ready(w, 2)
    await w.client.patch(SERVICES, "web", {"metadata": {"labels": {"s": "y"}}}, "default")

    async def relabelled() -> bool:
        return all(s["metadata"]["labels"].get("s") == "y" for s in await slices(w))

    await w.until(relabelled)
    await w.client.patch(SERVICES, "web", {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 9090}]}}, "default")

    async def moved() -> bool:
        return [s["ports"][0]["port"] for s in await slices(w)] == [9090]

    await w.until(moved)
    await w.client.patch(SERVICES, "web", {"spec": {"selector": {"app": "none"}}}, "default")
    await has_ready(w, 0)


async def test_endpoints_written_by_hand_are_mirrored() -> None:
    async with world() as w:
        await w.start("endpointslice-mirroring-controller", "garbage-collector-controller")
        await w.client.create(SERVICES, service(selector=None))
        subset = {"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "notReadyAddresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "http", "port": 80}]}
        manual = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web", "namespace": "default", "labels": {"by": "hand"}}, "subsets": [subset]}
        await w.client.create(ENDPOINTS, manual)
        await has_ready(w, 2)
        (one,) = await slices(w)
        assert one["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "endpointslicemirroring-controller.k8s.io"
        assert one["metadata"]["labels"]["by"] == "hand" and one["metadata"]["ownerReferences"][0]["kind"] == "Endpoints"
        assert sorted(e["addresses"][0] for e in one["endpoints"]) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
        assert not await w.rest()
        await w.client.patch(ENDPOINTS, "web", {"subsets": [{**subset, "addresses": [{"ip": "192.0.2.1"}]}]}, "default")
        await has_ready(w, 1)
        await w.client.patch(SERVICES, "web", {"spec": {"selector": {"app": "web"}}}, "default")  # now they are the endpointslice controller's

        async def none() -> bool:
            return not await slices(w)

        await w.until(none)
        assert not await w.rest()
