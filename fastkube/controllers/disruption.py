"""disruption-controller: how many pods of each PodDisruptionBudget may be evicted now. The API server's eviction subresource goes by this status.

The eviction writes itself into status.disruptedPods before it deletes; such a pod counts as unhealthy until it is gone, or, when it was not
deleted after all, until DELETION_TIMEOUT_SECONDS are over.
"""

from __future__ import annotations

from typing import Any

from fastkube.controllers.meta import Object, controller_of, deleting, is_active, is_ready, matcher, resolve_int_or_percent, seconds, uid
from fastkube.controllers.runtime import Controller, Pace
from fastkube.runtime import clock

BUDGETS = "policy/v1/poddisruptionbudgets"
DELETION_TIMEOUT_SECONDS = 120.0
STATUS_INTERVAL_SECONDS, STATUS_BURST = 0.1, 10

# kinds that own pods, and who may in turn own them
_OWNERS = {
    ("apps", "ReplicaSet"): "apps/v1/replicasets",
    ("", "ReplicationController"): "v1/replicationcontrollers",
    ("apps", "StatefulSet"): "apps/v1/statefulsets",
}


def desired(budget: Object, pods: int, scale: int) -> tuple[int, int]:
    """(expected pods, healthy ones wanted). `pods`: how many match; `scale`: how many their controllers want. Pure."""
    spec = budget["spec"]
    if spec.get("maxUnavailable") is not None:
        return scale, max(scale - resolve_int_or_percent(spec["maxUnavailable"], scale, round_up=True), 0)
    minimum = spec.get("minAvailable", 1)
    if isinstance(minimum, int):
        return pods, minimum
    return scale, resolve_int_or_percent(minimum, scale, round_up=True)


def status_of(budget: Object, pods: list[Object], scale: int, now: float) -> tuple[Object, float | None]:
    """(the status, seconds until a disrupted pod's time is over). Pure but for the conditions' time stamps."""
    old = budget.get("status") or {}
    expected, wanted = desired(budget, len(pods), scale)
    by_name = {p["metadata"]["name"]: p for p in pods}
    disrupted: dict[str, Any] = {}
    waits: list[float] = []
    for name, stamp in (old.get("disruptedPods") or {}).items():
        pod = by_name.get(name)
        left = seconds(stamp) + DELETION_TIMEOUT_SECONDS - now
        if pod is not None and not deleting(pod) and left > 0:
            disrupted[name] = stamp
            waits.append(left)
    healthy = sum(is_ready(p) and is_active(p) and p["metadata"]["name"] not in disrupted for p in pods)
    allowed = max(healthy - wanted, 0) if expected > 0 else 0
    enough = {
        "type": "DisruptionAllowed",
        "status": "True" if allowed else "False",
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
    }
    had = next((c for c in old.get("conditions") or () if c["type"] == "DisruptionAllowed"), None)
    generation = budget["metadata"].get("generation", 0)
    changed = clock.rfc3339() if had is None or had["status"] != enough["status"] else had["lastTransitionTime"]
    enough |= {"observedGeneration": generation, "lastTransitionTime": changed}
    status = {
        "observedGeneration": generation, "disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": wanted, "expectedPods": expected,
        "conditions": [*(c for c in old.get("conditions") or () if c["type"] != "DisruptionAllowed"), enough],
    }  # fmt: skip
    if disrupted:
        status["disruptedPods"] = disrupted
    return status, (min(waits) + 0.01 if waits else None)


class DisruptionController(Controller):
    name = "disruption-controller"
    component = "controllermanager"

    def setup(self) -> None:
        self.pace = Pace(STATUS_INTERVAL_SECONDS, STATUS_BURST)
        self.budgets = self.informer(BUDGETS)
        self.budgets.add_handler(self.enqueue, lambda old, new: self.enqueue(new))
        self.pods = self.informer("v1/pods")
        self.pods.add_handler(self._pod_changed, self._pod_updated, self._pod_changed)
        self.deployments = self.informer("apps/v1/deployments")
        self.deployments.add_handler(on_update=self._scaled)
        self.owners = {key: self.informer(resource) for key, resource in _OWNERS.items()}
        for informer in self.owners.values():
            informer.add_handler(on_update=self._scaled)

    def _pod_changed(self, pod: Object) -> None:
        meta = pod["metadata"]
        for budget in self.budgets.list(meta["namespace"]):
            if matcher(budget["spec"].get("selector"))(meta.get("labels") or {}):
                key = f"{meta['namespace']}/{budget['metadata']['name']}"
                self.queue.add_after(key, self.pace.wait(key))

    def _pod_updated(self, old: Object, new: Object) -> None:
        if old["metadata"].get("labels") != new["metadata"].get("labels"):
            self._pod_changed(old)
            self._pod_changed(new)
        elif is_ready(old) != is_ready(new) or is_active(old) != is_active(new):
            self._pod_changed(new)

    def _scaled(self, old: Object, new: Object) -> None:
        if old["spec"].get("replicas") != new["spec"].get("replicas"):
            for budget in self.budgets.list(new["metadata"]["namespace"]):
                self.enqueue(budget)

    async def reconcile(self, key: str) -> float | None:
        budget = self.budgets.by_key(key)
        if budget is None or deleting(budget):
            self.pace.forget(key)
            return None
        if self.behind(budget):
            return None
        matches = matcher(budget["spec"].get("selector"))
        pods = [p for p in self.pods.list(budget["metadata"]["namespace"]) if is_active(p) and matches(p["metadata"].get("labels") or {})]
        try:
            status, again = status_of(budget, pods, self._scale(budget, pods), clock.now())
        except ValueError as e:
            self.recorder.event(budget, "Warning", "CalculateExpectedPodCountFailed", f"Failed to calculate the number of expected pods: {e}")
            return None
        if status == (budget.get("status") or {}):
            return again
        wait = self.pace.wait(key)
        if wait > 0:
            return wait
        self.pace.spend(key)
        self.wrote(await self.client.update(BUDGETS, {**budget, "status": status}, subresource="status"))
        return again

    def _scale(self, budget: Object, pods: list[Object]) -> int:
        """How many pods the controllers of these pods want; pods of nobody are not counted (and told of)."""
        refs = {ref["uid"]: ref for pod in pods if (ref := controller_of(pod)) is not None}
        scales = dict(found for ref in refs.values() if (found := self._scale_of(ref, budget["metadata"]["namespace"])) is not None)
        if any(controller_of(pod) is None for pod in pods) and (
            budget["spec"].get("maxUnavailable") is not None or isinstance(budget["spec"].get("minAvailable"), str)
        ):
            self.recorder.event(
                budget,
                "Warning",
                "UnmanagedPods",
                f"Pods selected by this PodDisruptionBudget (selector: {budget['spec'].get('selector')}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior.",
            )
        return sum(scales.values())

    def _scale_of(self, ref: Object, namespace: str) -> tuple[str, int] | None:
        """(uid, replicas) of the topmost controller; a ReplicaSet's Deployment speaks for it."""
        group = ref["apiVersion"].rpartition("/")[0]
        informer = self.owners.get((group, ref["kind"]))
        if informer is None:
            return None
        owner = informer.get(namespace, ref["name"])
        if owner is None or uid(owner) != ref["uid"]:
            return None
        above = controller_of(owner)
        if above is not None and above["kind"] == "Deployment":
            deployment = self.deployments.get(namespace, above["name"])
            if deployment is not None and uid(deployment) == above["uid"]:
                owner = deployment
        replicas = owner["spec"].get("replicas")
        return uid(owner), 1 if replicas is None else replicas
