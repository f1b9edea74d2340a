"""PodDisruptionBudgets: the numbers, and evictions against the real API server."""

from __future__ import annotations

from typing import Any

import pytest

from fastkube.api.errors import ApiError
from fastkube.controllers import disruption
from fastkube.runtime import clock
from tests.controllers.world import World, deployment, world

BUDGETS, PODS = "policy/v1/poddisruptionbudgets", "v1/pods"


@pytest.mark.parametrize(
    ("spec", "pods", "scale", "expected"),
    [
        ({"minAvailable": 2}, 3, 5, (3, 2)),
        ({"minAvailable": "50%"}, 3, 5, (5, 3)),
        ({"maxUnavailable": 1}, 3, 5, (5, 4)),
        ({"maxUnavailable": "30%"}, 3, 5, (5, 3)),
        ({"maxUnavailable": 9}, 3, 5, (5, 0)),
        ({}, 3, 5, (3, 1)),
    ],
)
def test_how_many_must_stay(spec: Any, pods: int, scale: int, expected: tuple[int, int]) -> None:
    assert disruption.desired({"spec": spec}, pods, scale) == expected


def pod(name: str, ready: bool = True, deleting: bool = False) -> dict[str, Any]:
    meta = {"name": name} | ({"deletionTimestamp": "x"} if deleting else {})
    return {"metadata": meta, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}}


def test_disrupted_pods_count_until_they_are_gone_or_their_time_is_over() -> None:
    now = 1_700_000_000.0
    fresh, stale = clock.rfc3339(now - 10), clock.rfc3339(now - 500)
    budget = {"metadata": {"generation": 2}, "spec": {"minAvailable": 1}, "status": {"disruptedPods": {"a": fresh, "b": stale, "gone": fresh}}}
    status, again = disruption.status_of(budget, [pod("a"), pod("b"), pod("c", ready=False)], 3, now)
    assert status["disruptedPods"] == {"a": fresh} and status["currentHealthy"] == 1 and status["disruptionsAllowed"] == 0
    assert again == pytest.approx(110.01)
    assert status["conditions"][0]["reason"] == "InsufficientPods" and status["observedGeneration"] == 2


async def evict(w: World, name: str) -> int:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
    try:
        await w.client.create(PODS, body, "default", name=name, subresource="eviction")
    except ApiError as e:
        return e.code
    return 201


async def test_a_budget_holds_evictions_back() -> None:
    async with world() as w:
        await w.start("serviceaccount-controller", "deployment-controller", "replicaset-controller", "disruption-controller")
        kubelet = await w.run_pods()
        await w.client.create("apps/v1/deployments", deployment(replicas=3))
        budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "pdb", "namespace": "default"}}
        await w.client.create(BUDGETS, {**budget, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}})

        async def allowed(count: int) -> bool:
            s = (await w.client.get(BUDGETS, "pdb", "default")).get("status") or {}
            return s.get("disruptionsAllowed") == count and s.get("expectedPods") == 3

        await w.until(lambda: allowed(1))
        s = (await w.client.get(BUDGETS, "pdb", "default"))["status"]
        assert (s["currentHealthy"], s["desiredHealthy"]) == (3, 2) and s["conditions"][0]["reason"] == "SufficientPods"
        pods = await w.items(PODS)
        await kubelet.report(pods[0], False)
        await w.until(lambda: allowed(0))
        assert await evict(w, pods[1]["metadata"]["name"]) == 429
        await kubelet.report(pods[0], True)
        await w.until(lambda: allowed(1))
        kubelet.ready = lambda pod: False  # its replacement does not come up
        assert await evict(w, pods[1]["metadata"]["name"]) == 201
        assert await evict(w, pods[2]["metadata"]["name"]) == 429, "the second at once is one too many"

        async def gone() -> bool:
            return await w.exists(PODS, pods[1]["metadata"]["name"], "default") is None

        await w.until(gone)
        assert not await w.rest()
