"""statefulset-controller: pods with names, order and storage that stay. What comes next is decided in statefulplan.py."""

from __future__ import annotations

import asyncio
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.informer import key_of
from fastkube.controllers import history
from fastkube.controllers import statefulplan as plan
from fastkube.controllers.history import STATEFUL_HASH_LABEL, History
from fastkube.controllers.meta import Object, controller_of, controller_uid, deleting, matcher, owner_reference, phase, ready_since, uid
from fastkube.controllers.runtime import Controller, Expectations, Pace
from fastkube.runtime import clock

SETS = "apps/v1/statefulsets"
CLAIMS = "v1/persistentvolumeclaims"
STATUS_INTERVAL_SECONDS, STATUS_BURST = 0.1, 20


class StatefulSetController(Controller):
    name = "statefulset-controller"

    def setup(self) -> None:
        self.expectations = Expectations()
        self.pace = Pace(STATUS_INTERVAL_SECONDS, STATUS_BURST)
        self.sets = self.informer(SETS)
        self.sets.add_handler(self.enqueue, lambda old, new: self.enqueue(new), self._set_deleted)
        self.revisions = self.informer(history.REVISIONS)
        self.revisions.add_index("owner", lambda r: [controller_uid(r)])
        self.claims = self.informer(CLAIMS)
        self.informer("v1/pods")
        self.owners = self.context.pod_owners()
        self.owners.route("StatefulSet", self)

    # --- events ---

    def _set_deleted(self, sts: Object) -> None:
        self.expectations.forget(key_of(sts))
        self.pace.forget(key_of(sts))

    def _owner_key(self, pod: Object) -> str | None:
        ref = controller_of(pod)
        owner = self.sets.get(pod["metadata"]["namespace"], ref["name"]) if ref else None
        return key_of(owner) if owner is not None and ref is not None and uid(owner) == ref["uid"] else None

    def pod_added(self, pod: Object) -> None:
        key = self._owner_key(pod)
        if key:
            self.expectations.created(key)
            self.queue.add(key)

    def pod_updated(self, old: Object, new: Object, counted: bool) -> None:
        key = self._owner_key(new)
        if key and (counted or phase(old) != phase(new)):
            if deleting(new) and not deleting(old):
                self.expectations.deleted(key, new["metadata"]["name"])
            self.queue.add(key)

    def pod_deleted(self, pod: Object) -> None:
        key = self._owner_key(pod)
        if key:
            self.expectations.deleted(key, pod["metadata"]["name"])
            self.queue.add(key)

    def orphan_seen(self, pod: Object) -> None:
        for sts in self.sets.list(pod["metadata"]["namespace"]):
            if plan.ordinal_of(sts["metadata"]["name"], pod) >= 0 and matcher(sts["spec"].get("selector"))(pod["metadata"]["labels"]):
                self.enqueue(sts)

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        sts = self.sets.by_key(key)
        if sts is None or self.behind(sts) or not self.expectations.satisfied(key):
            return None
        await self._adopt(sts)
        old_status = sts.get("status") or {}
        past = await history.sync(
            self.client, sts, "StatefulSet", self.revisions.by_index("owner", uid(sts)), STATEFUL_HASH_LABEL, old_status.get("collisionCount") or 0
        )
        update = past.update["metadata"]["name"]
        known = {r["metadata"]["name"] for r in past.revisions}
        current = old_status.get("currentRevision") or ""
        if current not in known:
            current = update
        pods = self.owners.of(uid(sts))
        now = clock.now()
        todo = plan.steps(sts, pods, current, update, now)
        failure = await self._carry_out(key, sts, past, todo)
        await self._retain_claims(sts, pods)
        again = await self._write_status(key, sts, plan.status(sts, self.owners.of(uid(sts)), current, update, past.collisions, now))
        in_use = {current, update, *(plan.revision_of(p) for p in pods)}
        limit = sts["spec"].get("revisionHistoryLimit")
        await history.truncate(self.client, past, in_use, 10 if limit is None else limit)
        if failure is not None:
            raise failure
        return min((w for w in (again, self._wait_available(sts, pods, now)) if w is not None), default=None)

    @staticmethod
    def _wait_available(sts: Object, pods: list[Object], now: float) -> float | None:
        min_ready = sts["spec"].get("minReadySeconds") or 0
        waits = [since + min_ready - now for p in pods if (since := ready_since(p)) is not None and since + min_ready > now]
        return min(waits) + 0.001 if waits else None

    async def _adopt(self, sts: Object) -> None:
        matches = matcher(sts["spec"].get("selector"))
        if deleting(sts):
            return
        for pod in self.owners.orphans(sts["metadata"]["namespace"]):
            if plan.ordinal_of(sts["metadata"]["name"], pod) >= 0 and not deleting(pod) and matches(pod["metadata"].get("labels") or {}):
                patch = {"metadata": {"uid": uid(pod), "ownerReferences": [owner_reference(sts, "apps/v1", "StatefulSet")]}}
                await self.client.patch("v1/pods", pod["metadata"]["name"], patch, pod["metadata"]["namespace"], kind="strategic")
        for pod in self.owners.of(uid(sts)):
            if not matches(pod["metadata"].get("labels") or {}) and not deleting(pod):
                patch = {"metadata": {"uid": uid(pod), "ownerReferences": [{"$patch": "delete", "uid": uid(sts)}]}}
                await self.client.patch("v1/pods", pod["metadata"]["name"], patch, pod["metadata"]["namespace"], kind="strategic")

    async def _carry_out(self, key: str, sts: Object, past: History, todo: plan.Steps) -> Exception | None:
        by_name = {r["metadata"]["name"]: r for r in past.revisions}
        results = await asyncio.gather(
            *(self._create(key, sts, ordinal, by_name[revision]) for ordinal, revision in todo.create),
            *(self._delete(key, sts, pod) for pod in todo.delete),
            return_exceptions=True,
        )
        return next((r for r in results if isinstance(r, Exception)), None)

    async def _create(self, key: str, sts: Object, ordinal: int, revision: Object) -> None:
        namespace, name = sts["metadata"]["namespace"], sts["metadata"]["name"]
        pod = pod_of(sts, ordinal, revision)
        for claim in claims_of(sts, ordinal):
            if self.claims.get(namespace, claim["metadata"]["name"]) is None:
                await self._create_claim(sts, pod, claim)
        self.expectations.expect_creations(key, 1)
        try:
            await self.client.create("v1/pods", pod, namespace)
        except ApiError as e:
            self.expectations.created(key)
            if e.reason != "AlreadyExists":
                self.recorder.event(sts, "Warning", "FailedCreate", f"create Pod {pod['metadata']['name']} in StatefulSet {name} failed error: {e.message}")
            raise
        self.recorder.event(sts, "Normal", "SuccessfulCreate", f"create Pod {pod['metadata']['name']} in StatefulSet {name} successful")

    async def _create_claim(self, sts: Object, pod: Object, claim: Object) -> None:
        what = f"create Claim {claim['metadata']['name']} Pod {pod['metadata']['name']} in StatefulSet {sts['metadata']['name']}"
        try:
            await self.client.create(CLAIMS, claim, sts["metadata"]["namespace"])
        except ApiError as e:
            if e.reason == "AlreadyExists":
                return
            self.recorder.event(sts, "Warning", "FailedCreate", f"{what} failed error: {e.message}")
            raise
        self.recorder.event(sts, "Normal", "SuccessfulCreate", f"{what} success")

    async def _delete(self, key: str, sts: Object, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if phase(pod) in ("Failed", "Succeeded"):
            self.recorder.event(sts, "Warning", "RecreatingFailedPod", f"StatefulSet {key} is recreating failed Pod {name}")
        self.expectations.expect_deletions(key, [name])
        try:
            await self.client.delete("v1/pods", name, pod["metadata"]["namespace"], uid=uid(pod))
        except ApiError as e:
            self.expectations.deleted(key, name)
            if e.code == 404:
                return
            self.recorder.event(sts, "Warning", "FailedDelete", f"delete Pod {name} in StatefulSet {sts['metadata']['name']} failed error: {e.message}")
            raise
        self.recorder.event(sts, "Normal", "SuccessfulDelete", f"delete Pod {name} in StatefulSet {sts['metadata']['name']} successful")

    # --- claims ---

    async def _retain_claims(self, sts: Object, pods: list[Object]) -> None:
        """persistentVolumeClaimRetentionPolicy: Delete means that the claim is owned by the set (whenDeleted) or by its condemned pod (whenScaled)."""
        policy = sts["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
        if not sts["spec"].get("volumeClaimTemplates") or deleting(sts):
            return
        wanted = range(plan.start_ordinal(sts), plan.start_ordinal(sts) + plan.replicas(sts))
        for pod in pods:
            ordinal = plan.ordinal_of(sts["metadata"]["name"], pod)
            refs = []
            if policy.get("whenDeleted") == "Delete":
                refs.append({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": sts["metadata"]["name"], "uid": uid(sts), "controller": True})
            if policy.get("whenScaled") == "Delete" and ordinal not in wanted:
                refs = [{"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": uid(pod)}]
            for claim in claims_of(sts, ordinal):
                await self._own_claim(sts, pod["metadata"]["namespace"], claim["metadata"]["name"], refs)

    async def _own_claim(self, sts: Object, namespace: str, name: str, refs: list[Object]) -> None:
        claim = self.claims.get(namespace, name)
        if claim is None or deleting(claim) or self.behind(claim):
            return
        have = claim["metadata"].get("ownerReferences") or []
        others = [r for r in have if not (r.get("kind") == "StatefulSet" and r["uid"] == uid(sts)) and not (r.get("kind") == "Pod" and r["apiVersion"] == "v1")]
        if have != others + refs:
            self.wrote(await self.client.update(CLAIMS, {**claim, "metadata": {**claim["metadata"], "ownerReferences": others + refs}}))

    # --- status ---

    async def _write_status(self, key: str, sts: Object, status: Object) -> float | None:
        old = sts.get("status") or {}
        if old.get("conditions"):
            status["conditions"] = old["conditions"]
        if {k: v for k, v in status.items() if v} == {k: v for k, v in old.items() if v} and "replicas" in old:
            return None
        if self.behind(sts):
            return None
        wait = self.pace.wait(key)
        if wait > 0 and old.get("observedGeneration") == status.get("observedGeneration"):
            return wait
        self.pace.spend(key)
        self.wrote(await self.client.update(SETS, {**sts, "status": status}, subresource="status"))
        return None


# --- pure ---


def claims_of(sts: Object, ordinal: int) -> list[Object]:
    """The PersistentVolumeClaims of one ordinal: TEMPLATE-SET-ORDINAL, labelled as the selector says."""
    meta = sts["metadata"]
    out = []
    for template in sts["spec"].get("volumeClaimTemplates") or ():
        labels = {**(template["metadata"].get("labels") or {}), **((sts["spec"].get("selector") or {}).get("matchLabels") or {})}
        claim_meta: dict[str, Any] = {"name": f"{template['metadata']['name']}-{meta['name']}-{ordinal}", "namespace": meta["namespace"], "labels": labels}
        if template["metadata"].get("annotations"):
            claim_meta["annotations"] = template["metadata"]["annotations"]
        out.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim_meta, "spec": template["spec"]})
    return out


def pod_of(sts: Object, ordinal: int, revision: Object) -> Object:
    """The pod of one ordinal, of one revision, with its identity and its claims as volumes."""
    meta, name = sts["metadata"], f"{sts['metadata']['name']}-{ordinal}"
    template = history.template_at(sts, revision)
    template_meta, spec = template.get("metadata") or {}, dict(template["spec"])
    labels = {
        **(template_meta.get("labels") or {}), plan.POD_NAME_LABEL: name, plan.POD_INDEX_LABEL: str(ordinal), plan.REVISION_LABEL: revision["metadata"]["name"],
    }  # fmt: skip
    claims = {t["metadata"]["name"]: f"{t['metadata']['name']}-{name}" for t in sts["spec"].get("volumeClaimTemplates") or ()}
    volumes = [v for v in spec.get("volumes") or () if v["name"] not in claims]
    volumes += [{"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim in claims.items()]
    spec["hostname"] = name
    if sts["spec"].get("serviceName"):
        spec["subdomain"] = sts["spec"]["serviceName"]
    if volumes:
        spec["volumes"] = volumes
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            **{k: v for k, v in template_meta.items() if k in ("annotations", "finalizers") and v},
            "labels": labels,
            "ownerReferences": [owner_reference(sts, "apps/v1", "StatefulSet")],
        },
        "spec": spec,
    }
