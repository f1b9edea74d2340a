"""replicaset-controller and replicationcontroller-controller: as many pods as asked for.

Laws:
1. A set's pods are those it controls by ownerReference; orphans that its selector matches are adopted, own pods that it no longer matches are
   released. Deciding counts active pods only (neither being deleted nor Succeeded or Failed).
2. Creates and deletes go out in bursts of at most BURST_MAX, creates in slow start (1, 2, 4 ...), and the next burst waits until the informer has
   shown the last one (Expectations): nothing is created twice because a cache lagged.
3. Status is written when it differs, at a bounded rate (Pace): 3,000 pods becoming ready are a few dozen status writes, not 3,000.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from fastkube.api.errors import ApiError
from fastkube.client.informer import key_of
from fastkube.controllers import victims
from fastkube.controllers.meta import (
    Labels,
    Object,
    controller_of,
    controller_uid,
    deleting,
    is_active,
    is_available,
    is_subset,
    matcher,
    owner_reference,
    ready_since,
    uid,
    with_condition,
    without_condition,
)
from fastkube.controllers.podtally import PENDING, READY, TERMINATING
from fastkube.controllers.runtime import BURST_MAX, Controller, Expectations, Pace, slow_start
from fastkube.runtime import clock

STATUS_INTERVAL_SECONDS = 0.1
STATUS_BURST = 10


class ReplicaSetController(Controller):
    name = "replicaset-controller"
    resource: ClassVar[str] = "apps/v1/replicasets"
    api_version: ClassVar[str] = "apps/v1"
    kind: ClassVar[str] = "ReplicaSet"

    def setup(self) -> None:
        self.expectations = Expectations()
        self.pace = Pace(STATUS_INTERVAL_SECONDS, STATUS_BURST)
        self.sets = self.informer(self.resource)
        self.sets.add_handler(self.enqueue, self._set_updated, self._set_deleted)
        self.owners = self.context.pod_owners()
        self.owners.route(self.kind, self)
        self.pods = self.informer("v1/pods")
        self.tally = self.owners.tally

    # --- events ---

    def _set_updated(self, old: Object, new: Object) -> None:
        if uid(old) != uid(new):
            self._set_deleted(old)
        self.enqueue(new)

    def _set_deleted(self, obj: Object) -> None:
        key = key_of(obj)
        self.expectations.forget(key)
        self.pace.forget(key)
        self.queue.add(key)

    def _owner(self, pod: Object) -> Object | None:
        """The set that controls the pod."""
        ref = controller_of(pod)
        owner = self.sets.get(pod["metadata"]["namespace"], ref["name"]) if ref else None
        return owner if owner is not None and ref is not None and uid(owner) == ref["uid"] else None

    def pod_added(self, pod: Object) -> None:
        owner = self._owner(pod)
        if owner is not None:
            key = key_of(owner)
            if deleting(pod):
                self.expectations.deleted(key, pod["metadata"]["name"])
            else:
                self.expectations.created(key)
            self._changed(owner)

    def pod_updated(self, old: Object, new: Object, counted: bool) -> None:
        if not counted:
            return
        owner = self._owner(new)
        if owner is not None:
            if deleting(new) and not deleting(old):
                self.expectations.deleted(key_of(owner), new["metadata"]["name"])
            self._changed(owner)

    def pod_deleted(self, pod: Object) -> None:
        owner = self._owner(pod)
        if owner is not None:
            self.expectations.deleted(key_of(owner), pod["metadata"]["name"])
            self._changed(owner)

    def orphan_seen(self, pod: Object) -> None:
        labels = pod["metadata"]["labels"]
        for candidate in self.sets.list(pod["metadata"]["namespace"]):
            if self.matches(candidate, labels):
                self.enqueue(candidate)

    def _changed(self, owner: Object) -> None:
        """Enqueue at once when there may be pods to make or delete; what is only for the status can wait a moment."""
        key = key_of(owner)
        wrong = self.tally.active(uid(owner)) != self._wanted(owner)
        if wrong and self.expectations.satisfied(key):
            self.queue.add(key)
        else:
            self.queue.add_after(key, self.pace.wait(key))

    # --- what differs for ReplicationControllers ---

    def matches(self, obj: Object, labels: Labels) -> bool:
        return matcher(obj["spec"].get("selector"))(labels)

    def supports_terminating(self) -> bool:
        return True

    # --- reconcile ---

    @staticmethod
    def _wanted(obj: Object) -> int:
        replicas = obj["spec"].get("replicas")
        return 1 if replicas is None else replicas

    async def reconcile(self, key: str) -> float | None:
        obj = self.sets.by_key(key)
        if obj is None:
            self.expectations.forget(key)
            return None
        failure: Exception | None = None
        expected = self.expectations.satisfied(key)
        if expected and not deleting(obj):
            await self._claim(obj)
            failure = await self._manage(key, obj)
        current = self.sets.by_key(key)
        if current is None or uid(current) != uid(obj):
            return None
        again = await self._update_status(key, current, failure, acted=expected)
        if failure is not None:
            raise failure
        return again

    async def _claim(self, obj: Object) -> None:
        """Adopt matching orphans, release own pods that no longer match."""
        owner_uid = uid(obj)
        matches = lambda labels: self.matches(obj, labels)  # noqa: E731
        if not self.tally.all_match(owner_uid, matches):
            for pod in self.owners.of(owner_uid):
                if not matches(pod["metadata"].get("labels") or {}) and not deleting(pod):
                    await self._patch_owners(pod, {"$patch": "delete", "uid": owner_uid})
        for pod in self.owners.orphans(obj["metadata"]["namespace"]):
            if is_active(pod) and matches(pod["metadata"].get("labels") or {}):
                await self._adopt(obj, pod)

    async def _adopt(self, obj: Object, pod: Object) -> None:
        fresh = await self.client.get(self.resource, obj["metadata"]["name"], obj["metadata"]["namespace"])  # the cache may not know that it is going
        if uid(fresh) != uid(obj) or deleting(fresh):
            raise ApiError(409, "Conflict", f"{self.kind} {key_of(obj)} is being deleted")
        await self._patch_owners(pod, owner_reference(obj, self.api_version, self.kind))

    async def _patch_owners(self, pod: Object, reference: Object) -> None:
        meta = pod["metadata"]
        patch = {"metadata": {"uid": meta["uid"], "ownerReferences": [reference]}}
        try:
            await self.client.patch("v1/pods", meta["name"], patch, meta["namespace"], kind="strategic")
        except ApiError as e:
            if e.code not in (404, 422):  # gone, or another one of that name: its event tells
                raise

    async def _manage(self, key: str, obj: Object) -> Exception | None:
        """Make or delete pods until as many are active as wanted; the first failure."""
        active = self.tally.active(uid(obj))
        missing = self._wanted(obj) - active
        if missing > 0:
            return await self._create_pods(key, obj, min(missing, BURST_MAX))
        if missing < 0:
            return await self._delete_pods(key, obj, min(-missing, BURST_MAX))
        return None

    async def _create_pods(self, key: str, obj: Object, count: int) -> Exception | None:
        template = obj["spec"]["template"]
        meta = obj["metadata"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": f"{meta['name']}-",
                "namespace": meta["namespace"],
                **{k: v for k, v in (template.get("metadata") or {}).items() if k in ("labels", "annotations", "finalizers") and v},
                "ownerReferences": [owner_reference(obj, self.api_version, self.kind)],
            },
            "spec": template["spec"],
        }
        self.expectations.expect_creations(key, count)

        async def create(_: int) -> None:
            try:
                made = await self.client.create("v1/pods", pod, meta["namespace"])
            except ApiError as e:
                self.expectations.created(key)
                if not _terminating_namespace(e):
                    self.recorder.event(obj, "Warning", "FailedCreate", f"Error creating: {e.message}")
                raise
            self.recorder.event(obj, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")

        tried, failure = await slow_start(count, create)
        self.expectations.created(key, count - tried)
        return None if isinstance(failure, ApiError) and _terminating_namespace(failure) else failure

    async def _delete_pods(self, key: str, obj: Object, count: int) -> Exception | None:
        own = [p for p in self.owners.of(uid(obj)) if is_active(p)]
        chosen = victims.choose(own, count, self._family(obj), clock.now())
        self.expectations.expect_deletions(key, [p["metadata"]["name"] for p in chosen])

        async def delete(pod: Object) -> None:
            name = pod["metadata"]["name"]
            try:
                await self.client.delete("v1/pods", name, pod["metadata"]["namespace"], uid=uid(pod))
            except ApiError as e:
                self.expectations.deleted(key, name)
                if e.code == 404:
                    return
                self.recorder.event(obj, "Warning", "FailedDelete", f"Error deleting: {e.message}")
                raise
            self.recorder.event(obj, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")

        results = await asyncio.gather(*(delete(p) for p in chosen), return_exceptions=True)
        return next((r for r in results if isinstance(r, Exception)), None)

    def _family(self, obj: Object) -> list[Object]:
        """Active pods of all sets with the same controller: a Deployment's pods, old and new."""
        parent = controller_uid(obj)
        if not parent:
            return self.owners.of(uid(obj))
        siblings = [s for s in self.sets.list(obj["metadata"]["namespace"]) if controller_uid(s) == parent]
        return [pod for s in siblings for pod in self.owners.of(uid(s))]

    # --- status ---

    async def _update_status(self, key: str, obj: Object, failure: Exception | None, acted: bool) -> float | None:
        status, again = self._status(obj, failure, acted)
        old = obj.get("status") or {}
        if status == {"replicas": 0, **old}:
            return again
        if self.behind(obj):
            return again
        wait = self.pace.wait(key)
        if wait > 0 and old.get("conditions") == status.get("conditions") and old.get("observedGeneration") == status.get("observedGeneration"):
            return wait
        self.pace.spend(key)
        self.wrote(await self.client.update(self.resource, {**obj, "status": status}, subresource="status"))
        return again

    def _status(self, obj: Object, failure: Exception | None, acted: bool) -> tuple[Object, float | None]:
        """(the status that is true now, seconds until a pod becomes available by waiting or None)."""
        owner_uid = uid(obj)
        tally = self.tally
        active = tally.count(owner_uid, PENDING, READY)
        ready = tally.count(owner_uid, READY)
        template_labels = (obj["spec"]["template"].get("metadata") or {}).get("labels") or {}
        available, again = self._available(obj, ready)
        counts = {
            "fullyLabeledReplicas": tally.active_matching(owner_uid, lambda labels: is_subset(template_labels, labels)),
            "readyReplicas": ready,
            "availableReplicas": available,
        }
        status: Object = {"replicas": active, **{k: v for k, v in counts.items() if v}}
        if self.supports_terminating():
            status["terminatingReplicas"] = tally.count(owner_uid, TERMINATING)
        status["observedGeneration"] = obj["metadata"].get("generation", 1)
        conditions = self._conditions(obj, failure, active, acted)
        if conditions:
            status["conditions"] = conditions
        return status, again

    def _available(self, obj: Object, ready: int) -> tuple[int, float | None]:
        min_ready = obj["spec"].get("minReadySeconds") or 0
        if not min_ready:
            return ready, None
        now = clock.now()
        pods = [p for p in self.owners.of(uid(obj)) if is_active(p)]
        waits = [since + min_ready - now for p in pods if (since := ready_since(p)) is not None and since + min_ready > now]
        return sum(is_available(p, min_ready, now) for p in pods), (min(waits) + 0.001 if waits else None)

    def _conditions(self, obj: Object, failure: Exception | None, active: int, acted: bool) -> list[Object]:
        conditions = list((obj.get("status") or {}).get("conditions") or ())
        if failure is not None:
            reason = "FailedCreate" if active < self._wanted(obj) else "FailedDelete"
            had = next((c for c in conditions if c["type"] == "ReplicaFailure"), None)
            if had is not None and had["reason"] == reason:
                return conditions
            new = {"type": "ReplicaFailure", "status": "True", "reason": reason, "message": str(failure), "lastTransitionTime": clock.rfc3339()}
            return with_condition(conditions, new)
        return without_condition(conditions, "ReplicaFailure") if acted else conditions


class ReplicationControllerController(ReplicaSetController):
    name = "replicationcontroller-controller"
    account = "replication-controller"
    component = "replication-controller"
    resource = "v1/replicationcontrollers"
    api_version = "v1"
    kind = "ReplicationController"

    def matches(self, obj: Object, labels: Labels) -> bool:
        selector = obj["spec"].get("selector") or {}
        return bool(selector) and is_subset(selector, labels)

    def supports_terminating(self) -> bool:
        return False


def _terminating_namespace(e: ApiError) -> bool:
    return any(c.get("reason") == "NamespaceTerminating" for c in (e.details or {}).get("causes") or ())
