"""Which pods go first, and the tally of pods against counting them anew."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.controllers import podtally, victims
from fastkube.controllers.meta import controller_uid
from fastkube.controllers.podowners import PodOwners
from fastkube.controllers.podtally import pod_state
from fastkube.runtime import clock

NOW = 1_700_000_000.0
Object = dict[str, Any]


def pod(name: str, node: str = "n1", phase: str = "Running", ready: float | None = 100.0, age: float = 1000.0, cost: str = "", restarts: int = 0) -> Object:
    meta: Object = {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": clock.rfc3339(NOW - age)}
    if cost:
        meta["annotations"] = {victims.DELETION_COST: cost}
    conditions = (
        [{"type": "Ready", "status": "True", "lastTransitionTime": clock.rfc3339(NOW - ready)}] if ready is not None else [{"type": "Ready", "status": "False"}]
    )
    status = {"phase": phase, "conditions": conditions, "containerStatuses": [{"restartCount": restarts}]}
    return {"metadata": meta, "spec": {"nodeName": node} if node else {}, "status": status}


def order(*pods: Object, family: list[Object] | None = None) -> str:
    """The letters of the pods in the order in which they would be deleted, one more each time."""
    gone: list[str] = []
    for count in range(1, len(pods) + 1):
        chosen = [p["metadata"]["name"] for p in victims.choose(pods, count, family or pods, NOW)]
        gone += [n for n in chosen if n not in gone]
    return "".join(gone)


def test_each_rule_beats_the_next() -> None:
    assert order(pod("b"), pod("a", node="", phase="Pending", ready=None, cost="9")) == "ab"
    assert order(pod("c"), pod("b", phase="Unknown"), pod("a", phase="Pending")) == "abc"
    assert order(pod("b", cost="-100"), pod("a", ready=None)) == "ab"
    assert order(pod("b"), pod("a", cost="-5"), pod("c", cost="5")) == "abc"
    crowded = [pod("x"), pod("y"), pod("z", node="n2")]
    assert order(pod("b", node="n2", ready=1), pod("a", ready=99999), family=crowded) == "ab"
    assert order(pod("b", ready=10000, restarts=9), pod("a", ready=10)) == "ab"
    assert order(pod("b", age=10), pod("a", restarts=3, age=99999)) == "ab"
    assert order(pod("b", age=100000), pod("a", age=10)) == "ab"


def test_about_the_same_age_is_a_lot_by_uid() -> None:
    assert order(pod("b", age=1000), pod("a", age=1020)) == "ab"
    assert order(pod("b", age=1020), pod("a", age=1000)) == "ab"


def test_deletion_cost_reads_only_numbers() -> None:
    for text, value in (("7", 7), ("-7", -7), ("x", 0), ("1.5", 0), ("+1", 0), ("007", 0), ("0", 0), ("99999999999", 0), ("", 0)):
        assert victims.deletion_cost({"metadata": {"annotations": {victims.DELETION_COST: text}}}) == value


def owned(name: str, owner: str, label: str, state: str) -> Object:
    obj = pod(name, ready=1 if state == "ready" else None, phase={"failed": "Failed", "done": "Succeeded"}.get(state, "Running"))
    obj["metadata"]["labels"] = {"l": label}
    if owner:
        obj["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}]
    if state == "terminating":
        obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return obj


pods = st.builds(
    owned,
    st.sampled_from("abcd"),
    st.sampled_from(["", "rs1", "rs2"]),
    st.sampled_from("xy"),
    st.sampled_from(["ready", "pending", "failed", "done", "terminating"]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), pods), max_size=60))
def test_the_tally_equals_a_recount_after_any_history(history: list[tuple[bool, Object]]) -> None:
    informer = Informer(Client(None), "v1/pods")  # type: ignore[arg-type]
    owners = PodOwners(informer)
    for put, obj in history:
        key = f"ns/{obj['metadata']['name']}"
        if put:
            informer._stored(key, obj)
        else:
            informer._deleted(key)
        now = informer.list()
        for owner in ("rs1", "rs2"):
            mine = [p for p in now if controller_uid(p) == owner]
            recount = Counter(pod_state(p) for p in mine)
            assert all(owners.tally.count(owner, s) == recount[s] for s in (podtally.TERMINAL, podtally.TERMINATING, podtally.PENDING, podtally.READY))
            matching = [p for p in mine if p["metadata"]["labels"]["l"] == "x"]
            is_x = lambda labels: labels.get("l") == "x"  # noqa: E731
            assert owners.tally.active_matching(owner, is_x) == sum(pod_state(p) >= podtally.PENDING for p in matching)
            assert owners.tally.all_match(owner, is_x) == (len(matching) == len(mine))
            assert sorted(map(id, owners.of(owner))) == sorted(map(id, mine))
        assert sorted(map(id, owners.orphans("ns"))) == sorted(id(p) for p in now if not controller_uid(p))
        if not now:
            assert owners.tally._counts == {}
