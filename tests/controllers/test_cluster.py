"""Namespaces, accounts, nodes and the garbage collector on the real API server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastkube.controllers import housekeeping
from fastkube.controllers.meta import condition
from fastkube.runtime import clock
from fastkube.testing import virtual
from tests.controllers.world import World, deployment, world

NAMESPACES, PODS, NODES, MAPS = "v1/namespaces", "v1/pods", "v1/nodes", "v1/configmaps"


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def config_map(name: str, owner: dict[str, Any] | None = None, namespace: str = "default", **ref: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": namespace}
    if owner:
        kind = owner.get("kind") or "ConfigMap"
        meta["ownerReferences"] = [{"apiVersion": "v1", "kind": kind, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], **ref}]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}


def node(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


async def gone(w: World, resource: str, name: str, ns: str | None = "default") -> None:
    async def absent() -> bool:
        return await w.exists(resource, name, ns) is None

    await w.until(absent)


# --- namespaces and accounts ---


async def test_every_namespace_has_an_account_and_the_root_ca() -> None:
    async with world() as w:
        await w.start("serviceaccount-controller", "root-ca-certificate-publisher-controller")
        await w.client.create(NAMESPACES, namespace("blue"))
        await w.until(lambda: w.exists("v1/serviceaccounts", "default", "blue"))
        found = await w.until(lambda: w.exists(MAPS, "kube-root-ca.crt", "blue"))
        assert found["data"] == {"ca.crt": "CERTIFICATE"} and "kubernetes.io/description" in found["metadata"]["annotations"]
        await w.client.delete("v1/serviceaccounts", "default", "blue")
        await w.until(lambda: w.exists("v1/serviceaccounts", "default", "blue"))
        await w.client.patch(MAPS, "kube-root-ca.crt", {"data": {"ca.crt": "tampered"}}, "blue")

        async def mended() -> bool:
            return (await w.client.get(MAPS, "kube-root-ca.crt", "blue"))["data"] == {"ca.crt": "CERTIFICATE"}

        await w.until(mended)
        assert not await w.rest()


async def test_a_deleted_namespace_is_emptied_and_goes() -> None:
    async with world() as w:
        await w.start(
            "serviceaccount-controller", "root-ca-certificate-publisher-controller", "namespace-controller", "deployment-controller", "replicaset-controller"
        )
        await w.run_pods()
        await w.client.create(NAMESPACES, namespace("blue"))
        await w.until(lambda: w.exists("v1/serviceaccounts", "default", "blue"))
        d = deployment(replicas=5)
        d["metadata"]["namespace"] = "blue"
        await w.client.create("apps/v1/deployments", d)
        for i in range(20):
            await w.client.create(MAPS, config_map(f"m{i}", namespace="blue"))
        await w.client.create("v1/secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "blue"}})

        async def five() -> bool:
            return len(await w.items(PODS, "blue")) == 5

        await w.until(five)
        await w.client.delete(NAMESPACES, "blue")
        await gone(w, NAMESPACES, "blue", None)
        assert await w.items(PODS, "blue") == [] and await w.items(MAPS, "blue") == []
        assert not await w.rest()


async def test_finalizers_hold_a_namespace_and_it_says_so() -> None:
    async with world() as w:
        await w.start("namespace-controller")
        await w.client.create(NAMESPACES, namespace("blue"))
        held = config_map("held", namespace="blue")
        held["metadata"]["finalizers"] = ["example.com/hold"]
        await w.client.create(MAPS, held)
        await w.client.delete(NAMESPACES, "blue")

        async def told() -> Any:
            found = await w.client.get(NAMESPACES, "blue")
            remaining = condition(found, "NamespaceFinalizersRemaining")
            return found if remaining and remaining["status"] == "True" else None

        found = await w.until(told)
        assert found["status"]["phase"] == "Terminating"
        assert condition(found, "NamespaceContentRemaining")["message"] == "Some resources are remaining: configmaps. has 1 resource instances"
        assert (
            condition(found, "NamespaceFinalizersRemaining")["message"]
            == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        )
        await w.client.patch(MAPS, "held", {"metadata": {"finalizers": None}}, "blue")
        await gone(w, NAMESPACES, "blue", None)


# --- garbage collector ---


@pytest.fixture
async def gc():
    async with world() as w:
        await w.start("garbage-collector-controller")
        yield w


async def make(w: World, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"kind": "ConfigMap", **await w.client.create(MAPS, config_map(*args, **kwargs))}


async def test_dependents_follow_their_owner(gc: World) -> None:
    owner = await make(gc, "owner")
    middle = await make(gc, "middle", owner)
    await make(gc, "leaf", middle)
    await gc.client.delete(MAPS, "owner", "default")
    for name in ("owner", "middle", "leaf"):
        await gone(gc, MAPS, name)
    assert not await gc.rest()


async def test_two_owners_keep_what_one_has_left(gc: World) -> None:
    first, second = await make(gc, "first"), await make(gc, "second")
    shared = config_map("shared", first)
    shared["metadata"]["ownerReferences"] += config_map("x", second)["metadata"]["ownerReferences"]
    await gc.client.create(MAPS, shared)
    await gc.client.delete(MAPS, "first", "default")

    async def released() -> bool:
        refs = (await gc.client.get(MAPS, "shared", "default"))["metadata"]["ownerReferences"]
        return [r["name"] for r in refs] == ["second"]

    await gc.until(released)
    await gc.client.delete(MAPS, "second", "default")
    await gone(gc, MAPS, "shared")


async def test_orphans_stay(gc: World) -> None:
    owner = await make(gc, "owner")
    await make(gc, "child", owner)
    await gc.client.delete(MAPS, "owner", "default", propagation="Orphan")
    await gone(gc, MAPS, "owner")
    child = await gc.client.get(MAPS, "child", "default")
    assert not child["metadata"].get("ownerReferences")
    assert not await gc.rest()


async def test_foreground_deletion_ends_with_the_owner(gc: World) -> None:
    owner = await make(gc, "owner")
    child = config_map("child", owner, blockOwnerDeletion=True)
    child["metadata"]["finalizers"] = ["example.com/hold"]
    await gc.client.create(MAPS, child)
    await make(gc, "loose", owner)
    await gc.client.delete(MAPS, "owner", "default", propagation="Foreground")

    async def child_going() -> bool:
        return "deletionTimestamp" in (await gc.client.get(MAPS, "child", "default"))["metadata"]

    await gc.until(child_going)
    await gone(gc, MAPS, "loose")
    found = await gc.client.get(MAPS, "owner", "default")
    assert found["metadata"]["finalizers"] == ["foregroundDeletion"], "the owner waits for what blocks it"
    await gc.client.patch(MAPS, "child", {"metadata": {"finalizers": None}}, "default")
    await gone(gc, MAPS, "owner")
    assert await gc.exists(MAPS, "child", "default") is None


async def test_owners_that_never_were(gc: World) -> None:
    phantom = {"kind": "ConfigMap", "metadata": {"name": "phantom", "uid": "00000000-0000-0000-0000-000000000000"}}
    await make(gc, "lost", phantom)
    await gone(gc, MAPS, "lost")
    await gc.client.create(NAMESPACES, namespace("blue"))
    far = await make(gc, "far", namespace="blue")
    await make(gc, "near", far)  # its owner lives in another namespace
    await gone(gc, MAPS, "near")
    assert await gc.exists(MAPS, "far", "blue")
    events = await gc.until(lambda: gc.events("near"))
    assert events[0].startswith("OwnerRefInvalidNamespace: ownerRef [v1/ConfigMap, namespace: default, name: far")


async def test_a_deployment_takes_its_pods_along() -> None:
    async with world() as w:
        await w.start("serviceaccount-controller", "deployment-controller", "replicaset-controller", "garbage-collector-controller")
        await w.run_pods()
        await w.client.create("apps/v1/deployments", deployment(replicas=50))

        async def made() -> bool:
            return sum((p.get("status") or {}).get("phase") == "Running" for p in await w.items(PODS)) == 50

        await w.until(made)
        await w.client.delete("apps/v1/deployments", "web", "default", propagation="Background")

        async def all_gone() -> bool:
            return not await w.items(PODS) and not await w.items("apps/v1/replicasets")

        await w.until(all_gone)
        assert not await w.rest()


async def test_kinds_that_come_and_go(gc: World) -> None:
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}
            ],
        },
    }
    await gc.client.create("apiextensions.k8s.io/v1/customresourcedefinitions", crd)

    async def served() -> bool:
        return (await gc.client.raw("GET", "/apis/example.com/v1/namespaces/default/widgets"))[0] == 200

    try:
        await gc.until(served, 3)
    except AssertionError:
        pytest.skip("the API server does not serve custom resources yet")
    widget = await gc.client.create(
        "example.com/v1/widgets", {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "default"}}
    )
    child = config_map("child")
    child["metadata"]["ownerReferences"] = [{"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": widget["metadata"]["uid"]}]
    await gc.client.create(MAPS, child)
    await asyncio.sleep(0.3)
    assert await gc.exists(MAPS, "child", "default")
    await gc.client.delete("example.com/v1/widgets", "w", "default")
    await gone(gc, MAPS, "child")


# --- nodes ---


async def heartbeat(w: World, name: str) -> None:
    now = clock.rfc3339()
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}
    await w.client.patch(NODES, name, {"status": {"conditions": [ready]}}, kind="strategic", subresource="status")


async def test_nodes_get_ranges_of_their_own() -> None:
    async with world() as w:
        await w.start("node-ipam-controller")
        for i in range(5):
            await w.client.create(NODES, node(f"n{i}"))

        async def all_have() -> Any:
            ranges = [n["spec"].get("podCIDR") for n in await w.items(NODES, None)]
            return ranges if all(ranges) else None

        ranges = await w.until(all_have)
        assert len(set(ranges)) == 5 and all(r.startswith("10.244.") and r.endswith(".0/24") for r in ranges)


def test_a_silent_node_is_tainted_and_its_pods_go() -> None:
    """On virtual time, with upstream's own delays: silent for 40 s, evicted 300 s later."""

    async def main() -> None:
        async with world() as w:
            await w.start(
                "serviceaccount-controller", "node-lifecycle-controller", "taint-eviction-controller", "deployment-controller", "replicaset-controller"
            )
            for name in ("node0", "node1"):
                await w.client.create(NODES, node(name))
                await heartbeat(w, name)
            await w.until(lambda: w.exists("v1/serviceaccounts", "default", "default"))
            await w.run_pods()
            patient = deployment("patient", 1)
            patient["spec"]["template"]["spec"]["tolerations"] = [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}]
            await w.client.create("apps/v1/deployments", patient)
            await w.client.create("apps/v1/deployments", deployment("usual", 1))  # admission lets it tolerate 300 s

            async def beat() -> None:
                while True:
                    await heartbeat(w, "node1")
                    await asyncio.sleep(10)

            beating = asyncio.ensure_future(beat())
            first = (await w.until(lambda: _running(w, "usual")))["metadata"]["name"]
            await asyncio.sleep(35)
            assert not (await w.client.get(NODES, "node0"))["spec"].get("taints")
            await asyncio.sleep(10)
            found = await w.client.get(NODES, "node0")
            ready = condition(found, "Ready")
            assert (ready["status"], ready["reason"], ready["message"]) == ("Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.")
            assert {(t["key"], t["effect"]) for t in found["spec"]["taints"]} == {("node.kubernetes.io/unreachable", e) for e in ("NoSchedule", "NoExecute")}
            assert not (await w.client.get(NODES, "node1"))["spec"].get("taints")
            (mine,) = await w.items(PODS, labels="app=usual")
            assert mine["metadata"]["name"] == first and condition(mine, "Ready")["status"] == "False"
            await asyncio.sleep(250)
            assert await w.exists(PODS, first, "default")
            await asyncio.sleep(60)
            (other,) = await w.items(PODS, labels="app=usual")
            assert other["metadata"]["name"] != first
            assert f"TaintManagerEviction: Marking for deletion Pod default/{first}" in await w.events(first)
            (kept,) = await w.items(PODS, labels="app=patient")
            assert "deletionTimestamp" not in kept["metadata"]
            await heartbeat(w, "node0")
            await asyncio.sleep(5)
            assert not (await w.client.get(NODES, "node0"))["spec"].get("taints")
            beating.cancel()

    virtual.run(main())


async def _running(w: World, app: str) -> Any:
    return next((p for p in await w.items(PODS, labels=f"app={app}") if (p.get("status") or {}).get("phase") == "Running"), None)


async def test_cordon_is_a_taint() -> None:
    async with world() as w:
        await w.start("node-lifecycle-controller")
        await w.client.create(NODES, node("n"))
        await heartbeat(w, "n")
        await w.client.patch(NODES, "n", {"spec": {"unschedulable": True}})

        async def taints() -> list[Any]:
            return [(t["key"], t["effect"]) for t in (await w.client.get(NODES, "n"))["spec"].get("taints") or ()]

        async def cordoned() -> bool:
            return await taints() == [("node.kubernetes.io/unschedulable", "NoSchedule")]

        await w.until(cordoned)
        await w.client.patch(NODES, "n", {"spec": {"unschedulable": None}})

        async def none() -> bool:
            return not await taints()

        await w.until(none)
        assert not await w.rest()


async def test_pods_that_nobody_else_would_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "POD_GC_PERIOD_SECONDS", 0.05)
    monkeypatch.setattr(housekeeping, "NODE_QUARANTINE_SECONDS", 0.2)
    async with world() as w:
        w.options.terminated_pod_gc_threshold = 2
        await w.start("serviceaccount-controller", "pod-garbage-collector-controller")
        await w.until(lambda: w.exists("v1/serviceaccounts", "default", "default"))
        await w.client.create(NODES, node("n"))
        for name in ("lost", "kept", "d1", "d2", "d3"):
            spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": "n" if name != "lost" else "absent"}
            await w.client.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
        for name in ("d1", "d2", "d3"):
            await w.client.patch(PODS, name, {"status": {"phase": "Succeeded"}}, "default", kind="strategic", subresource="status")

        async def left() -> bool:
            return sorted(p["metadata"]["name"] for p in await w.items(PODS)) == ["d2", "d3", "kept"]

        await w.until(left)


async def test_cluster_roles_are_gathered() -> None:
    async with world() as w:
        await w.start("clusterrole-aggregation-controller")
        roles = "rbac.authorization.k8s.io/v1/clusterroles"
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
        await w.client.create(
            roles, {**role, "metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}, "rules": []}
        )
        rules = {n: [{"apiGroups": [n], "resources": ["*"], "verbs": ["get"]}] for n in ("a", "b")}
        for name, own in rules.items():
            await w.client.create(roles, {**role, "metadata": {"name": name, "labels": {"to": "all"}}, "rules": own})

        async def is_now(wanted: Any) -> bool:
            return ((await w.client.get(roles, "all")).get("rules") or []) == wanted

        await w.until(lambda: is_now(rules["a"] + rules["b"]))
        await w.client.delete(roles, "a")
        await w.until(lambda: is_now(rules["b"]))
        assert not await w.rest()
