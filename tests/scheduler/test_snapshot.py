"""Snapshot: the columns stay the sums over the pods whatever happens, and decisions follow the rules."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.scheduler import filters
from fastkube.scheduler.podinfo import Templates, pod_requests
from fastkube.scheduler.profile import DEFAULT
from fastkube.scheduler.snapshot import Failure, Snapshot

ORACLE = Path(__file__).parents[3] / "shared/reference/scheduling-oracle.json"
templates = Templates()


def node(name, cpu="4", memory="8Gi", pods="10", **more):
    meta = {"name": name, "labels": {"kubernetes.io/hostname": name, **more.pop("labels", {})}}
    return {"metadata": meta, "spec": more, "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": pods, **more.pop("extra", {})}}}


def make_pod(name, cpu=None, node_name="", **spec):
    requests = {"cpu": cpu} if cpu else {}
    body = {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}], "nodeName": node_name, **spec}
    return templates.pod({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": body})


actions = st.lists(
    st.tuples(st.sampled_from(["node", "unnode", "pod", "unpod"]), st.integers(0, 3), st.integers(0, 5), st.sampled_from(["100m", "1", None])), max_size=50
)


@given(actions)
def test_columns_are_the_sums_over_the_pods(history):
    snapshot = Snapshot()
    for action, n, p, cpu in history:
        if action == "node":
            snapshot.set_node(node(f"n{n}", cpu=str(p + 1)))
        elif action == "unnode":
            snapshot.remove_node(f"n{n}")
        elif action == "pod":
            ports = {
                "containers": [{"name": "c", "ports": [{"hostPort": 80 + p, "containerPort": 80}], "resources": {"requests": {"cpu": cpu} if cpu else {}}}]
            }
            pod = templates.pod({"metadata": {"name": f"p{p}", "namespace": "d", "uid": f"p{p}"}, "spec": ports})
            snapshot.add_pod(pod, f"n{n}")
        else:
            snapshot.remove_pod(f"d/p{p}")
        snapshot.check()


def scores(snapshot, pod):
    """Of every node that may take `pod`, by name; with what it is refused for."""
    codes, first, last = snapshot.feasible(pod)
    snapshot.columns.gather(codes, first, last)
    snapshot._best(pod, 1, DEFAULT)
    return {snapshot.names[row]: s for row, s in snapshot.columns.scores().items()}, {n: codes[row] for n, row in snapshot.rows.items()}


@given(actions)
def test_what_is_kept_equals_what_is_made_anew(history):
    kept, placed, nodes = Snapshot(), {}, {}
    asked = [make_pod("asked", "1"), make_pod("other", None), make_pod("tolerant", "1", tolerations=[{"operator": "Exists"}])]
    for action, n, p, cpu in history:
        if action == "node":
            taints = [{"key": "k", "effect": "PreferNoSchedule"}] if p % 2 else []
            nodes[f"n{n}"] = node(f"n{n}", cpu=str(p), taints=taints)
            kept.set_node(nodes[f"n{n}"])
        elif action == "unnode":
            nodes.pop(f"n{n}", None)
            kept.remove_node(f"n{n}")
        elif action == "pod":
            pod = make_pod(f"p{p}", cpu)
            placed[pod.key] = pod, f"n{n}"
            kept.add_pod(pod, f"n{n}")
        else:
            placed.pop(f"d/p{p}", None)
            kept.remove_pod(f"d/p{p}")
        fresh = Snapshot()
        for each in nodes.values():
            fresh.set_node(each)
        for pod, where in placed.values():
            fresh.add_pod(pod, where)
        for pod in asked:
            assert scores(kept, pod) == scores(fresh, pod)


def test_requests_of_init_containers_and_sidecars():
    def c(cpu, **more):
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    spec = {
        "containers": [c("100m"), c("200m")],
        "initContainers": [c("1"), c("300m", restartPolicy="Always"), c("900m")],
        "overhead": {"cpu": "50m"},
    }
    assert pod_requests(spec) == {"cpu": 1200 + 50}  # the last init container beside the sidecar is the peak


def test_least_allocated_spreads_and_failures_say_why():
    snapshot = Snapshot()
    for n in ("a", "b", "c"):
        snapshot.set_node(node(n))
    snapshot.add_pod(make_pod("x", "1"), "a")
    snapshot.add_pod(make_pod("y", "2"), "b")
    assert snapshot.decide(make_pod("z", "500m"), 1) == "c"
    failure = snapshot.decide(make_pod("big", "3500m"), 1)
    assert failure == "c"
    snapshot.set_node(node("c", unschedulable=True))
    failure = snapshot.decide(make_pod("big", "3500m"), 1)
    assert isinstance(failure, Failure)
    assert failure.message() == (
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. no new claims to deallocate, preemption: 0/3 nodes are available: "
        "1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
    )


def test_no_nodes():
    assert Snapshot().decide(make_pod("a"), 1).message() == "no nodes available to schedule pods"


def test_host_ports_collide_on_the_same_address_only():
    snapshot = Snapshot()
    snapshot.set_node(node("a"))

    def with_port(name, ip):
        return make_pod(name, containers=[{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}])

    snapshot.add_pod(with_port("x", "10.0.0.1"), "a")
    assert snapshot.decide(with_port("y", "10.0.0.2"), 1) == "a"
    assert isinstance(snapshot.decide(with_port("z", "10.0.0.1"), 1), Failure)
    assert isinstance(snapshot.decide(with_port("w", ""), 1), Failure)


@pytest.mark.parametrize(
    ("toleration", "taint", "want"),
    [
        ({"operator": "Exists"}, {"key": "k", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "operator": "Exists"}, {"key": "k", "value": "v", "effect": "NoExecute"}, True),
        ({"key": "k", "value": "v"}, {"key": "k", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "w"}, {"key": "k", "value": "v", "effect": "NoSchedule"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, {"key": "k", "effect": "NoExecute"}, False),
        ({"key": "j", "operator": "Exists"}, {"key": "k", "effect": "NoSchedule"}, False),
    ],
)
def test_tolerations(toleration, taint, want):
    assert filters.tolerates(toleration, taint) is want


@pytest.mark.skipif(not ORACLE.exists(), reason="the reference data is not here")
def test_decisions_and_words_of_upstream():
    """Every recorded case."""
    oracle = json.loads(ORACLE.read_text())
    snapshot = Snapshot()
    for n in oracle["nodes"]:
        snapshot.set_node(n)
    for p in oracle["base"]:
        pod = templates.pod({**p, "metadata": {"namespace": "oracle", **p["metadata"]}})
        snapshot.add_pod(pod, pod.node)
    for case in oracle["cases"]:
        pod = templates.pod({**case["pod"], "metadata": {"namespace": "oracle", **case["pod"]["metadata"]}})
        if pod.gated:
            assert case["reason"] == "SchedulingGated"
            continue
        decision = snapshot.decide(pod, 1)
        assert isinstance(decision, str) is case["scheduled"], case
        if isinstance(decision, Failure):
            assert decision.message(pod.never_preempts) == case["message"], case["pod"]
    snapshot.check()
