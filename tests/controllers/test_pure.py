"""Pure cores against models: the collector's graph, taints and eviction times, zones, node ranges, backends, conditions, selection, pace."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.controllers import manager, namespace, taints
from fastkube.controllers.backends import Backends, shown
from fastkube.controllers.gcgraph import FOREGROUND, Graph, Node, verdict
from fastkube.controllers.meta import is_subset, resolve_int_or_percent, with_condition
from fastkube.controllers.nodeipam import CidrSet
from fastkube.controllers.runtime import Expectations, Pace, slow_start
from fastkube.runtime import clock
from fastkube.testing import virtual

Object = dict[str, Any]

# --- garbage collector's graph ---

UIDS = "abcdef"


def owned(uid: str, owners: list[str], namespace: str = "ns", deleting: bool = False, foreground: bool = False) -> Object:
    meta: Object = {"name": uid, "namespace": namespace, "uid": uid, "resourceVersion": "1"}
    if owners:
        meta["ownerReferences"] = [{"apiVersion": "v1", "kind": "K", "name": o, "uid": o, "blockOwnerDeletion": True} for o in owners]
    if deleting:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    if foreground:
        meta["finalizers"] = [FOREGROUND]
    return {"apiVersion": "v1", "kind": "K", "metadata": meta}


steps = st.lists(
    st.tuples(st.sampled_from(["put", "gone"]), st.sampled_from(UIDS), st.lists(st.sampled_from(UIDS), max_size=3, unique=True), st.booleans(), st.booleans()),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(steps)
def test_the_graph_is_what_the_objects_say(history: list[Any]) -> None:
    work: list[str] = []
    graph = Graph(work.append, work.append)
    live: dict[str, Object] = {}
    for verb, uid, owners, deleting, foreground in history:
        if verb == "put":
            live[uid] = owned(uid, [o for o in owners if o != uid], deleting=deleting, foreground=foreground)
            graph.observe("K", live[uid])
        else:
            live.pop(uid, None)
            if uid in graph.nodes and not graph.nodes[uid].virtual:
                graph.forget(uid)
        edges = {(ref["uid"], u) for u, obj in live.items() for ref in obj["metadata"].get("ownerReferences") or ()}
        assert {(o, d) for o, node in graph.nodes.items() for d in node.dependents} == edges
        assert {u for u, node in graph.nodes.items() if not node.virtual} == set(live)
        assert {u for u, node in graph.nodes.items() if node.virtual} == {o for o, _ in edges} - set(live)


@settings(deadline=None, max_examples=200)
@given(steps)
def test_whatever_has_lost_its_last_owner_is_looked_at(history: list[Any]) -> None:
    """Work may be superfluous, never missing: carrying it out at the end leaves nothing that nobody owns."""
    work: list[str] = []
    graph = Graph(work.append, lambda uid: None)
    live: dict[str, Object] = {}
    for verb, uid, owners, _, _ in history:
        if verb == "put":
            live[uid] = owned(uid, [o for o in owners if o != uid])
            graph.observe("K", live[uid])
        elif live.pop(uid, None):
            graph.forget(uid)
    while work:
        uid = work.pop(0)
        node = graph.nodes.get(uid)
        if node is None:
            continue
        if node.virtual:  # the driver asks the server: absent
            work += node.dependents
            continue
        solid = [r for r in node.owners if r["uid"] in live]
        dangling = [r for r in node.owners if r["uid"] not in live]
        decision = verdict(node, solid, dangling, [])
        if decision.action == "delete":
            del live[uid]
            graph.forget(uid)
        elif decision.action == "release":
            live[uid] = owned(uid, [r["uid"] for r in solid])
            graph.observe("K", live[uid])
    for obj in live.values():
        owners = obj["metadata"].get("ownerReferences") or ()
        assert all(r["uid"] in live for r in owners)


def test_verdicts() -> None:
    a, b = {"uid": "a"}, {"uid": "b"}
    node = Node(None)  # type: ignore[arg-type]
    assert verdict(node, [a], [], []).action == "keep"
    assert verdict(node, [], [], []).action == "keep"
    assert verdict(node, [a], [b], []).drop == ["b"]
    assert verdict(node, [], [a], []).propagation == "Background"
    node.finalizers = (FOREGROUND,)
    assert verdict(node, [], [a], []).propagation == "Foreground"
    node.finalizers = ("orphan",)
    assert verdict(node, [], [a], []).propagation == "Orphan"
    node.dependents = {"x": node}
    assert verdict(node, [], [], [a]).propagation == "Foreground"


# --- taints ---


def node(ready: str = "True", unschedulable: bool = False, **conditions: str) -> Object:
    rows = [{"type": "Ready", "status": ready}, *({"type": k, "status": v} for k, v in conditions.items())]
    return {"metadata": {"name": "n"}, "spec": {"unschedulable": unschedulable}, "status": {"conditions": rows}}


def test_conditions_to_taints() -> None:
    assert taints.wanted(node(), True) == set()
    assert taints.wanted(node("False"), True) == {(taints.NOT_READY, "NoSchedule"), (taints.NOT_READY, "NoExecute")}
    assert taints.wanted(node("Unknown"), False) == {(taints.UNREACHABLE, "NoSchedule")}
    assert taints.wanted(node(unschedulable=True, DiskPressure="True", MemoryPressure="False"), False) == {
        (taints.UNSCHEDULABLE, "NoSchedule"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    }


keys = st.sampled_from([taints.NOT_READY, taints.UNREACHABLE, taints.UNSCHEDULABLE, "mine"])
effects = st.sampled_from(["NoSchedule", "NoExecute"])
taint = st.builds(lambda k, e: {"key": k, "effect": e, "timeAdded": "then"}, keys, effects)


@given(st.lists(taint, max_size=4, unique_by=lambda t: (t["key"], t["effect"])), st.sampled_from(["True", "False", "Unknown"]), st.booleans(), st.booleans())
def test_merging_keeps_others_and_is_idempotent(current: list[Object], ready: str, unschedulable: bool, evict: bool) -> None:
    want = taints.wanted(node(ready, unschedulable), evict)
    merged = taints.merge(current, want, "now")
    assert [t for t in merged if t["key"] == "mine"] == [t for t in current if t["key"] == "mine"]
    assert {(t["key"], t["effect"]) for t in merged} >= want
    assert taints.merge(merged, want, "later") == merged
    kept = [t for t in current if (t["key"], t["effect"]) in want]
    assert all(t in merged for t in kept), "a taint that stays keeps its timeAdded"


def test_when_pods_must_go() -> None:
    def pod(*tolerations: Object) -> Object:
        return {"metadata": {"creationTimestamp": clock.rfc3339(500)}, "spec": {"tolerations": list(tolerations)}, "status": {}}

    added = clock.rfc3339(1000)
    unreachable = {"key": taints.UNREACHABLE, "effect": "NoExecute", "timeAdded": added}
    assert taints.evict_at(pod(), [unreachable], 5000) == 5000
    assert taints.evict_at(pod({"operator": "Exists"}), [unreachable], 5000) is None
    patient = {"key": taints.UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    assert taints.evict_at(pod(patient), [unreachable], 1001) == 1300
    assert taints.evict_at(pod(patient, {**patient, "tolerationSeconds": 10}), [unreachable], 1001) == 1010
    assert taints.evict_at(pod(patient), [unreachable, {"key": "x", "effect": "NoExecute"}], 1001) == 1001
    assert taints.evict_at(pod(patient), [{"key": "x", "effect": "NoSchedule"}], 1001) is None
    assert taints.evict_at(pod({**patient, "tolerationSeconds": -5}), [unreachable], 1001) == 1000
    late = pod(patient)
    late["status"]["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": clock.rfc3339(2000)}]
    assert taints.evict_at(late, [unreachable], 2001) == 2300
    for toleration, matches in (
        ({"key": "k", "operator": "Equal", "value": "v"}, True),
        ({"key": "k", "value": "w"}, False),
        ({"key": "k", "operator": "Exists"}, True),
        ({"operator": "Exists", "effect": "NoExecute"}, True),
        ({"operator": "Exists", "effect": "NoSchedule"}, False),
        ({}, False),
    ):
        assert taints.tolerates(toleration, {"key": "k", "value": "v", "effect": "NoExecute"}) == matches


def test_zones() -> None:
    rates = taints.Rates()
    assert taints.zone_rates({"a": (10, 0)}, rates) == {"a": 0.1}
    assert taints.zone_rates({"a": (0, 3)}, rates) == {"a": 0.0}, "all is down: it is we who are cut off"
    assert taints.zone_rates({"a": (0, 3), "b": (3, 0)}, rates) == {"a": 0.1, "b": 0.1}
    assert taints.zone_rates({"a": (4, 6)}, rates) == {"a": 0.0}
    assert taints.zone_rates({"a": (40, 60)}, rates) == {"a": 0.01}


# --- node ranges ---


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["allocate", "occupy", "release"]), st.integers(0, 20)), max_size=40))
def test_ranges_never_overlap(history: list[tuple[str, int]]) -> None:
    cidrs = CidrSet("10.0.0.0/20", 24)
    taken: set[str] = set()
    for verb, number in history:
        cidr = f"10.0.{number}.0/24"
        if verb == "allocate":
            got = cidrs.allocate()
            assert (got is None) == (len([t for t in taken if ipaddress.ip_network(t).subnet_of(ipaddress.ip_network("10.0.0.0/20"))]) == 16)  # type: ignore[arg-type]
            assert got not in taken
            if got:
                taken.add(got)
        elif verb == "occupy":
            cidrs.occupy(cidr)
            taken.add(cidr)
        else:
            cidrs.release(cidr)
            taken.discard(cidr)


def test_ranges_of_other_sizes_and_families() -> None:
    cidrs = CidrSet("10.244.0.0/16", 24)
    cidrs.occupy("10.244.0.0/23")
    cidrs.occupy("10.0.0.0/8")
    assert cidrs.allocate() is None
    six = CidrSet("fd00::/56", 64)
    assert six.allocate() == "fd00::/64" and six.allocate() == "fd00:0:0:1::/64"
    with pytest.raises(ValueError):
        CidrSet("10.244.0.0/24", 16)


# --- backends ---


def pod(name: str, label: str, ready: bool, ip: str) -> Object:
    status = {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": str(ready)}]}
    return {"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": label, "x": "y"}}, "spec": {}, "status": status}


def service(name: str, selector: dict[str, str] | None) -> Object:
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"selector": selector}}


pods = st.builds(pod, st.sampled_from("abc"), st.sampled_from(["p", "q"]), st.booleans(), st.sampled_from(["1.1.1.1", "2.2.2.2"]))
services = st.builds(service, st.sampled_from(["s", "t"]), st.sampled_from([None, {"app": "p"}, {"app": "q", "x": "y"}, {"x": "y"}]))
events = st.lists(st.one_of(st.tuples(st.just("pod"), st.booleans(), pods), st.tuples(st.just("service"), st.booleans(), services)), max_size=40)


@settings(deadline=None, max_examples=300)
@given(events)
def test_backends_know_what_is_selected_and_tell_every_change(history: list[Any]) -> None:
    service_informer, pod_informer = Informer(Client(None), "v1/services"), Informer(Client(None), "v1/pods")  # type: ignore[arg-type]
    backends = Backends(service_informer, pod_informer)
    told: set[tuple[str, str | None]] = set()
    backends.listen(lambda s, p: told.add((s, p)))
    before: dict[str, dict[str, Any]] = {}
    for what, put, obj in history:
        told.clear()
        informer = pod_informer if what == "pod" else service_informer
        key = f"ns/{obj['metadata']['name']}"
        if put:
            informer._stored(key, obj)
        else:
            informer._deleted(key)
        now: dict[str, dict[str, Any]] = {}
        for s in service_informer.list():
            selector = s["spec"]["selector"]
            now[f"ns/{s['metadata']['name']}"] = {
                f"ns/{p['metadata']['name']}": p for p in pod_informer.list() if selector and is_subset(selector, p["metadata"]["labels"])
            }
        assert {k: backends.of(k) for k in now} == now
        for key in set(before) | set(now):
            old, new = before.get(key, {}), now.get(key, {})
            for p in set(old) | set(new):
                if (p in old) != (p in new) or shown(old[p]) != shown(new[p]):
                    assert (key, p) in told or (key, None) in told
        before = {k: dict(v) for k, v in now.items()}


# --- the rest ---


def test_namespace_conditions_in_upstreams_words() -> None:
    remains = namespace.Remains()
    remains.kinds["pods."] = 3
    remains.finalizers["a/b"] = 2
    rows = {c["type"]: (c["status"], c["reason"], c["message"]) for c in namespace.conditions_of(remains, [])}
    assert rows["NamespaceContentRemaining"] == ("True", "SomeResourcesRemain", "Some resources are remaining: pods. has 3 resource instances")
    assert rows["NamespaceFinalizersRemaining"][1] == "SomeFinalizersRemain"
    assert rows["NamespaceDeletionDiscoveryFailure"] == ("False", "ResourcesDiscovered", "All resources successfully discovered")
    assert rows["NamespaceDeletionContentFailure"][0] == "False"
    clean = {c["type"]: c["status"] for c in namespace.conditions_of(namespace.Remains(), [])}
    assert set(clean.values()) == {"False"} and len(clean) == 5


def test_controllers_are_selected_as_upstream_does() -> None:
    everything = manager.select(["*"])
    assert "deployment-controller" in everything and len(everything) == len(set(everything))
    assert everything[-1] == "garbage-collector-controller"
    assert manager.select(["*", "-deployment-controller"]) == [n for n in everything if n != "deployment-controller"]
    assert manager.select(["namespace-controller"]) == ["namespace-controller"]
    assert manager.select(["*", "namespace-controller"]) == everything
    with pytest.raises(manager.ManagerError, match="nonsense"):
        manager.select(["*", "-nonsense"])


def test_every_controller_can_be_loaded_and_bears_its_name() -> None:
    for name, load in manager.CONTROLLERS.items():
        assert load().name == name


def test_int_or_percent() -> None:
    assert resolve_int_or_percent("25%", 10, True) == 3 and resolve_int_or_percent("25%", 10, False) == 2
    assert resolve_int_or_percent(4, 10, True) == 4
    for bad in ("x", "%", "-5%", None, True, 1.5):
        with pytest.raises(ValueError):
            resolve_int_or_percent(bad, 10, True)


def test_conditions_keep_their_time_while_their_status_stays() -> None:
    first = with_condition([], {"type": "A", "status": "True", "reason": "x", "lastTransitionTime": "1"})
    same = with_condition(first, {"type": "A", "status": "True", "reason": "y", "lastTransitionTime": "2"})
    assert same == [{"type": "A", "status": "True", "reason": "y", "lastTransitionTime": "1"}]
    assert with_condition(same, {"type": "A", "status": "False", "lastTransitionTime": "3"})[0]["lastTransitionTime"] == "3"


def test_slow_start_stops_at_the_first_failure() -> None:
    async def main() -> None:
        tried: list[int] = []

        async def act(i: int) -> None:
            tried.append(i)
            if i >= 5:
                raise ValueError(i)

        count, failure = await slow_start(100, act)
        assert (count, len(tried), failure.args) == (7, 7, (5,))
        assert await slow_start(0, act) == (0, None)
        assert await slow_start(5, act) == (5, None)

    asyncio.run(main())


def test_expectations_are_met_or_forgotten_in_time() -> None:
    async def main() -> None:
        expectations = Expectations()
        assert expectations.satisfied("k")
        expectations.expect_creations("k", 2)
        expectations.expect_deletions("k", ["a", "b"])
        expectations.created("k")
        expectations.deleted("k", "a")
        expectations.deleted("k", "a")
        assert not expectations.satisfied("k")
        expectations.created("k")
        expectations.deleted("k", "b")
        assert expectations.satisfied("k")
        expectations.expect_creations("k", 1)
        await asyncio.sleep(299)
        assert not expectations.satisfied("k")
        await asyncio.sleep(2)
        assert expectations.satisfied("k")

    virtual.run(main())


def test_pace_allows_a_burst_then_one_per_interval() -> None:
    async def main() -> None:
        pace = Pace(0.1, 5)
        count = 0
        while asyncio.get_running_loop().time() < 10:
            wait = pace.wait("k")
            if wait > 0:
                await asyncio.sleep(wait + 1e-6)
            else:
                pace.spend("k")
                count += 1
        assert 100 <= count <= 108
        for _ in range(1000):
            pace.spend("k")
        assert pace.wait("k") <= 0.2
        assert pace.wait("other") <= 0

    virtual.run(main())
