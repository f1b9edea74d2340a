"""StatefulSets and DaemonSets: the laws of their plans, and what users see on the real API server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.controllers import daemonset
from fastkube.controllers import statefulplan as plan
from tests.controllers.world import World, world

Object = dict[str, Any]
PODS, NODES = "v1/pods", "v1/nodes"

# --- StatefulSet: pure ---


def sts_object(replicas: int, parallel: bool = False, partition: int = 0, start: int = 0, unavailable: Any = None) -> Object:
    rolling: Object = {"partition": partition}
    if unavailable is not None:
        rolling["maxUnavailable"] = unavailable
    spec: Object = {"replicas": replicas, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}, "ordinals": {"start": start}}
    spec["podManagementPolicy"] = "Parallel" if parallel else "OrderedReady"
    return {"metadata": {"name": "db", "namespace": "ns", "generation": 1}, "spec": spec}


def sts_pod(ordinal: int, revision: str, ready: bool = True) -> Object:
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2020-01-01T00:00:00Z"}]
    meta = {"name": f"db-{ordinal}", "namespace": "ns", "labels": {plan.REVISION_LABEL: revision}}
    return {"metadata": meta, "spec": {}, "status": {"phase": "Running", "conditions": conditions}}


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 6),
    st.booleans(),
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(1, 4),
    st.dictionaries(st.integers(0, 9), st.booleans(), max_size=8),
    st.data(),
)
def test_a_stateful_set_keeps_its_laws_and_comes_to_rest(
    replicas: int, parallel: bool, partition: int, start: int, unavailable: int, there: dict[int, bool], data: st.DataObject
) -> None:
    sts = sts_object(replicas, parallel, partition, start, unavailable)
    pods = {o: sts_pod(o, "old", ready) for o, ready in there.items()}
    wanted = range(start, start + replicas)
    for _ in range(200):
        todo = plan.steps(sts, list(pods.values()), "old", "new", 2e9)
        if not parallel:
            assert len(todo.create) + len(todo.delete) <= max(1, unavailable)
        for ordinal, revision in todo.create:
            assert ordinal in wanted and ordinal not in pods
            assert revision == ("old" if ordinal < start + partition else "new")
            if not parallel:
                assert all(o in pods and plan.is_running_and_ready(pods[o]) for o in range(start, ordinal))
        updating = [p for p in todo.delete if plan.ordinal_of("db", p) in wanted and plan.is_running_and_ready(p)]
        if updating:
            ready_left = sum(plan.is_running_and_ready(p) for o, p in pods.items() if o in wanted) - len(updating)
            assert ready_left >= replicas - unavailable
            assert all(plan.ordinal_of("db", p) >= start + partition for p in updating)
        condemned = [plan.ordinal_of("db", p) for p in todo.delete if plan.ordinal_of("db", p) not in wanted]
        if condemned and not parallel:
            assert condemned == [max(o for o in pods if o not in wanted)]
        for p in todo.delete:
            del pods[plan.ordinal_of("db", p)]
        for ordinal, revision in todo.create:
            pods[ordinal] = sts_pod(ordinal, revision, ready=False)
        waking = [o for o, p in pods.items() if not plan.is_running_and_ready(p)]
        for o in waking if not (todo.create or todo.delete) else data.draw(st.lists(st.sampled_from(waking), unique=True)) if waking else []:
            pods[o] = sts_pod(o, plan.revision_of(pods[o]))
        if not todo.create and not todo.delete and not waking:
            break
    else:
        pytest.fail("it does not come to rest")
    assert sorted(pods) == list(wanted)
    for o, p in pods.items():
        assert plan.revision_of(p) == ("old" if o < start + partition and (o in there) else plan.revision_of(p))
        if o >= start + partition:
            assert plan.revision_of(p) == "new"


def test_names_and_ordinals() -> None:
    for name, ordinal in (("db-0", 0), ("db-12", 12), ("db-01", -1), ("other-1", -1), ("db-x", -1), ("db", -1), ("a-db-1", -1)):
        assert plan.ordinal_of("db", {"metadata": {"name": name}}) == ordinal


# --- DaemonSet: pure ---


def node(name: str, taints: tuple[tuple[str, str], ...] = (), **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": [{"key": k, "effect": e} for k, e in taints]}}


def test_on_which_nodes_daemons_run() -> None:
    plain = daemonset.with_tolerations({})
    assert daemonset.should_run(plain, node("n")) == (True, True)
    assert daemonset.should_run(plain, node("n", (("node.kubernetes.io/unschedulable", "NoSchedule"),))) == (True, True)
    assert daemonset.should_run(plain, node("n", (("node.kubernetes.io/not-ready", "NoExecute"),))) == (True, True)
    assert daemonset.should_run(plain, node("n", (("x", "NoSchedule"),))) == (False, True)
    assert daemonset.should_run(plain, node("n", (("x", "NoExecute"),))) == (False, False)
    assert daemonset.should_run(plain, node("n", (("node.kubernetes.io/network-unavailable", "NoSchedule"),))) == (False, True)
    assert daemonset.should_run(daemonset.with_tolerations({"hostNetwork": True}), node("n", (("node.kubernetes.io/network-unavailable", "NoSchedule"),))) == (
        True,
        True,
    )
    assert daemonset.should_run({"nodeSelector": {"disk": "ssd"}}, node("n")) == (False, False)
    assert daemonset.should_run({"nodeSelector": {"disk": "ssd"}}, node("n", disk="ssd")) == (True, True)
    required = {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["3"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]},
        ]
    }
    spec = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}
    assert [daemonset.should_run(spec, n)[0] for n in (node("n"), node("n", gen="4"), node("n", gen="3"), node("m"))] == [False, True, False, True]
    assert daemonset.node_of({"spec": daemonset.pinned(spec, "here")}) == "here"


def daemon(name: str, where: str, revision: str, ready: bool = True) -> Object:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2020-01-01T00:00:00Z"}]}
    return {
        "metadata": {"name": name, "labels": {daemonset.HASH_LABEL: revision}, "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"nodeName": where},
        "status": status,
    }


def test_rolling_daemons() -> None:
    nodes = [node(n) for n in "abcd"]
    old = [daemon(f"o{n}", n, "old") for n in "abcd"]
    step = lambda pods, unavailable, surge: daemonset.rolling_steps({}, nodes, pods, "new", unavailable, surge, 0, 2e9)  # noqa: E731
    assert [len(x) for x in step(old, 1, 0)] == [0, 1]
    assert [len(x) for x in step(old, 3, 0)] == [0, 3]
    broken = [*old[:3], daemon("od", "d", "old", ready=False)]
    assert [p["metadata"]["name"] for p in step(broken, 1, 0)[1]] == ["od"]
    assert step([*old[1:], daemon("na", "a", "new", ready=False)], 1, 0) == ([], [])
    assert step(old, 0, 2) == (["a", "b"], [])
    surged = [*old, daemon("na", "a", "new", ready=False)]
    assert step(surged, 0, 2) == (["b"], [])
    surged[-1] = daemon("na", "a", "new")
    create, delete = step(surged, 0, 2)
    assert create == ["b", "c"] and [p["metadata"]["name"] for p in delete] == ["oa"]


# --- on the real API server ---


def stateful(replicas: int = 3, **spec: Any) -> Object:
    labels = {"app": "db"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "db:1"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": labels}, "template": template, **spec},
    }


async def settled(w: World, count: int, image: str = "db:1") -> list[Object]:
    async def yes() -> Any:
        found = await w.client.get("apps/v1/statefulsets", "db", "default")
        s = found.get("status") or {}
        pods = sorted(await w.items(PODS, labels="app=db"), key=lambda p: p["metadata"]["name"])
        images = {p["spec"]["containers"][0]["image"] for p in pods}
        if (
            s.get("readyReplicas", 0) == s.get("replicas") == len(pods) == count
            and images <= {image}
            and s.get("observedGeneration") == found["metadata"]["generation"]
        ):
            return pods or [{}]
        return None

    return await w.until(yes)


@pytest.fixture
async def w():
    async with world() as running:
        await running.start("serviceaccount-controller", "statefulset-controller", "daemonset-controller", "garbage-collector-controller")
        await running.until(lambda: running.exists("v1/serviceaccounts", "default", "default"))
        yield running


async def test_a_stateful_set_in_order(w: World) -> None:
    await w.run_pods()
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    await w.client.create("apps/v1/statefulsets", stateful(volumeClaimTemplates=[claim]))
    pods = await settled(w, 3)
    assert [p["metadata"]["name"] for p in pods] == ["db-0", "db-1", "db-2"]
    born = [p["metadata"]["resourceVersion"] for p in pods]
    assert born == sorted(born, key=int)
    one = pods[1]
    assert one["spec"]["hostname"] == "db-1" and one["spec"]["subdomain"] == "db"
    assert one["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] == "db-1" and one["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "1"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-1"}} in one["spec"]["volumes"]
    claims = await w.items("v1/persistentvolumeclaims")
    assert sorted(c["metadata"]["name"] for c in claims) == ["data-db-0", "data-db-1", "data-db-2"]
    assert "SuccessfulCreate: create Pod db-0 in StatefulSet db successful" in await w.events("db")
    assert "SuccessfulCreate: create Claim data-db-0 Pod db-0 in StatefulSet db success" in await w.events("db")
    await w.client.patch("apps/v1/statefulsets", "db", {"spec": {"replicas": 1}}, "default")
    (left,) = await settled(w, 1)
    assert left["metadata"]["name"] == "db-0"
    assert len(await w.items("v1/persistentvolumeclaims")) == 3, "claims stay"
    assert not await w.rest()


async def test_a_stateful_set_updates_from_the_top_to_its_partition(w: World) -> None:
    await w.run_pods()
    await w.client.create("apps/v1/statefulsets", stateful(updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}))
    await settled(w, 3)
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "db:2"}]}}}}
    await w.client.patch("apps/v1/statefulsets", "db", patch, "default", kind="strategic")

    async def canary() -> bool:
        images = {p["metadata"]["name"]: p["spec"]["containers"][0]["image"] for p in await w.items(PODS)}
        s = (await w.client.get("apps/v1/statefulsets", "db", "default"))["status"]
        return images == {"db-0": "db:1", "db-1": "db:1", "db-2": "db:2"} and s.get("updatedReplicas") == 1 and s["currentRevision"] != s["updateRevision"]

    await w.until(canary)
    assert not await w.rest()
    await w.client.patch("apps/v1/statefulsets", "db", {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}, "default")
    await settled(w, 3, "db:2")

    async def current() -> bool:
        s = (await w.client.get("apps/v1/statefulsets", "db", "default"))["status"]
        return s["currentRevision"] == s["updateRevision"] and s.get("currentReplicas") == 3

    await w.until(current)
    revisions = await w.items("apps/v1/controllerrevisions")
    assert sorted(r["revision"] for r in revisions) == [1, 2]


async def test_a_lost_stateful_pod_comes_back_under_its_name(w: World) -> None:
    kubelet = await w.run_pods()
    await w.client.create("apps/v1/statefulsets", stateful(podManagementPolicy="Parallel"))
    pods = await settled(w, 3)
    await w.client.delete(PODS, "db-1", "default")

    async def back() -> bool:
        found = await w.exists(PODS, "db-1", "default")
        return found is not None and found["metadata"]["uid"] != pods[1]["metadata"]["uid"]

    await w.until(back)
    await settled(w, 3)
    failed = await w.client.get(PODS, "db-2", "default")
    await kubelet.report(failed, False, "Failed")

    async def replaced() -> bool:
        found = await w.exists(PODS, "db-2", "default")
        return found is not None and found["metadata"]["uid"] != failed["metadata"]["uid"]

    await w.until(replaced)


async def test_claims_go_with_their_set_when_told_so(w: World) -> None:
    await w.run_pods()
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    policy = {"whenDeleted": "Delete", "whenScaled": "Delete"}
    await w.client.create("apps/v1/statefulsets", stateful(2, volumeClaimTemplates=[claim], persistentVolumeClaimRetentionPolicy=policy))
    await settled(w, 2)
    await w.client.patch("apps/v1/statefulsets", "db", {"spec": {"replicas": 1}}, "default")

    async def claims(count: int) -> bool:
        left = [c for c in await w.items("v1/persistentvolumeclaims") if "deletionTimestamp" not in c["metadata"]]
        return len(left) == count

    await w.until(lambda: claims(1))
    await w.client.delete("apps/v1/statefulsets", "db", "default")
    await w.until(lambda: claims(0))


def daemons(**spec: Any) -> Object:
    labels = {"app": "agent"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "agent:1"}]}}
    meta = {"name": "agent", "namespace": "default"}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": {"selector": {"matchLabels": labels}, "template": template, **spec}}


async def run_where_pinned(w: World) -> None:
    kubelet = await w.run_pods()
    handle = type(kubelet).handle

    async def bind(pod: Object) -> None:
        if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
            target = {"apiVersion": "v1", "kind": "Node", "name": daemonset.node_of(pod)}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}, "target": target}
            await w.client.create(PODS, binding, "default", name=pod["metadata"]["name"], subresource="binding")
        else:
            await handle(kubelet, pod)

    kubelet.handle = bind  # type: ignore[method-assign]


async def add_node(w: World, name: str, os: str) -> None:
    await w.client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"os": os}}})
    await w.client.patch(NODES, name, {"spec": {"taints": None}})  # ready, as node-lifecycle would have it


async def test_a_daemon_on_each_node_that_fits(w: World) -> None:
    await run_where_pinned(w)
    for name in ("a", "b"):
        await add_node(w, name, "linux")
    ds = daemons()
    ds["spec"]["template"]["spec"]["nodeSelector"] = {"os": "linux"}
    await w.client.create("apps/v1/daemonsets", ds)

    async def on(*names: str) -> Any:
        found = await w.client.get("apps/v1/daemonsets", "agent", "default")
        s = found.get("status") or {}
        where = sorted(p["spec"].get("nodeName") or "" for p in await w.items(PODS))
        return where == list(names) and s.get("numberReady") == s.get("desiredNumberScheduled") == s.get("updatedNumberScheduled", 0) == len(names)

    await w.until(lambda: on("a", "b"))
    await add_node(w, "c", "linux")
    await add_node(w, "w", "windows")
    await w.until(lambda: on("a", "b", "c"))
    await w.client.patch(NODES, "b", {"metadata": {"labels": {"os": "plan9"}}})
    await w.until(lambda: on("a", "c"))
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "agent:2"}]}}}}
    await w.client.patch("apps/v1/daemonsets", "agent", patch, "default", kind="strategic")

    async def updated() -> Any:
        return {p["spec"]["containers"][0]["image"] for p in await w.items(PODS)} == {"agent:2"} and await on("a", "c")

    await w.until(updated)
    assert len(await w.items("apps/v1/controllerrevisions")) == 2
    (pod, *_) = await w.items(PODS)
    assert w.kubelet
    await w.kubelet.report(pod, False, "Failed")

    async def healed() -> Any:
        return all(p["metadata"]["uid"] != pod["metadata"]["uid"] for p in await w.items(PODS)) and await on("a", "c")

    await w.until(healed)
    assert any(e.startswith("FailedDaemonPod: Found failed daemon pod default/agent-") for e in await w.events("agent"))
    assert not await w.rest()
