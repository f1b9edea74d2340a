"""deployment-controller: moves a Deployment's pods from one template to the next through ReplicaSets.

Each reconcile does one step (a set made, scaled, or old ones cleaned up) or writes the status; the ReplicaSets' events call for the next. The
arithmetic is in rollout.py; here is what is read and written. Writes are guarded by resourceVersion, so a step decided on an outdated
cache fails and is decided again.
"""

from __future__ import annotations

from typing import Any

from fastkube.api.errors import ApiError
from fastkube.api.selectors import Labels
from fastkube.client.informer import key_of
from fastkube.controllers import rollout
from fastkube.controllers.meta import (
    Object,
    condition,
    controller_of,
    controller_uid,
    deleting,
    is_terminal,
    matcher,
    owner_reference,
    seconds,
    uid,
    without_condition,
)
from fastkube.controllers.rollout import HASH_LABEL, REVISION, replicas
from fastkube.controllers.runtime import Controller, Pace
from fastkube.runtime import clock

DEPLOYMENTS = "apps/v1/deployments"
SETS = "apps/v1/replicasets"
STATUS_INTERVAL_SECONDS = 0.1
STATUS_BURST = 10
NO_DEADLINE = 2**31 - 1

AVAILABLE, PROGRESSING, REPLICA_FAILURE = "Available", "Progressing", "ReplicaFailure"
TIMED_OUT, COMPLETE = "ProgressDeadlineExceeded", "NewReplicaSetAvailable"


class DeploymentController(Controller):
    name = "deployment-controller"

    def setup(self) -> None:
        self.pace = Pace(STATUS_INTERVAL_SECONDS, STATUS_BURST)
        self.deployments = self.informer(DEPLOYMENTS)
        self.deployments.add_handler(self.enqueue, self._deployment_updated, self._deployment_deleted)
        self.sets = self.informer(SETS)
        self.sets.add_index("owner", lambda rs: [controller_uid(rs)])
        self.sets.add_handler(self._set_changed, self._set_updated, self._set_changed)
        self.owners = self.context.pod_owners()
        self.informer("v1/pods").add_handler(on_delete=self._pod_deleted)

    # --- events ---

    def _deployment_updated(self, old: Object, new: Object) -> None:
        if uid(old) != uid(new):
            self._deployment_deleted(old)
        self.enqueue(new)

    def _deployment_deleted(self, deployment: Object) -> None:
        self.pace.forget(key_of(deployment))
        self.enqueue(deployment)

    def _owner(self, rs: Object) -> Object | None:
        ref = controller_of(rs)
        if ref is None or ref["kind"] != "Deployment":
            return None
        owner = self.deployments.get(rs["metadata"]["namespace"], ref["name"])
        return owner if owner is not None and uid(owner) == ref["uid"] else None

    def _set_changed(self, rs: Object) -> None:
        owner = self._owner(rs)
        if owner is not None:
            self.enqueue(owner)
        elif controller_of(rs) is None and not deleting(rs):
            labels = rs["metadata"].get("labels") or {}
            for deployment in self.deployments.list(rs["metadata"]["namespace"]):
                if labels and matcher(deployment["spec"].get("selector"))(labels):
                    self.enqueue(deployment)

    def _set_updated(self, old: Object, new: Object) -> None:
        if controller_uid(old) != controller_uid(new):
            self._set_changed(old)
        self._set_changed(new)

    def _pod_deleted(self, pod: Object) -> None:
        """Recreate waits for the last old pod to be gone."""
        ref = controller_of(pod)
        if ref is None or ref["kind"] != "ReplicaSet":
            return
        rs = self.sets.get(pod["metadata"]["namespace"], ref["name"])
        owner = self._owner(rs) if rs is not None else None
        if owner is not None and not rollout.is_rolling(owner):
            self.enqueue(owner)

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        deployment = self.deployments.by_key(key)
        if deployment is None or self.behind(deployment):
            return None
        if not _selects_something(deployment):
            self.recorder.event(deployment, "Warning", "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
            return None
        sets = await self._claim(deployment)
        if any(self.behind(rs) for rs in sets):
            return None
        return await _Sync(self, deployment, sets).run()

    async def _claim(self, deployment: Object) -> list[Object]:
        """The Deployment's sets: orphans that match adopted, own ones that no longer match released."""
        namespace, owner_uid = deployment["metadata"]["namespace"], uid(deployment)
        matches = matcher(deployment["spec"].get("selector"))
        own = []
        for rs in self.sets.by_index("owner", owner_uid):
            if matches(rs["metadata"].get("labels") or {}):
                own.append(rs)
            elif not deleting(rs):
                await self._patch_owner(rs, {"$patch": "delete", "uid": owner_uid})
        if deleting(deployment):
            return own
        for rs in self.sets.by_index("owner", ""):
            if rs["metadata"]["namespace"] == namespace and not deleting(rs) and matches(rs["metadata"].get("labels") or {}):
                fresh = await self.client.get(DEPLOYMENTS, deployment["metadata"]["name"], namespace)
                if uid(fresh) != owner_uid or deleting(fresh):
                    raise ApiError(409, "Conflict", f"Deployment {key_of(deployment)} is being deleted")
                await self._patch_owner(rs, owner_reference(deployment, "apps/v1", "Deployment"))
        return own

    async def _patch_owner(self, rs: Object, reference: Object) -> None:
        patch = {"metadata": {"uid": uid(rs), "ownerReferences": [reference]}}
        try:
            await self.client.patch(SETS, rs["metadata"]["name"], patch, rs["metadata"]["namespace"], kind="strategic")
        except ApiError as e:
            if e.code not in (404, 422):
                raise

    async def write_status(self, deployment: Object, status: Object) -> Object:
        self.pace.spend(key_of(deployment))
        answer = await self.client.update(DEPLOYMENTS, {**deployment, "status": status}, subresource="status")
        self.wrote(answer)
        return answer

    async def resize_set(self, rs: Object, size: int, annotations: Labels) -> Object:
        """A patch, as only we set sizes (and `behind` keeps us from deciding on old ones): the set's own status writes do not get in its way."""
        patch = {"metadata": {"uid": uid(rs), "annotations": annotations}, "spec": {"replicas": size}}
        answer = await self.client.patch(SETS, rs["metadata"]["name"], patch, rs["metadata"]["namespace"], kind="merge")
        self.wrote(answer)
        return answer

    async def write_set(self, rs: Object) -> Object:
        answer = await self.client.update(SETS, rs)
        self.wrote(answer)
        return answer


class _Sync:
    """One reconcile of one Deployment; `deployment` and `sets` follow what is written on the way."""

    def __init__(self, controller: DeploymentController, deployment: Object, sets: list[Object]) -> None:
        self.c = controller
        self.deployment = deployment
        self.sets = {rs["metadata"]["name"]: rs for rs in sets}
        new = rollout.find_new(deployment, sets)
        self.new_name = new["metadata"]["name"] if new else None

    @property
    def new(self) -> Object | None:
        return self.sets.get(self.new_name) if self.new_name else None

    @property
    def old(self) -> list[Object]:
        return [rs for name, rs in self.sets.items() if name != self.new_name]

    @property
    def all(self) -> list[Object]:
        return list(self.sets.values())

    async def run(self) -> float | None:
        deployment = self.deployment
        if deleting(deployment):
            return await self._write_counts()
        await self._mark_paused()
        if deployment["spec"].get("paused"):
            await self._adopt_new(create=False)
            await self._scale()
            await self._clean_up()
            return await self._write_counts()
        if rollout.is_scaling(self.deployment, self.all):
            await self._adopt_new(create=False)
            await self._scale()
            return await self._write_counts()
        return await (self._rolling() if rollout.is_rolling(deployment) else self._recreate())

    # --- strategies ---

    async def _rolling(self) -> float | None:
        await self._adopt_new(create=True)
        new = self.new
        assert new is not None
        size = rollout.next_new_size(self.deployment, self.all, new)
        if await self._resize(new, size):
            return await self._write_progress()
        for rs, size in rollout.shrink_old(self.deployment, self.old, new):
            await self._resize(rs, size)
        if rollout.is_complete(self.deployment, self.deployment.get("status") or {}):
            await self._clean_up()
        return await self._write_progress()

    async def _recreate(self) -> float | None:
        await self._adopt_new(create=False)
        stopping = [await self._resize(rs, 0) for rs in self.old if replicas(rs)]
        if any(stopping) or self._old_pods_left():
            return await self._write_progress()
        await self._adopt_new(create=True)
        assert self.new is not None
        await self._resize(self.new, replicas(self.deployment))
        if rollout.is_complete(self.deployment, self.deployment.get("status") or {}):
            await self._clean_up()
        return await self._write_progress()

    def _old_pods_left(self) -> bool:
        return any(
            rollout.status_number(rs, "replicas") > 0 or any(not is_terminal(p) for p in self.c.owners.of(uid(rs)))
            for rs in self.old
        )  # fmt: skip

    async def _scale(self) -> None:
        for rs, size in rollout.scale(self.deployment, self.all, self.new):
            await self._resize(rs, size)

    async def _clean_up(self) -> None:
        for rs in rollout.sets_to_forget(self.deployment, self.old):
            try:
                await self.c.client.delete(SETS, rs["metadata"]["name"], rs["metadata"]["namespace"], uid=uid(rs))
            except ApiError as e:
                if e.code != 404:
                    raise
            self.sets.pop(rs["metadata"]["name"], None)

    # --- sets ---

    async def _adopt_new(self, create: bool) -> None:
        """Bring the newest set's annotations and the Deployment's revision up to date; make the set if it is not there and `create`."""
        number = max((rollout.revision(rs) for rs in self.old), default=0) + 1
        new = self.new
        if new is None:
            if create:
                await self._create_new(number)
            return
        annotations = rollout.new_set_annotations(self.deployment, new["metadata"].get("annotations"), number, exists=True)
        min_ready = self.deployment["spec"].get("minReadySeconds") or 0
        if annotations != (new["metadata"].get("annotations") or {}) or (new["spec"].get("minReadySeconds") or 0) != min_ready:
            changed = {**new, "metadata": {**new["metadata"], "annotations": annotations}, "spec": {**new["spec"], "minReadySeconds": min_ready}}
            new = self._keep(await self.c.write_set(changed))
        await self._mark_revision(annotations[REVISION])
        if self._deadline() is not None and condition(self.deployment, PROGRESSING) is None:
            await self._add_condition(PROGRESSING, "True", "FoundNewReplicaSet", f'Found new replica set "{new["metadata"]["name"]}"')

    async def _create_new(self, number: int) -> None:
        deployment = self.deployment
        rs = self._fresh_set(number)
        name, size = rs["metadata"]["name"], replicas(rs)
        try:
            made = await self.c.client.create(SETS, rs, rs["metadata"]["namespace"])
        except ApiError as e:
            if e.reason == "AlreadyExists":
                made = await self._collided(name)
            else:
                if not any(c.get("reason") == "NamespaceTerminating" for c in (e.details or {}).get("causes") or ()) and self._deadline() is not None:
                    await self._add_condition(PROGRESSING, "False", "ReplicaSetCreateError", f'Failed to create new replica set "{name}": {e.message}')
                raise
        else:
            self.c.wrote(made)
            if size > 0:
                self.c.recorder.event(deployment, "Normal", "ScalingReplicaSet", f"Scaled up replica set {name} from 0 to {size}")
        self.new_name = name
        self._keep(made)
        await self._mark_revision(str(number))
        if self._deadline() is not None:
            await self._add_condition(PROGRESSING, "True", "NewReplicaSetCreated", f'Created new replica set "{name}"')

    def _fresh_set(self, number: int) -> Object:
        deployment = self.deployment
        meta, spec = deployment["metadata"], deployment["spec"]
        template = spec["template"]
        template_meta = template.get("metadata") or {}
        value = rollout.template_hash(rollout.template_of(deployment), (deployment.get("status") or {}).get("collisionCount") or 0)
        labels = {**(template_meta.get("labels") or {}), HASH_LABEL: value}
        selector = spec["selector"]
        return {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta['name']}-{value}",
                "namespace": meta["namespace"],
                "labels": labels,
                "annotations": rollout.new_set_annotations(deployment, None, number, exists=False),
                "ownerReferences": [owner_reference(deployment, "apps/v1", "Deployment")],
            },
            "spec": {
                "replicas": rollout.new_set_size(deployment, self.all, None),
                "minReadySeconds": spec.get("minReadySeconds") or 0,
                "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH_LABEL: value}},
                "template": {**template, "metadata": {**template_meta, "labels": labels}},
            },
        }

    async def _collided(self, name: str) -> Object:
        """A set of that name is there: ours, made before a restart; else another template's, then the next hash is counted on."""
        found = await self.c.client.get(SETS, name, self.deployment["metadata"]["namespace"])
        if controller_uid(found) == uid(self.deployment) and rollout.template_of(found) == rollout.template_of(self.deployment):
            return found
        status = self.deployment.get("status") or {}
        await self.c.write_status(self.deployment, {**status, "collisionCount": (status.get("collisionCount") or 0) + 1})
        raise ApiError(409, "AlreadyExists", f'replicaset "{name}" already exists with another template')

    def _keep(self, rs: Object) -> Object:
        self.sets[rs["metadata"]["name"]] = rs
        return rs

    async def _resize(self, rs: Object, size: int) -> bool:
        """Scale one set (telling users) and keep its size annotations right; whether its size changed."""
        before = replicas(rs)
        annotations = {**(rs["metadata"].get("annotations") or {}), **rollout.size_annotations(self.deployment)}
        if before == size and annotations == rs["metadata"].get("annotations"):
            return False
        self._keep(await self.c.resize_set(rs, size, rollout.size_annotations(self.deployment)))
        if before == size:
            return False
        direction = "up" if size > before else "down"
        name = rs["metadata"]["name"]
        self.c.recorder.event(self.deployment, "Normal", "ScalingReplicaSet", f"Scaled {direction} replica set {name} from {before} to {size}")
        return True

    # --- the Deployment itself ---

    async def _mark_revision(self, number: str) -> None:
        meta = self.deployment["metadata"]
        if (meta.get("annotations") or {}).get(REVISION) != number:
            changed = {**self.deployment, "metadata": {**meta, "annotations": {**(meta.get("annotations") or {}), REVISION: number}}}
            self.deployment = await self.c.client.update(DEPLOYMENTS, changed)
            self.c.wrote(self.deployment)

    async def _mark_paused(self) -> None:
        """Time spent paused does not count against the deadline: the condition says so, and restarts the clock on resume."""
        now = condition(self.deployment, PROGRESSING)
        if self._deadline() is None or (now is not None and now.get("reason") == TIMED_OUT):
            return
        marked = now is not None and now.get("reason") == "DeploymentPaused"
        if self.deployment["spec"].get("paused") and not marked:
            await self._add_condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused")
        elif marked and not self.deployment["spec"].get("paused"):
            await self._add_condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed")

    async def _add_condition(self, type: str, status: str, reason: str, message: str) -> None:
        old = self.deployment.get("status") or {}
        conditions = _set_condition(old.get("conditions") or [], _condition(type, status, reason, message))
        if conditions != old.get("conditions"):
            self.deployment = await self.c.write_status(self.deployment, {**old, "conditions": conditions})

    def _deadline(self) -> int | None:
        seconds_ = self.deployment["spec"].get("progressDeadlineSeconds")
        return None if seconds_ is None or seconds_ == NO_DEADLINE else seconds_

    # --- status ---

    def _counts(self) -> Object:
        """The status that follows from the sets, conditions Available included."""
        deployment, new = self.deployment, self.new
        total = lambda field: sum(rollout.status_number(rs, field) for rs in self.sets.values())  # noqa: E731
        available = total("availableReplicas")
        counts = {
            "observedGeneration": deployment["metadata"].get("generation", 0),
            "replicas": total("replicas"),
            "updatedReplicas": rollout.status_number(new, "replicas") if new else 0,
            "readyReplicas": total("readyReplicas"),
            "availableReplicas": available,
            "unavailableReplicas": max(sum(replicas(rs) for rs in self.sets.values()) - available, 0),
        }
        old = deployment.get("status") or {}
        status: Object = {k: v for k, v in counts.items() if v}
        if all("terminatingReplicas" in (rs.get("status") or {}) for rs in self.sets.values()):
            status["terminatingReplicas"] = total("terminatingReplicas")
        if old.get("collisionCount"):
            status["collisionCount"] = old["collisionCount"]
        if available >= replicas(deployment) - rollout.fence(deployment).unavailable:
            enough = _condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        else:
            enough = _condition(AVAILABLE, "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        status["conditions"] = _set_condition(old.get("conditions") or [], enough)
        return status

    async def _write_counts(self) -> float | None:
        """Status without progress: what a paused, deleted or just scaled Deployment gets."""
        return await self._write(self._counts())

    async def _write_progress(self) -> float | None:
        deployment, new = self.deployment, self.new
        status = self._counts()
        conditions = status["conditions"]
        deadline = self._deadline()
        now = condition(deployment, PROGRESSING)
        if deadline is None:
            conditions = without_condition(conditions, PROGRESSING)
        elif not (status.get("replicas") == status.get("updatedReplicas") and now is not None and now.get("reason") == COMPLETE):
            what = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{deployment["metadata"]["name"]}"'
            if rollout.is_complete(deployment, status):
                conditions = _set_condition(conditions, _condition(PROGRESSING, "True", COMPLETE, f"{what} has successfully progressed."))
            elif rollout.is_progressing(deployment, status):
                progress = _condition(PROGRESSING, "True", "ReplicaSetUpdated", f"{what} is progressing.")
                if now is not None and now["status"] == "True":
                    progress["lastTransitionTime"] = now["lastTransitionTime"]
                conditions = [*without_condition(conditions, PROGRESSING), progress]  # lastUpdateTime restarts the deadline
            elif self._overdue(status, now, deadline) <= 0:
                conditions = _set_condition(conditions, _condition(PROGRESSING, "False", TIMED_OUT, f"{what} has timed out progressing."))
        conditions = without_condition(conditions, REPLICA_FAILURE)
        failure = self._replica_failure()
        if failure is not None:
            had = condition(deployment, REPLICA_FAILURE)
            conditions.append(_set_condition([had] if had else [], failure)[0])
        return await self._write({**status, "conditions": conditions})

    def _replica_failure(self) -> Object | None:
        for rs in [self.new] if self.new else self.all:
            failed = condition(rs, REPLICA_FAILURE) if rs else None
            if failed is not None:
                return _condition(REPLICA_FAILURE, failed["status"], failed.get("reason", ""), failed.get("message", ""))
        return None

    def _overdue(self, status: Object, now: Object | None, deadline: int) -> float:
        """Seconds left until the rollout counts as stuck (<= 0: it does); infinite when nothing runs against the clock."""
        if now is None or now.get("reason") == COMPLETE or rollout.is_complete(self.deployment, status):
            return float("inf")
        if now.get("reason") == TIMED_OUT:
            return 0.0
        return seconds(now.get("lastUpdateTime") or now.get("lastTransitionTime")) + deadline - clock.now()

    async def _write(self, status: Object) -> float | None:
        deployment = self.deployment
        old = deployment.get("status") or {}
        if _normal(status) != _normal(old):
            wait = self.c.pace.wait(key_of(deployment))
            same = all(old.get(k) == status.get(k) for k in ("observedGeneration", "conditions", "collisionCount"))
            if wait > 0 and same:
                return wait
            self.deployment = await self.c.write_status(deployment, status)
        deadline, now = self._deadline(), condition(status, PROGRESSING)
        if deadline is None or now is None or now.get("reason") == TIMED_OUT or deployment["spec"].get("paused"):
            return None
        left = self._overdue(status, now, deadline)
        return None if left == float("inf") else max(left, 0.0) + 1.0


def _selects_something(deployment: Object) -> bool:
    selector = deployment["spec"].get("selector") or {}
    return bool(selector.get("matchLabels") or selector.get("matchExpressions"))


def _condition(type: str, status: str, reason: str, message: str) -> Object:
    now = clock.rfc3339()
    return {"type": type, "status": status, "lastUpdateTime": now, "lastTransitionTime": now, "reason": reason, "message": message}


def _set_condition(conditions: list[Object], new: Object) -> list[Object]:
    """Replace the condition of new's type unless status and reason are as they were; the transition time changes with the status only."""
    had = next((c for c in conditions if c["type"] == new["type"]), None)
    if had is not None and had["status"] == new["status"] and had.get("reason") == new["reason"]:
        return list(conditions)
    if had is not None and had["status"] == new["status"]:
        new = {**new, "lastTransitionTime": had["lastTransitionTime"]}
    return [*without_condition(conditions, new["type"]), new]


def _normal(status: Object) -> dict[str, Any]:
    """A status without what is zero, and conditions by type: how to compare two."""
    out = {k: v for k, v in status.items() if v or k == "terminatingReplicas"}
    if "conditions" in out:
        out["conditions"] = {c["type"]: c for c in out["conditions"]}
    return out
