"""job-controller: runs pods until enough of them have succeeded. Decisions are in jobplan.py; here is what is read and written.

The status is written in the order that counting wants: uids of finished pods first, then their finalizers go, then they become counts; a Job's
Complete or Failed condition is written only when no pod is left uncounted (FailureTarget and SuccessCriteriaMet say it before).
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from fastkube.api.errors import ApiError
from fastkube.client.informer import key_of
from fastkube.controllers import jobplan as plan
from fastkube.controllers.jobplan import INDEX, INDEX_FAILURES, TRACKING, State
from fastkube.controllers.meta import (
    Object,
    condition,
    controller_of,
    deleting,
    is_terminal,
    matcher,
    owner_reference,
    phase,
    uid,
    with_condition,
)
from fastkube.controllers.runtime import BURST_MAX, Controller, Expectations, slow_start
from fastkube.controllers.victims import choose
from fastkube.runtime import clock

JOBS = "batch/v1/jobs"
MANAGER = "kubernetes.io/job-controller"
BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 10.0, 600.0
UNCOUNTED_MAX = 500  # uids in one status write


class JobController(Controller):
    name = "job-controller"
    conditions_before: ClassVar[dict[str, str]] = {"Failed": "FailureTarget", "Complete": "SuccessCriteriaMet"}

    def setup(self) -> None:
        self.expectations = Expectations()
        self._backoff: dict[str, tuple[int, float]] = {}  # key -> (failures in a row, when the last was)
        self.jobs = self.informer(JOBS)
        self.jobs.add_handler(self.enqueue, lambda old, new: self.enqueue(new), self._job_deleted)
        self.informer("v1/pods")
        self.owners = self.context.pod_owners()
        self.owners.route("Job", self)

    # --- events ---

    def _job_deleted(self, job: Object) -> None:
        key = key_of(job)
        self.expectations.forget(key)
        self._backoff.pop(key, None)
        for pod in self.owners.of(uid(job)):
            self.queue.add(f"orphan {key_of(pod)}")

    def _owner_key(self, pod: Object) -> str | None:
        ref = controller_of(pod)
        owner = self.jobs.get(pod["metadata"]["namespace"], ref["name"]) if ref else None
        return key_of(owner) if owner is not None and ref is not None and uid(owner) == ref["uid"] else None

    def pod_added(self, pod: Object) -> None:
        key = self._owner_key(pod)
        if key:
            self.expectations.created(key)
            self.queue.add(key)
        elif self.jobs.has_synced and TRACKING in (pod["metadata"].get("finalizers") or ()):
            self.queue.add(f"orphan {key_of(pod)}")

    def pod_updated(self, old: Object, new: Object, counted: bool) -> None:
        key = self._owner_key(new)
        if key:
            if deleting(new) and not deleting(old):
                self.expectations.deleted(key, new["metadata"]["name"])
            if counted or phase(old) != phase(new) or old["metadata"].get("finalizers") != new["metadata"].get("finalizers"):
                self.queue.add(key)
        elif deleting(new):
            self.pod_added(new)

    def pod_deleted(self, pod: Object) -> None:
        key = self._owner_key(pod)
        if key:
            self.expectations.deleted(key, pod["metadata"]["name"])
            self.queue.add(key)

    def orphan_seen(self, pod: Object) -> None:
        for job in self.jobs.list(pod["metadata"]["namespace"]):
            if matcher(job["spec"].get("selector"))(pod["metadata"]["labels"]):
                self.enqueue(job)

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        if key.startswith("orphan "):
            return await self._release_orphan(key.removeprefix("orphan "))
        job = self.jobs.by_key(key)
        if job is None or self.behind(job) or job["spec"].get("managedBy", MANAGER) != MANAGER:
            return None
        if plan.is_finished(job):
            for pod in self.owners.of(uid(job)):
                if TRACKING in (pod["metadata"].get("finalizers") or ()):
                    await self._untrack(pod)
            return None
        if not self.expectations.satisfied(key):
            return None
        await self._adopt(job)
        pods = self.owners.of(uid(job))
        state = plan.observe(job, pods)
        return await _Sync(self, key, job, pods, state).run()

    async def _release_orphan(self, pod_key: str) -> float | None:
        pod = self.owners.pods.by_key(pod_key)
        if pod is not None and self._owner_key(pod) is None:
            await self._untrack(pod)
        return None

    async def _adopt(self, job: Object) -> None:
        if deleting(job):
            return
        matches = matcher(job["spec"].get("selector"))
        for pod in self.owners.orphans(job["metadata"]["namespace"]):
            if not deleting(pod) and matches(pod["metadata"].get("labels") or {}):
                finalizers = sorted({*(pod["metadata"].get("finalizers") or ()), TRACKING})
                patch = {"metadata": {"uid": uid(pod), "ownerReferences": [owner_reference(job, "batch/v1", "Job")], "finalizers": finalizers}}
                await self.client.patch("v1/pods", pod["metadata"]["name"], patch, pod["metadata"]["namespace"], kind="strategic")

    async def _untrack(self, pod: Object) -> None:
        meta = pod["metadata"]
        patch = {"metadata": {"uid": meta["uid"], "$deleteFromPrimitiveList/finalizers": [TRACKING]}}
        try:
            await self.client.patch("v1/pods", meta["name"], patch, meta["namespace"], kind="strategic")
        except ApiError as e:
            if e.code not in (404, 409):
                raise

    def backoff_wait(self, key: str, state: State) -> float:
        """Seconds until pods may be made again after failures: 10 s, doubling to 10 min, from the last failure on."""
        failures, last = self._backoff.get(key, (0, 0.0))
        if not failures:
            return 0.0
        return last + min(BACKOFF_SECONDS_MIN * 2 ** (failures - 1), BACKOFF_SECONDS_MAX) - clock.now()

    def note(self, key: str, state: State) -> None:
        """Remember failures since the last success."""
        failures, last = self._backoff.get(key, (0, 0.0))
        if any(phase(p) == "Succeeded" for p in state.new_succeeded):
            failures, last = 0, 0.0
        if state.recent_failures:
            failures, last = failures + state.recent_failures, max(last, state.last_failure)
        if failures:
            self._backoff[key] = (failures, last)
        else:
            self._backoff.pop(key, None)


class _Sync:
    """One reconcile of one Job."""

    def __init__(self, controller: JobController, key: str, job: Object, pods: list[Object], state: State) -> None:
        self.c, self.key, self.job, self.pods, self.state = controller, key, job, pods, state
        self.status = dict(job.get("status") or {})

    async def run(self) -> float | None:
        job, state, now = self.job, self.state, clock.now()
        self._start_and_suspend()
        ending = self._pending_ending() or plan.ending(job, state, now)
        failure: Exception | None = None
        if ending is not None:
            failure = await self._delete(state.active)
        elif not deleting(job):
            failure = await self._manage()
        # after _manage, so that a retry of an index still sees its failed pod, before anything forgets it
        await self._count(ending)
        if failure is not None:
            raise failure
        return self._again(now)

    def _again(self, now: float) -> float | None:
        waits = []
        deadline, start = self.job["spec"].get("activeDeadlineSeconds"), self.status.get("startTime")
        if deadline is not None and start and not self.job["spec"].get("suspend") and not plan.is_finished({"status": self.status}):
            waits.append(max(clock.parse(start) + deadline - now, 0.0) + 0.01)
        backoff = self.c.backoff_wait(self.key, self.state)
        if backoff > 0:
            waits.append(backoff + 0.01)
        return min(waits) if waits else None

    def _start_and_suspend(self) -> None:
        spec, conditions = self.job["spec"], list(self.status.get("conditions") or ())
        suspended = condition(self.status, "Suspended")
        now = clock.rfc3339()
        if spec.get("suspend"):
            if suspended is None or suspended["status"] != "True":
                conditions = with_condition(conditions, _condition("Suspended", "True", "JobSuspended", "Job suspended"))
                self.c.recorder.event(self.job, "Normal", "Suspended", "Job suspended")
            self.status.pop("startTime", None)
        else:
            if suspended is not None and suspended["status"] == "True":
                conditions = with_condition(conditions, _condition("Suspended", "False", "JobResumed", "Job resumed"))
                self.c.recorder.event(self.job, "Normal", "Resumed", "Job resumed")
            self.status.setdefault("startTime", now)
        if conditions:
            self.status["conditions"] = conditions
        self.job = {**self.job, "status": self.status}

    def _pending_ending(self) -> plan.Ending | None:
        """An end that was decided before (FailureTarget, SuccessCriteriaMet) stays decided."""
        for type, before in self.c.conditions_before.items():
            found = condition(self.status, before)
            if found is not None and found["status"] == "True":
                return plan.Ending(type, found.get("reason", ""), found.get("message", ""))
        return None

    # --- pods ---

    async def _manage(self) -> Exception | None:
        job, state = self.job, self.state
        surplus = plan.surplus_pods(job, state)
        if surplus:
            return await self._delete(surplus, uncounted=True)
        wanted = plan.wanted_active(job, state)
        missing = wanted - len(state.active)
        if missing < 0:
            return await self._delete(choose(state.active, -missing, state.active, clock.now()), uncounted=True)
        if job["spec"].get("podReplacementPolicy") == "Failed" or job["spec"].get("podFailurePolicy"):
            missing -= state.terminating
        self.c.note(self.key, state)
        if missing <= 0 or self.c.backoff_wait(self.key, state) > 0:
            return None
        return await self._create(min(missing, BURST_MAX))

    async def _create(self, count: int) -> Exception | None:
        job, c, key = self.job, self.c, self.key
        indexes = plan.free_indexes(job, self.state, count) if plan.is_indexed(job) else [-1] * count
        c.expectations.expect_creations(key, len(indexes))

        async def create(i: int) -> None:
            try:
                made = await c.client.create("v1/pods", pod_of(job, indexes[i], self.state.index_failures.get(indexes[i])), job["metadata"]["namespace"])
            except ApiError as e:
                c.expectations.created(key)
                c.recorder.event(job, "Warning", "FailedCreate", f"Error creating: {e.message}")
                raise
            c.recorder.event(job, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")

        tried, failure = await slow_start(len(indexes), create)
        c.expectations.created(key, len(indexes) - tried)
        return failure

    async def _delete(self, pods: list[Object], uncounted: bool = False) -> Exception | None:
        """`uncounted`: they go because fewer are wanted, which is no failure of theirs."""
        job, c, key = self.job, self.c, self.key
        c.expectations.expect_deletions(key, [p["metadata"]["name"] for p in pods])

        async def delete(pod: Object) -> None:
            name = pod["metadata"]["name"]
            try:
                if uncounted:
                    await c._untrack(pod)
                await c.client.delete("v1/pods", name, pod["metadata"]["namespace"], uid=uid(pod))
            except ApiError as e:
                c.expectations.deleted(key, name)
                if e.code == 404:
                    return
                raise
            c.recorder.event(job, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")

        results = await asyncio.gather(*(delete(p) for p in pods), return_exceptions=True)
        return next((r for r in results if isinstance(r, Exception)), None)

    # --- counting ---

    async def _count(self, ending: plan.Ending | None) -> None:
        state, indexed = self.state, plan.is_indexed(self.job)
        uncounted = {k: list((self.status.get("uncountedTerminatedPods") or {}).get(k) or ()) for k in ("succeeded", "failed")}
        finished = [*state.new_succeeded, *state.new_failed][:UNCOUNTED_MAX]
        names = {uid(p) for p in finished}
        ignored = {uid(p) for p in state.new_failed if phase(p) == "Failed" and plan.failure_action(self.job, p)[0] == plan.IGNORE}
        if not indexed:
            uncounted["succeeded"] += [uid(p) for p in state.new_succeeded if uid(p) in names]
        uncounted["failed"] += [uid(p) for p in state.new_failed if uid(p) in names - ignored]
        status = self.status
        status["active"], status["ready"], status["terminating"] = len(state.active), state.ready, state.terminating
        if indexed:
            status["completedIndexes"] = plan.format_indexes(state.succeeded_indexes)
            status["succeeded"] = len(state.succeeded_indexes)
            if self.job["spec"].get("backoffLimitPerIndex") is not None:
                status["failedIndexes"] = plan.format_indexes(state.failed_indexes)
        if ending is not None:
            self._announce(ending)
        await self._write({**status, "uncountedTerminatedPods": {k: v for k, v in uncounted.items() if v}})
        if finished:
            await asyncio.gather(*(self.c._untrack(p) for p in finished))
        stale = [p for p in self.pods if uid(p) not in names and is_terminal(p) and TRACKING in (p["metadata"].get("finalizers") or ())]
        await asyncio.gather(*(self.c._untrack(p) for p in stale if uid(p) in {*uncounted["succeeded"], *uncounted["failed"]}))
        if uncounted["succeeded"] or uncounted["failed"]:
            status["succeeded"] = (status.get("succeeded") or 0) + len(uncounted["succeeded"])
            status["failed"] = (status.get("failed") or 0) + len(uncounted["failed"])
        left = len(state.new_succeeded) + len(state.new_failed) - len(finished)
        if ending is not None and not left and not state.active and not state.terminating:
            self._finish(ending)
        await self._write({**status, "uncountedTerminatedPods": {}})

    def _announce(self, ending: plan.Ending) -> None:
        before = self.c.conditions_before[ending.type]
        found = condition(self.status, before)
        if found is None or found["status"] != "True":
            self.status["conditions"] = with_condition(self.status.get("conditions") or (), _condition(before, "True", ending.reason, ending.message))

    def _finish(self, ending: plan.Ending) -> None:
        status = self.status
        status["conditions"] = with_condition(status.get("conditions") or (), _condition(ending.type, "True", ending.reason, ending.message))
        status["active"] = status["ready"] = 0
        if ending.type == "Complete":
            status["completionTime"] = clock.rfc3339()
            self.c.recorder.event(self.job, "Normal", "Completed", "Job completed")
        else:
            self.c.recorder.event(self.job, "Warning", ending.reason, ending.message)

    async def _write(self, status: Object) -> None:
        """Write the status if it differs from what was last written."""
        old = self.job.get("_written") or self.c.jobs.by_key(self.key) or self.job
        old_status = old.get("status") or {}
        if _normal(status) == _normal(old_status):
            return
        job = {k: v for k, v in self.job.items() if k != "_written"}
        meta = {**job["metadata"], "resourceVersion": old["metadata"]["resourceVersion"]}
        answer = await self.c.client.update(JOBS, {**job, "metadata": meta, "status": status}, subresource="status")
        self.c.wrote(answer)
        self.job = {**job, "_written": answer}


def _normal(status: Object) -> Object:
    out = {k: v for k, v in status.items() if v or k in ("ready", "terminating")}
    if "conditions" in out:
        out["conditions"] = {c["type"]: (c["status"], c.get("reason"), c.get("message")) for c in out["conditions"]}
    return out


def _condition(type: str, status: str, reason: str, message: str) -> Object:
    now = clock.rfc3339()
    return {"type": type, "status": status, "lastProbeTime": now, "lastTransitionTime": now, "reason": reason, "message": message}


def pod_of(job: Object, index: int, index_failures: int | None) -> Object:
    """A pod of the Job; an indexed one knows its index by annotation, label, hostname and environment."""
    meta, template = job["metadata"], job["spec"]["template"]
    template_meta = template.get("metadata") or {}
    labels, annotations = dict(template_meta.get("labels") or {}), dict(template_meta.get("annotations") or {})
    spec = dict(template["spec"])
    out_meta: Object = {"generateName": f"{meta['name']}-"}
    if index >= 0:
        annotations[INDEX] = labels[INDEX] = str(index)
        if job["spec"].get("backoffLimitPerIndex") is not None:
            annotations[INDEX_FAILURES] = str(index_failures or 0)
        spec.setdefault("hostname", f"{meta['name']}-{index}")
        variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}}}
        for group in ("containers", "initContainers"):
            if spec.get(group):
                spec[group] = [{**c, "env": [*(c.get("env") or ()), variable]} if not _has(c, variable["name"]) else c for c in spec[group]]
        out_meta["generateName"] = f"{meta['name']}-{index}-"
    finalizers = sorted({*(template_meta.get("finalizers") or ()), TRACKING})
    out_meta |= {"namespace": meta["namespace"], "labels": labels, "finalizers": finalizers, "ownerReferences": [owner_reference(job, "batch/v1", "Job")]}
    if annotations:
        out_meta["annotations"] = annotations
    return {"apiVersion": "v1", "kind": "Pod", "metadata": out_meta, "spec": spec}


def _has(container: Object, name: object) -> bool:
    return any(e["name"] == name for e in container.get("env") or ())
