"""cronjob-controller: makes Jobs by the clock.

One timer per CronJob, no polling. A run's Job is named after its minute, so that it is made once however often the controller crashes in
between. Times missed while nobody looked are made up for once, the latest, within startingDeadlineSeconds.
"""

from __future__ import annotations

import datetime
import zoneinfo
from dataclasses import dataclass

from fastkube.api.errors import ApiError
from fastkube.controllers import cron
from fastkube.controllers.jobplan import is_finished
from fastkube.controllers.meta import Object, condition, controller_of, controller_uid, deleting, owner_reference, seconds, uid
from fastkube.controllers.runtime import Controller
from fastkube.runtime import clock

CRON_JOBS, JOBS = "batch/v1/cronjobs", "batch/v1/jobs"
SCHEDULED_ANNOTATION = "batch.kubernetes.io/cronjob-scheduled-timestamp"
MISSED_WARN = 100  # more missed times than these are told
NAME_CHARACTERS_MAX = 52


@dataclass(slots=True)
class Due:
    """`run`: the latest time that is due and not yet run, None: none; `next`: when to look again; `missed`: how many were due."""

    run: float | None
    next: float | None
    missed: int


def due(schedule: cron.Schedule, earliest: float, now: float) -> Due:
    """What is due in (earliest, now]. Pure."""
    run, missed, t = None, 0, schedule.next(earliest)
    while t is not None and t <= now:
        run, missed = t, missed + 1
        if missed > MISSED_WARN:
            # Too many to walk through: go on from just before now, in steps that cannot skip the last one.
            t = _latest(schedule, t, now)
            return Due(t, schedule.next(now), missed)
        t = schedule.next(t)
    return Due(run, t, missed)


def _latest(schedule: cron.Schedule, known: float, now: float) -> float:
    """The last scheduled time <= now, from one that is known, by halving the distance."""
    back = 60.0
    while back < now - known:
        t = schedule.next(now - back)
        if t is not None and t <= now:
            while True:
                following = schedule.next(t)
                if following is None or following > now:
                    return t
                t = following
        back *= 2
    return known


class CronJobController(Controller):
    name = "cronjob-controller"

    def setup(self) -> None:
        self.cron_jobs = self.informer(CRON_JOBS)
        self.cron_jobs.add_handler(self.enqueue, lambda old, new: self.enqueue(new))
        self.jobs = self.informer(JOBS)
        self.jobs.add_index("owner", lambda j: [controller_uid(j)])
        self.jobs.add_handler(self._job_changed, lambda old, new: self._job_changed(new), self._job_changed)

    def _job_changed(self, job: Object) -> None:
        ref = controller_of(job)
        if ref is not None and ref["kind"] == "CronJob":
            self.queue.add(f"{job['metadata']['namespace']}/{ref['name']}")

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        cj = self.cron_jobs.by_key(key)
        if cj is None or deleting(cj) or self.behind(cj):
            return None
        jobs = self.jobs.by_index("owner", uid(cj))
        if any(self.behind(j) for j in jobs):
            return None
        status = self._active_status(cj, jobs)
        await self._forget_old(cj, jobs)
        again: float | None = None
        if not cj["spec"].get("suspend"):
            again = await self._run_due(cj, jobs, status)
        if _normal(status) != _normal(cj.get("status") or {}):
            self.wrote(await self.client.update(CRON_JOBS, {**cj, "status": status}, subresource="status"))
        return again

    def _active_status(self, cj: Object, jobs: list[Object]) -> Object:
        """The status with its list of active Jobs brought up to date; what finished or vanished is told."""
        status = dict(cj.get("status") or {})
        by_uid = {uid(j): j for j in jobs}
        listed = {ref["uid"] for ref in status.get("active") or ()}
        active = []
        for ref in status.get("active") or ():
            job = by_uid.get(ref["uid"])
            if job is None:
                self.recorder.event(cj, "Normal", "MissingJob", f"Active job went missing: {ref['name']}")
            elif is_finished(job):
                how = "Complete" if (condition(job, "Complete") or {}).get("status") == "True" else "Failed"
                self.recorder.event(cj, "Normal", "SawCompletedJob", f"Saw completed job: {ref['name']}, condition: {how}")
                if how == "Complete" and (job.get("status") or {}).get("completionTime"):
                    finished = job["status"]["completionTime"]
                    if seconds(status.get("lastSuccessfulTime")) < seconds(finished):
                        status["lastSuccessfulTime"] = finished
            else:
                active.append(ref)
        for job in jobs:
            if not is_finished(job) and uid(job) not in listed:
                active.append(_reference(job))
        status["active"] = active
        return status

    async def _forget_old(self, cj: Object, jobs: list[Object]) -> None:
        """Keep successfulJobsHistoryLimit and failedJobsHistoryLimit finished Jobs, the youngest."""
        for type, field, default in (("Complete", "successfulJobsHistoryLimit", 3), ("Failed", "failedJobsHistoryLimit", 1)):
            limit = cj["spec"].get(field)
            ended = [j for j in jobs if (condition(j, type) or {}).get("status") == "True" and not deleting(j)]
            ended.sort(key=lambda j: (seconds((j.get("status") or {}).get("startTime")), j["metadata"]["name"]))
            for job in ended[: max(len(ended) - (default if limit is None else limit), 0)]:
                await self._delete(cj, job)

    async def _run_due(self, cj: Object, jobs: list[Object], status: Object) -> float | None:
        spec, now = cj["spec"], clock.now()
        try:
            schedule = cron.parse(spec["schedule"], spec.get("timeZone"))
        except ValueError as e:
            reason = "UnknownTimeZone" if "time zone" in str(e) else "UnparseableSchedule"
            self.recorder.event(cj, "Warning", reason, f"invalid schedule: {spec['schedule']} : {e}")
            return None
        earliest = seconds(status.get("lastScheduleTime")) or seconds(cj["metadata"].get("creationTimestamp"))
        deadline = spec.get("startingDeadlineSeconds")
        if deadline is not None:
            earliest = max(earliest, now - deadline)
        found = due(schedule, earliest, now)
        again = found.next - now + 0.1 if found.next is not None else None
        if found.missed > MISSED_WARN:
            self.recorder.event(
                cj,
                "Warning",
                "TooManyMissedTimes",
                f"too many missed start times: {found.missed}. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
            )
        if found.run is None:
            return again
        name = job_name(cj, found.run)
        policy = spec.get("concurrencyPolicy", "Allow")
        if any(j["metadata"]["name"] == name for j in jobs):
            status["lastScheduleTime"] = clock.rfc3339(found.run)
            return again
        if policy == "Forbid" and status["active"]:
            self.recorder.event(cj, "Normal", "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
            return again
        if policy == "Replace":
            for job in [j for j in jobs if not is_finished(j)]:
                await self._delete(cj, job)
            status["active"] = []
        await self._start(cj, name, found.run, status)
        return again

    async def _start(self, cj: Object, name: str, scheduled: float, status: Object) -> None:
        job = job_of(cj, name, scheduled)
        try:
            made = await self.client.create(JOBS, job, cj["metadata"]["namespace"])
        except ApiError as e:
            if e.reason == "AlreadyExists":
                made = await self.client.get(JOBS, name, cj["metadata"]["namespace"])
                if controller_uid(made) != uid(cj):
                    self.recorder.event(cj, "Warning", "FailedCreate", f"Error creating job: {e.message}")
                    raise
            else:
                if not any(c.get("reason") == "NamespaceTerminating" for c in (e.details or {}).get("causes") or ()):
                    self.recorder.event(cj, "Warning", "FailedCreate", f"Error creating job: {e.message}")
                raise
        else:
            self.recorder.event(cj, "Normal", "SuccessfulCreate", f"Created job {name}")
        status["active"] = [*status["active"], _reference(made)]
        status["lastScheduleTime"] = clock.rfc3339(scheduled)

    async def _delete(self, cj: Object, job: Object) -> None:
        meta = job["metadata"]
        try:
            await self.client.delete(JOBS, meta["name"], meta["namespace"], uid=uid(job), propagation="Background")
        except ApiError as e:
            if e.code == 404:
                return
            self.recorder.event(cj, "Warning", "FailedDelete", f"Deleted job: {e.message}")
            raise
        self.recorder.event(cj, "Normal", "SuccessfulDelete", f"Deleted job {meta['name']}")


def job_name(cj: Object, scheduled: float) -> str:
    """NAME-MINUTES: minutes since the epoch."""
    return f"{cj['metadata']['name'][:NAME_CHARACTERS_MAX]}-{int(scheduled) // 60}"


def job_of(cj: Object, name: str, scheduled: float) -> Object:
    template = cj["spec"]["jobTemplate"]
    meta = template.get("metadata") or {}
    zone = cj["spec"].get("timeZone")
    stamp = clock.rfc3339(scheduled)
    if zone:
        stamp = _zoned(scheduled, zone)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": cj["metadata"]["namespace"],
            "labels": dict(meta.get("labels") or {}),
            "annotations": {**(meta.get("annotations") or {}), SCHEDULED_ANNOTATION: stamp},
            "ownerReferences": [owner_reference(cj, "batch/v1", "CronJob")],
        },
        "spec": template["spec"],
    }


def _zoned(scheduled: float, zone: str) -> str:
    text = datetime.datetime.fromtimestamp(int(scheduled), zoneinfo.ZoneInfo(zone)).isoformat()
    return text.replace("+00:00", "Z")


def _reference(job: Object) -> Object:
    meta = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": meta["name"],
        "namespace": meta["namespace"],
        "uid": meta["uid"],
        "resourceVersion": meta.get("resourceVersion"),
    }


def _normal(status: Object) -> Object:
    out = {k: v for k, v in status.items() if v}
    if "active" in out:
        out["active"] = sorted(ref["uid"] for ref in out["active"])
    return out
