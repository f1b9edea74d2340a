"""Preemption: the victims against a plain search over all nodes, upstream's order of choice, and nominated pods' room."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.scheduler.podinfo import Templates
from fastkube.scheduler.preemption import TERMINATING, Preemption, importance
from fastkube.scheduler.snapshot import Failure, Snapshot

templates = Templates()
CPUS = (500, 1000, 1500)


def node(name, cpu=2000):
    labels = {"kubernetes.io/hostname": name}
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {"cpu": f"{cpu}m", "memory": "8Gi", "pods": "10"}}}


def make_pod(name, cpu, priority=0, started="", labels=None, **spec):
    body = {"containers": [{"name": "c", "resources": {"requests": {"cpu": f"{cpu}m"}}}], "priority": priority, **spec}
    meta = {"name": name, "namespace": "d", "uid": name, "labels": labels or {}}
    return templates.pod({"metadata": meta, "spec": body, "status": {"startTime": started} if started else {}})


def refused(snapshot, pod):
    failure = snapshot.decide(pod, 1)
    assert isinstance(failure, Failure)
    return failure


def model(pods, cpu, priority):
    """{node: victims} by the written rule: all lower ones go, then the more important come back as long as there is room."""
    found = {}
    for name, on in pods.items():
        lower = sorted((p for p in on if p.priority < priority), key=importance)
        used = sum(p.template.requests["cpu"] for p in on if p.priority >= priority) + cpu
        if not lower or used > 2000:
            continue
        victims = []
        for p in lower:
            if used + p.template.requests["cpu"] <= 2000:
                used += p.template.requests["cpu"]
            else:
                victims.append(p)
        found[name] = sorted(p.key for p in victims)
    return found


def cost(pods, keys):
    victims = [p for on in pods.values() for p in on if p.key in keys]
    top = max(p.priority for p in victims)
    return top, sum(p.priority + 2**31 for p in victims), len(victims), [-ord(c) for c in min(p.started or "~" for p in victims if p.priority == top)]


pods_on_nodes = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(CPUS), st.integers(-1, 3), st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])), max_size=14
)


@settings(deadline=None)
@given(pods_on_nodes, st.lists(st.tuples(st.sampled_from(CPUS), st.integers(0, 4)), min_size=1, max_size=6))
def test_victims_are_those_of_the_rule(placed, incoming):
    snapshot, pods = Snapshot(), {f"n{i}": [] for i in range(4)}
    for name in pods:
        snapshot.set_node(node(name))
    preemption = Preemption(snapshot)
    for i, (n, cpu, priority, started) in enumerate(placed):
        pod = make_pod(f"p{i}", cpu, priority, started)
        if sum(p.template.requests["cpu"] for p in pods[f"n{n}"]) + cpu <= 2000:
            pods[f"n{n}"].append(pod)
            snapshot.add_pod(pod, f"n{n}")
    for i, (cpu, priority) in enumerate(incoming):
        pod = make_pod(f"in{i}", cpu, priority, started="2026-02-01T00:00:00Z")
        decision = snapshot.decide(pod, i)
        if isinstance(decision, Failure):
            candidate = preemption.find(pod, decision, i)
            wanted = model(pods, cpu, priority)
            assert (candidate is None) == (not wanted)
            snapshot.check()
            if candidate is None:
                continue
            assert sorted(v.key for v in candidate.victims) == wanted[candidate.node]
            assert cost(pods, wanted[candidate.node]) == min(cost(pods, keys) for keys in wanted.values())
            for victim in candidate.victims:
                snapshot.remove_pod(victim.key)
                pods[candidate.node].remove(victim)
            decision = candidate.node
        snapshot.add_pod(pod, decision)
        pods[decision].append(pod)


def test_budgets_are_spared_where_possible():
    snapshot = Snapshot()
    preemption = Preemption(snapshot)
    for name, labels in (("n0", {"app": "db"}), ("n1", {"app": "web"})):
        snapshot.set_node(node(name))
        snapshot.add_pod(make_pod(f"on-{name}", 1500, labels=labels), name)
    budget = {"metadata": {"namespace": "d", "name": "b"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}, "status": {"disruptionsAllowed": 0}}
    preemption.budgets.tell(budget)
    pod = make_pod("in", 1000, 5)
    candidate = preemption.find(pod, refused(snapshot, pod), 1)
    assert (candidate.node, candidate.violations) == ("n0", 0)
    budget["spec"]["selector"] = {"matchLabels": {"app": "db"}}
    preemption.budgets.tell(budget)
    assert preemption.find(pod, refused(snapshot, pod), 1).node == "n1"


def test_anti_affinity_is_lifted_by_the_victims_going():
    snapshot = Snapshot()
    preemption = Preemption(snapshot)
    snapshot.set_node(node("n0"))
    snapshot.add_pod(make_pod("there", 100, labels={"app": "x"}), "n0")
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}
    pod = make_pod("in", 100, 5, affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
    failure = refused(snapshot, pod)
    assert [v.name for v in preemption.find(pod, failure, 1).victims] == ["there"]
    assert failure.message() == "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."
    snapshot.check()


def test_room_of_a_nominated_pod_is_not_given_to_lesser_ones():
    snapshot = Snapshot()
    preemption = Preemption(snapshot)
    snapshot.set_node(node("n0"))
    snapshot.add_pod(make_pod("low", 1500), "n0")
    high = make_pod("high", 1500, 5)
    candidate = preemption.find(high, refused(snapshot, high), 1)
    snapshot.nominate(high, candidate.node)
    preemption.leaving.add("d/low")
    failure = refused(snapshot, high)
    assert preemption.find(high, failure, 1) is None
    assert failure.preemption == TERMINATING
    assert isinstance(snapshot.decide(make_pod("equal", 500, 5), 1), Failure)  # the one decided on before is held room for again
    snapshot.remove_pod("d/low")
    assert isinstance(snapshot.decide(make_pod("equal", 1000, 5), 1), Failure)
    assert snapshot.decide(high, 1) == "n0"
    assert isinstance(snapshot.decide(make_pod("equal", 1000, 5), 1), Failure)
    assert isinstance(snapshot.decide(make_pod("other", 1000), 1), Failure)
    assert snapshot.decide(make_pod("small", 500), 1) == "n0"
    assert snapshot.decide(make_pod("higher", 1000, 9), 1) == "n0"
    assert snapshot.decide(high, 1) == "n0"
    snapshot.nominate(high, "")
    assert snapshot.decide(make_pod("other", 1000), 1) == "n0"
