"""Small housekeeping loops: pod-garbage-collector, clusterrole-aggregation, ttl-after-finished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastkube.api.errors import ApiError
from fastkube.controllers.meta import Object, condition, deleting, is_terminal, matcher, seconds, uid
from fastkube.controllers.runtime import Controller
from fastkube.runtime import clock, logs

POD_GC_PERIOD_SECONDS = 20.0
NODE_QUARANTINE_SECONDS = 40.0  # how long a node must be missing before its pods are taken for lost
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"

log = logs.get("housekeeping")


class PodGarbageCollector(Controller):
    """Deletes pods that nobody else will: of nodes that are gone, deleted before they had a node, and the oldest finished ones beyond a threshold."""

    name = "pod-garbage-collector-controller"
    account = "pod-garbage-collector"
    workers = 0

    def setup(self) -> None:
        self.pods = self.informer("v1/pods")
        self.nodes = self.informer("v1/nodes")
        self._missing: dict[str, float] = {}

    def loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {"collect": self._collect_for_ever}

    async def _collect_for_ever(self) -> None:
        while True:
            await asyncio.sleep(POD_GC_PERIOD_SECONDS)
            await self.collect()

    async def collect(self) -> None:
        pods = self.pods.list()
        await self._finished(pods)
        await self._orphaned(pods)
        for pod in pods:
            if deleting(pod) and not pod["spec"].get("nodeName"):
                await self._delete(pod)
            elif deleting(pod) and not is_terminal(pod) and self._out_of_service(pod["spec"].get("nodeName")):
                await self._delete(pod, "DeletionByPodGC", "PodGC: node is out of service")

    async def _finished(self, pods: list[Object]) -> None:
        threshold = self.options.terminated_pod_gc_threshold
        finished = [p for p in pods if is_terminal(p)]
        if threshold > 0 and len(finished) > threshold:
            finished.sort(key=lambda p: (seconds(p["metadata"].get("creationTimestamp")), p["metadata"]["name"]))
            for pod in finished[: len(finished) - threshold]:
                await self._delete(pod)

    async def _orphaned(self, pods: list[Object]) -> None:
        now = clock.monotonic()
        absent = {p["spec"]["nodeName"] for p in pods if p["spec"].get("nodeName") and self.nodes.get(None, p["spec"]["nodeName"]) is None}
        self._missing = {name: self._missing.get(name, now) for name in absent}
        lost = set()
        for name, since in self._missing.items():
            if now - since >= NODE_QUARANTINE_SECONDS and await self._really_gone(name):
                lost.add(name)
        for pod in pods:
            if pod["spec"].get("nodeName") in lost:
                await self._delete(pod, "DeletionByPodGC", "PodGC: node no longer exists")

    async def _really_gone(self, node: str) -> bool:
        try:
            await self.client.get("v1/nodes", node)
        except ApiError as e:
            return e.code == 404
        return False

    def _out_of_service(self, node: str | None) -> bool:
        found = self.nodes.get(None, node) if node else None
        return found is not None and any(t["key"] == OUT_OF_SERVICE for t in found["spec"].get("taints") or ()) and _not_ready(found)

    async def _delete(self, pod: Object, reason: str = "", message: str = "") -> None:
        meta = pod["metadata"]
        try:
            if reason and not is_terminal(pod):
                target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": clock.rfc3339()}
                status = {"phase": "Failed", "conditions": [target]}
                await self.client.patch(
                    "v1/pods", meta["name"], {"metadata": {"uid": uid(pod)}, "status": status}, meta["namespace"], kind="strategic", subresource="status"
                )
            await self.client.delete("v1/pods", meta["name"], meta["namespace"], grace_seconds=0, uid=uid(pod))
            log.info("pod collected", pod=f"{meta['namespace']}/{meta['name']}", reason=message or "finished or never scheduled")
        except ApiError as e:
            if e.code not in (404, 409):
                log.warning("pod could not be collected", pod=f"{meta['namespace']}/{meta['name']}", error=e.message)


def _not_ready(node: Object) -> bool:
    ready = condition(node, "Ready")
    return ready is None or ready["status"] != "True"


class ClusterRoleAggregation(Controller):
    """A ClusterRole with an aggregationRule has the rules of all ClusterRoles that it selects, in the order of their names."""

    name = "clusterrole-aggregation-controller"

    def setup(self) -> None:
        self.roles = self.informer("rbac.authorization.k8s.io/v1/clusterroles")
        self.roles.add_handler(self._changed, lambda old, new: self._changed(new), self._changed)

    def _changed(self, _: Object) -> None:
        for role in self.roles.list():
            if role.get("aggregationRule"):
                self.enqueue(role)

    async def reconcile(self, key: str) -> float | None:
        role = self.roles.by_key(key)
        if role is None or not role.get("aggregationRule") or self.behind(role):
            return None
        rules = aggregate(role, self.roles.list())
        if rules != (role.get("rules") or []):
            self.wrote(await self.client.update("rbac.authorization.k8s.io/v1/clusterroles", {**role, "rules": rules}))
        return None


def aggregate(role: Object, roles: list[Object]) -> list[Object]:
    """The rules that `role`'s selectors gather, each once. Pure."""
    rules: list[Object] = []
    chosen: dict[str, Object] = {}
    for selector in role["aggregationRule"].get("clusterRoleSelectors") or ():
        matches = matcher(selector)
        for other in sorted(roles, key=lambda r: r["metadata"]["name"]):
            if other["metadata"]["name"] != role["metadata"]["name"] and matches(other["metadata"].get("labels") or {}):
                chosen.setdefault(other["metadata"]["name"], other)
    for other in chosen.values():
        rules += [rule for rule in other.get("rules") or () if rule not in rules]
    return rules


class TTLAfterFinished(Controller):
    """A finished Job with ttlSecondsAfterFinished is deleted, with its pods, when that time is over."""

    name = "ttl-after-finished-controller"

    def setup(self) -> None:
        self.jobs = self.informer("batch/v1/jobs")
        self.jobs.add_handler(self.enqueue, lambda old, new: self.enqueue(new))

    async def reconcile(self, key: str) -> float | None:
        job = self.jobs.by_key(key)
        ttl = job["spec"].get("ttlSecondsAfterFinished") if job is not None else None
        if job is None or deleting(job) or ttl is None:
            return None
        finished = next((c for c in (job.get("status") or {}).get("conditions") or () if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)
        if finished is None:
            return None
        left = seconds(finished.get("lastTransitionTime")) + ttl - clock.now()
        if left > 0:
            return left
        meta = job["metadata"]
        try:
            fresh = await self.client.get("batch/v1/jobs", meta["name"], meta["namespace"])
            if fresh["spec"].get("ttlSecondsAfterFinished") != ttl or deleting(fresh):
                return None
            await self.client.delete("batch/v1/jobs", meta["name"], meta["namespace"], uid=uid(job), propagation="Foreground")
        except ApiError as e:
            if e.code != 404:
                raise
        return None
