"""Rollout arithmetic: the laws of rollout.py over every rollout hypothesis can think of, and upstream's numbers where they are known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.controllers import rollout
from fastkube.controllers.rollout import Fence

Object = dict[str, Any]


def deployment(replicas: int = 10, surge: Any = "25%", unavailable: Any = "25%", kind: str = "RollingUpdate") -> Object:
    strategy = {"type": kind, "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}} if kind == "RollingUpdate" else {"type": kind}
    return {"metadata": {"name": "d", "generation": 1}, "spec": {"replicas": replicas, "strategy": strategy, "template": {"spec": {"v": 1}}}, "status": {}}


def replica_set(name: str, replicas: int, available: int | None = None, created: int = 0, **annotations: str) -> Object:
    return {
        "metadata": {
            "name": name,
            "generation": 1,
            "creationTimestamp": f"2026-01-01T00:00:{created:02d}Z",
            "annotations": {k.replace("_", "-"): v for k, v in annotations.items()},
        },
        "spec": {"replicas": replicas, "template": {"spec": {"v": name}}},
        "status": {"replicas": replicas, "availableReplicas": replicas if available is None else available, "observedGeneration": 1},
    }


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (10, "25%", "25%", Fence(3, 2)),
        (3, "25%", "25%", Fence(1, 0)),
        (1, "0%", "0%", Fence(0, 1)),
        (4, 0, 0, Fence(0, 1)),
        (2, 1, 5, Fence(1, 2)),
        (0, "50%", "50%", Fence(0, 0)),
        (10, "100%", "0%", Fence(10, 0)),
    ],
)
def test_fence(replicas: int, surge: Any, unavailable: Any, expected: Fence) -> None:
    assert rollout.fence(deployment(replicas, surge, unavailable)) == expected


bound = st.one_of(st.integers(0, 30), st.integers(0, 100).map(lambda p: f"{p}%"))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 30), bound, bound, st.lists(st.integers(0, 20), min_size=1, max_size=4), st.data())
def test_every_rollout_keeps_its_fence_and_ends(replicas: int, surge: Any, unavailable: Any, old_sizes: list[int], data: st.DataObject) -> None:
    """A world of sets whose pods become available (or break) in any order, driven by the arithmetic until it rests."""
    d = deployment(replicas, surge, unavailable)
    old = [replica_set(f"old{i}", n, created=i) for i, n in enumerate(old_sizes)]
    new = replica_set("new", 0, created=50)
    limits = rollout.fence(d)
    sets = [*old, new]
    for rs in old:
        rs["status"]["availableReplicas"] = data.draw(st.integers(0, rs["spec"]["replicas"]))
    breaking = data.draw(st.integers(0, 5))
    for step in range(400):
        before = sum(rs["spec"]["replicas"] for rs in sets)
        available_before = sum(rs["status"]["availableReplicas"] for rs in sets)
        size = rollout.next_new_size(d, sets, new)
        if size != new["spec"]["replicas"]:
            assert size <= replicas
            new["spec"]["replicas"] = size
            after = sum(rs["spec"]["replicas"] for rs in sets)
            assert after <= max(before, replicas + limits.surge)
        else:
            cuts = rollout.shrink_old(d, old, new)
            lost = 0
            for rs, size in cuts:
                assert 0 <= size < rs["spec"]["replicas"]
                # the ReplicaSet controller deletes what is not ready first
                lost += max(rs["status"]["availableReplicas"] - size, 0)
                rs["spec"]["replicas"] = size
                rs["status"]["availableReplicas"] = min(rs["status"]["availableReplicas"], size)
            assert lost == 0 or available_before - lost >= replicas - limits.unavailable
            if not cuts and not any(rs["spec"]["replicas"] for rs in old) and new["status"]["availableReplicas"] == replicas:
                break
        unready = new["spec"]["replicas"] - new["status"]["availableReplicas"]
        if unready:
            new["status"]["availableReplicas"] += data.draw(st.integers(0 if step < 50 else 1, unready))
        if breaking and step < 20:
            breaking -= 1
            for rs in old:
                rs["status"]["availableReplicas"] = data.draw(st.integers(0, rs["status"]["availableReplicas"]))
    else:
        pytest.fail("the rollout does not end")
    assert new["spec"]["replicas"] == replicas


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 50), st.integers(0, 50), bound, st.lists(st.integers(1, 40), min_size=2, max_size=5))
def test_proportional_scaling_hits_the_sum(before: int, after: int, surge: Any, sizes: list[int]) -> None:
    d = deployment(after, surge)
    d["status"] = {"replicas": sum(sizes)}
    sets = [replica_set(f"s{i}", n, created=i) for i, n in enumerate(sizes)]
    sized = deployment(before, surge)
    for rs in sets:
        rs["metadata"]["annotations"] = dict(rollout.size_annotations(sized)) if before else {}
    planned = rollout.scale(d, sets, None)
    assert sum(n for _, n in planned) == (after + rollout.fence(d).surge if after else 0)
    assert all(n >= 0 for _, n in planned) and len(planned) == len(sets)


def test_proportional_scaling_as_upstream_documents_it() -> None:
    """10 replicas, surge 3, 8 old and 5 new, scaled to 15: 18 in all, 11 and 7."""
    d = deployment(15, 3, 2)
    old = replica_set("old", 8, created=0)
    new = replica_set("new", 5, available=0, created=1)
    for rs in (old, new):
        rs["metadata"]["annotations"] = {rollout.DESIRED_REPLICAS: "10", rollout.MAX_REPLICAS: "13"}
    assert {rs["metadata"]["name"]: n for rs, n in rollout.scale(d, [old, new], new)} == {"old": 11, "new": 7}
    assert rollout.is_scaling(d, [old, new])


def test_scaling_one_set_or_a_finished_one() -> None:
    d = deployment(5)
    one = replica_set("one", 2)
    assert rollout.scale(d, [one, replica_set("empty", 0)], one) == [(one, 5)]
    assert rollout.scale(d, [], None) == []
    idle = replica_set("idle", 0, created=3)
    assert rollout.scale(d, [replica_set("older", 0), idle], None) == [(idle, 5)]
    new, old = replica_set("new", 5, created=1), replica_set("old", 2)
    new["metadata"]["annotations"] = {rollout.DESIRED_REPLICAS: "5"}
    assert rollout.scale(d, [old, new], new) == [(old, 0)]


def test_revisions_and_their_history() -> None:
    d = deployment()
    d["metadata"]["annotations"] = {"kubernetes.io/change-cause": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}", rollout.REVISION: "7"}
    first = rollout.new_set_annotations(d, None, 1, exists=False)
    assert first == {"kubernetes.io/change-cause": "x", rollout.REVISION: "1", rollout.DESIRED_REPLICAS: "10", rollout.MAX_REPLICAS: "13"}
    third = rollout.new_set_annotations(d, first, 3, exists=True)  # rolled back to
    assert third[rollout.REVISION] == "3" and third[rollout.REVISION_HISTORY] == "1"
    assert rollout.new_set_annotations(d, third, 3, exists=True) == third
    fifth = rollout.new_set_annotations(d, third, 5, exists=True)
    assert fifth[rollout.REVISION_HISTORY] == "1,3"


def test_history_limit_spares_what_still_has_pods() -> None:
    d = deployment()
    old = [replica_set(f"r{i}", 0, created=i) for i in range(5)]
    for i, rs in enumerate(old):
        rs["metadata"]["annotations"] = {rollout.REVISION: str(i + 1)}
    d["spec"]["revisionHistoryLimit"] = 2
    assert [rs["metadata"]["name"] for rs in rollout.sets_to_forget(d, old)] == ["r0", "r1", "r2"]
    old[1]["status"]["replicas"] = 1
    assert [rs["metadata"]["name"] for rs in rollout.sets_to_forget(d, old)] == ["r0", "r2"]
    d["spec"]["revisionHistoryLimit"] = 0
    assert len(rollout.sets_to_forget(d, old)) == 4
    d["spec"]["revisionHistoryLimit"] = None
    assert rollout.sets_to_forget(d, old) == []


def test_template_identity_ignores_the_hash_label_only() -> None:
    d = deployment()
    d["spec"]["template"] = {"metadata": {"labels": {"app": "x"}, "creationTimestamp": None}, "spec": {"a": 1, "b": 2}}
    rs = {"metadata": {"name": "r"}, "spec": {"template": {"metadata": {"labels": {"app": "x", rollout.HASH_LABEL: "h"}}, "spec": {"b": 2, "a": 1}}}}
    assert rollout.find_new(d, [rs]) is rs
    assert rollout.template_hash(rollout.template_of(d), 0) == rollout.template_hash(rollout.template_of(rs), 0)
    assert rollout.template_hash(rollout.template_of(d), 1) != rollout.template_hash(rollout.template_of(d), 0)
    rs["spec"]["template"]["spec"]["a"] = 3
    assert rollout.find_new(d, [rs]) is None
