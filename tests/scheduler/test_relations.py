"""Affinity and spread: the live counts and kernels against the models, after random histories of nodes, pods and namespaces."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.scheduler import filters
from fastkube.scheduler.plugins import interpodaffinity, podtopologyspread
from fastkube.scheduler.podinfo import Templates
from fastkube.scheduler.snapshot import Snapshot
from tests.scheduler import models

HOST, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
NAMESPACES = ("d", "e")

selectors = st.sampled_from(
    [{"matchLabels": {"app": "a"}}, {"matchLabels": {"app": "b"}}, {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {}, None,
     {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}]
)  # fmt: skip
keys = st.sampled_from([HOST, ZONE, "rack"])


@st.composite
def terms(draw):
    term = {"topologyKey": draw(keys), "labelSelector": draw(selectors)}
    how = draw(st.integers(0, 4))
    if how == 1:
        term["namespaces"] = [draw(st.sampled_from(NAMESPACES))]
    elif how == 2:
        term["namespaceSelector"] = draw(st.sampled_from([{}, {"matchLabels": {"team": "x"}}]))
    elif how == 3 and term["labelSelector"] is not None:
        term["matchLabelKeys"] = ["rev"]
    elif how == 4 and term["labelSelector"] is not None:
        term["mismatchLabelKeys"] = ["rev"]
    return term


@st.composite
def constraints(draw):
    return {
        "topologyKey": draw(keys),
        "maxSkew": draw(st.integers(1, 2)),
        "whenUnsatisfiable": draw(st.sampled_from(["DoNotSchedule", "ScheduleAnyway"])),
        "labelSelector": draw(selectors),
        **draw(st.sampled_from([{}, {"minDomains": 2}, {"minDomains": 3}, {"matchLabelKeys": ["rev"]}])),
        **draw(st.sampled_from([{}, {"nodeTaintsPolicy": "Honor"}, {"nodeAffinityPolicy": "Ignore"}])),
    }


@st.composite
def specs(draw):
    affinity = {}
    for kind in ("podAffinity", "podAntiAffinity"):
        affinity[kind] = {
            "requiredDuringSchedulingIgnoredDuringExecution": draw(st.lists(terms(), max_size=2)) if draw(st.booleans()) else [],
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": draw(st.integers(1, 100)), "podAffinityTerm": t} for t in draw(st.lists(terms(), max_size=2))
            ],
        }
    spec = {"containers": [{"name": "c"}]}
    if draw(st.booleans()):
        spec["affinity"] = affinity
    if draw(st.booleans()):
        spec["topologySpreadConstraints"] = draw(st.lists(constraints(), max_size=2))
    if draw(st.booleans()):
        spec["nodeSelector"] = {"disk": "ssd"}
    return spec


@st.composite
def pods(draw, name):
    labels = {"app": draw(st.sampled_from("abc")), "rev": draw(st.sampled_from("12"))} if draw(st.booleans()) else {}
    meta = {"name": name, "namespace": draw(st.sampled_from(NAMESPACES)), "uid": name, "labels": labels}
    if draw(st.integers(0, 5)) == 0:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": meta, "spec": draw(specs())}


@st.composite
def nodes(draw, name):
    labels = {HOST: name} if draw(st.integers(0, 5)) else {}
    labels |= draw(st.sampled_from([{}, {ZONE: "a"}, {ZONE: "b"}, {ZONE: "c"}])) | draw(st.sampled_from([{}, {"rack": "1"}, {"rack": "2"}]))
    labels |= draw(st.sampled_from([{}, {"disk": "ssd"}]))
    spec = {"taints": [{"key": "t", "effect": "NoSchedule"}]} if draw(st.integers(0, 4)) == 0 else {}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"}}}


@st.composite
def steps(draw):
    kind = draw(st.sampled_from(["node", "node", "pod", "pod", "pod", "unpod", "unnode", "namespace", "ask"]))
    if kind == "node":
        return kind, draw(nodes(f"n{draw(st.integers(0, 3))}"))
    if kind == "pod":
        return kind, draw(pods(f"p{draw(st.integers(0, 5))}")), f"n{draw(st.integers(0, 4))}"
    if kind == "ask":
        return kind, draw(pods("incoming"))
    if kind == "namespace":
        return kind, draw(st.sampled_from(NAMESPACES)), draw(st.sampled_from([{}, {"team": "x"}]))
    return kind, f"n{draw(st.integers(0, 3))}" if kind == "unnode" else (draw(st.sampled_from(NAMESPACES)), f"p{draw(st.integers(0, 5))}")


class World:
    """The snapshot and, beside it, all that was told."""

    def __init__(self):
        self.snapshot, self.templates = Snapshot(), Templates()
        self.nodes, self.placed, self.namespaces = {}, {}, {}

    def step(self, step):
        kind, what, *more = step
        if kind == "node":
            self.nodes[what["metadata"]["name"]] = what
            self.snapshot.set_node(what)
        elif kind == "unnode":
            self.nodes.pop(what, None)
            self.snapshot.remove_node(what)
        elif kind == "pod":
            pod = self.templates.pod(what)
            self.placed[pod.key] = (pod, more[0])
            self.snapshot.add_pod(pod, more[0])
        elif kind == "unpod":
            self.placed.pop("/".join(what), None)
            self.snapshot.remove_pod("/".join(what))
        elif kind == "namespace":
            self.namespaces[what] = more[0]
            self.snapshot.population.set_namespace(what, more[0])
        else:
            self.ask(self.templates.pod(what))
        self.snapshot.check()

    def allowed(self, pod):
        def allowed(constraint, node):
            if constraint.honor_affinity and not filters.matches_affinity(pod.template, node):
                return False
            return not (constraint.honor_taints and filters.untolerated(pod.template, node))

        return allowed

    def ask(self, pod):
        snapshot, placed = self.snapshot, list(self.placed.values())
        rows = len(snapshot.names)
        spread, affinity = snapshot.plans(pod, snapshot.class_of(pod))
        codes = bytearray(0 if name else 255 for name in snapshot.names)
        told = bytearray(codes)
        if spread:
            podtopologyspread.filter(spread, codes, 0, rows)
        if affinity:
            interpodaffinity.filter(affinity, told, 0, rows)
        for name, node in self.nodes.items():
            row = snapshot.rows[name]
            assert codes[row] == models.spread_refusal(pod, node, self.nodes, placed, self.allowed(pod)), ("spread", name)
            assert told[row] == models.affinity_refusal(pod, node, self.nodes, placed, self.namespaces), ("affinity", name)
        feasible = [n for n in self.nodes if not codes[snapshot.rows[n]] and not told[snapshot.rows[n]]]
        if not feasible:
            return
        both = bytearray(a or b for a, b in zip(codes, told, strict=True))
        columns = snapshot.columns
        columns.gather(both, 0, rows)
        if affinity:
            interpodaffinity.score(affinity, columns, 1)
        wanted = models.affinity_scores(pod, feasible, self.nodes, placed, self.namespaces)
        assert columns.scores() == {snapshot.rows[n]: s for n, s in wanted.items()}
        columns.gather(both, 0, rows)
        if spread:
            podtopologyspread.score(spread, columns, 1)
        soft = [c for c in pod.relations.spread if not c.hard] if pod.relations else []
        wanted = models.spread_scores(pod, soft, True, feasible, self.nodes, placed, self.allowed(pod))
        assert columns.scores() == {snapshot.rows[n]: s for n, s in wanted.items()}


@settings(max_examples=300, deadline=None)
@given(st.lists(steps(), max_size=25), st.lists(pods("incoming"), min_size=2, max_size=5))
def test_counts_and_kernels_equal_the_models(history, asked):
    world = World()
    for name in ("n0", "n1"):
        world.step(("node", {"metadata": {"name": name, "labels": {HOST: name, ZONE: "a", "disk": "ssd"}}, "spec": {}, "status": {}}))
    for step in history:
        world.step(step)
    for pod in asked:
        world.step(("ask", pod))
