"""Jobs and CronJobs: cron against a naive model, counting, policies, and what users see on the real API server."""

from __future__ import annotations

import datetime
import zoneinfo
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.controllers import cron, cronjob, job, jobplan
from fastkube.controllers.meta import condition
from fastkube.runtime import clock
from tests.controllers.world import Kubelet, World, world

Object = dict[str, Any]
JOBS, CRON_JOBS, PODS = "batch/v1/jobs", "batch/v1/cronjobs", "v1/pods"

# --- cron ---

numbers = st.integers(0, 59)
minute = st.one_of(st.just("*"), st.just("*/7"), numbers.map(str), st.tuples(numbers, numbers).map(lambda t: f"{min(t)}-{max(t)}"), st.just("5,20/15"))
hour = st.one_of(st.just("*"), st.integers(0, 23).map(str), st.just("1-5"), st.just("*/6"))
day = st.one_of(st.just("*"), st.integers(1, 31).map(str), st.just("?"))
month = st.one_of(st.just("*"), st.integers(1, 12).map(str), st.just("jan-mar"))
weekday = st.one_of(st.just("*"), st.integers(0, 7).map(str), st.just("mon-fri"))
ZONES = [None, "Europe/Berlin", "America/New_York", "Asia/Kathmandu"]


@settings(deadline=None, max_examples=150)
@given(minute, hour, day, month, weekday, st.sampled_from(ZONES), st.integers(1_700_000_000, 1_760_000_000))
def test_the_next_time_is_the_first_minute_that_fits(m: str, h: str, d: str, mo: str, wd: str, zone: str | None, after: int) -> None:
    schedule = cron.parse(f"{m} {h} {d} {mo} {wd}", zone)
    tz = zoneinfo.ZoneInfo(zone) if zone else datetime.UTC

    def fits(t: int) -> bool:
        local = datetime.datetime.fromtimestamp(t, tz)
        if local.fold:
            return False
        by_day, by_week = local.day in schedule.days, local.isoweekday() % 7 in schedule.weekdays
        days = by_day and by_week if d in "*?" or wd == "*" else by_day or by_week
        return days and local.minute in schedule.minutes and local.hour in schedule.hours and local.month in schedule.months

    found = schedule.next(after)
    t = (after // 60 + 1) * 60
    for _ in range(60 * 36):  # a day and a half of minutes
        if fits(t):
            assert found == t
            return
        t += 60
    assert found is None or found >= t


def test_daylight_saving() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    schedule = cron.parse("30 2 * * *", "Europe/Berlin")
    before = datetime.datetime(2026, 3, 28, 12, tzinfo=berlin).timestamp()
    first = schedule.next(before)
    assert datetime.datetime.fromtimestamp(first, berlin).isoformat() == "2026-03-30T02:30:00+02:00", "29 March has no 02:30"
    autumn = datetime.datetime(2026, 10, 24, 12, tzinfo=berlin).timestamp()
    once = schedule.next(autumn)
    assert datetime.datetime.fromtimestamp(schedule.next(once), berlin).day == 26, "25 October has it twice and runs once"


def test_macros_and_nonsense() -> None:
    assert cron.parse("@hourly").next(0) == 3600 and cron.parse("@every 90s").next(100) == 190
    assert cron.parse("0 0 30 2 *").next(1_700_000_000) is None
    for bad in ("", "* * * *", "60 * * * *", "a * * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "@sometimes"):
        with pytest.raises(ValueError):
            cron.parse(bad)
    with pytest.raises(ValueError, match="time zone"):
        cron.parse("* * * * *", "Moon/Tranquility")


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 100_000_000))
def test_what_is_due_is_the_latest(step_minutes: int, gap: int) -> None:
    schedule = cron.parse(f"*/{max(step_minutes % 60, 1)} * * * *")
    earliest = 1_700_000_000.0
    now = earliest + gap
    found = cronjob.due(schedule, earliest, now)
    assert found.next > now
    if found.run is None:
        assert schedule.next(earliest) > now
    else:
        assert earliest < found.run <= now and schedule.next(found.run) == found.next


# --- jobs: pure ---


@given(st.sets(st.integers(0, 60)))
def test_indexes_are_written_and_read(indexes: set[int]) -> None:
    assert jobplan.parse_indexes(jobplan.format_indexes(indexes)) == indexes


def test_indexes_as_upstream_writes_them() -> None:
    assert jobplan.format_indexes([0, 1, 3, 4, 5, 9]) == "0,1,3-5,9" and jobplan.format_indexes([]) == ""
    assert jobplan.parse_indexes("garbage,4") == {4}


def a_job(**spec: Any) -> Object:
    return {
        "metadata": {"name": "j", "namespace": "ns", "uid": "j"},
        "spec": {"completions": 3, "parallelism": 2, "template": {"spec": {}}, **spec},
        "status": {},
    }


def a_pod(
    name: str, phase: str = "Running", index: int | None = None, code: int | None = None, tracked: bool = True, failures: int | None = None, **conditions: str
) -> Object:
    meta: Object = {"name": name, "namespace": "ns", "uid": name, "finalizers": [jobplan.TRACKING] if tracked else []}
    annotations = {jobplan.INDEX: str(index)} if index is not None else {}
    if failures is not None:
        annotations[jobplan.INDEX_FAILURES] = str(failures)
    meta["annotations"] = annotations
    status: Object = {"phase": phase, "conditions": [{"type": k, "status": v} for k, v in conditions.items()]}
    if code is not None:
        status["containerStatuses"] = [{"name": "c", "state": {"terminated": {"exitCode": code}}}]
    return {"metadata": meta, "spec": {}, "status": status}


def test_failure_policy_decides_what_counts() -> None:
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": {"containerName": "other", "operator": "NotIn", "values": [0]}},
    ]
    j = a_job(podFailurePolicy={"rules": rules})
    state = jobplan.observe(j, [a_pod("a", "Failed", code=42)])
    assert state.fail_job == ("PodFailurePolicy", "Container c for pod ns/a failed with exit code 42 matching FailJob rule at index 0")
    assert jobplan.ending(j, state, 0).reason == "PodFailurePolicy"
    state = jobplan.observe(j, [a_pod("a", "Failed", code=137, DisruptionTarget="True")])
    assert state.failed == 0 and state.new_failed and state.fail_job is None
    state = jobplan.observe(j, [a_pod("a", "Failed", code=1)])
    assert state.failed == 1


def test_no_pod_counts_twice() -> None:
    j = a_job()
    j["status"] = {"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["a"]}}
    pods = [a_pod("a", "Succeeded"), a_pod("b", "Succeeded", tracked=False), a_pod("c", "Succeeded"), a_pod("d")]
    state = jobplan.observe(j, pods)
    assert state.succeeded == 3 and [p["metadata"]["name"] for p in state.new_succeeded] == ["c"] and len(state.active) == 1
    assert jobplan.ending(j, state, 0).type == "Complete"


def test_how_many_pods_are_wanted() -> None:
    j = a_job()
    assert jobplan.wanted_active(j, jobplan.State()) == 2
    assert jobplan.wanted_active(j, jobplan.State(succeeded=2)) == 1
    assert jobplan.wanted_active(a_job(suspend=True), jobplan.State()) == 0
    work_queue = a_job(completions=None)
    assert jobplan.wanted_active(work_queue, jobplan.State()) == 2
    assert jobplan.wanted_active(work_queue, jobplan.State(succeeded=1, active=[{}])) == 1
    assert jobplan.ending(work_queue, jobplan.State(succeeded=1, active=[{}]), 0) is None
    assert jobplan.ending(work_queue, jobplan.State(succeeded=1), 0).type == "Complete"


def test_indexes_fail_and_succeed_by_themselves() -> None:
    j = a_job(completionMode="Indexed", backoffLimitPerIndex=1, backoffLimit=jobplan.UNLIMITED, maxFailedIndexes=1)
    first = jobplan.observe(j, [a_pod("a", "Failed", 0, failures=0), a_pod("b", "Running", 1)])
    assert first.failed_indexes == set() and first.index_failures[0] == 1 and jobplan.free_indexes(j, first, 3) == [0, 2]
    second = jobplan.observe(j, [a_pod("a", "Failed", 0, failures=0, tracked=False), a_pod("a2", "Failed", 0, failures=1), a_pod("b", "Running", 1)])
    assert second.failed_indexes == {0} and jobplan.free_indexes(j, second, 3) == [2]
    j["status"] = {"completedIndexes": "1,2", "failedIndexes": "0"}
    done = jobplan.observe(j, [])
    assert jobplan.ending(j, done, 0) == jobplan.Ending("Failed", "FailedIndexes", "Job has failed indexes")
    j["status"]["failedIndexes"] = "0,1"
    assert jobplan.ending(j, jobplan.observe(j, []), 0).reason == "MaxFailedIndexesExceeded"
    success = a_job(completionMode="Indexed", successPolicy={"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]})
    success["status"] = {"completedIndexes": "2"}
    assert jobplan.ending(success, jobplan.observe(success, []), 0).reason == "SuccessPolicy"


# --- on the real API server ---


class Worker(Kubelet):
    """A kubelet whose pods end: `outcome(pod)` is an exit code."""

    outcome: Any = staticmethod(lambda pod: 0)

    async def handle(self, pod: Object) -> None:
        phase = (pod.get("status") or {}).get("phase", "Pending")
        if "deletionTimestamp" in pod["metadata"]:
            if not pod["metadata"].get("deletionGracePeriodSeconds"):
                return  # only its finalizers hold it
            await super().handle(pod)
        elif phase == "Running":
            code = self.outcome(pod)
            if code is None:
                return
            terminated = {"exitCode": code, "finishedAt": clock.rfc3339(), "reason": "Completed" if code == 0 else "Error"}
            statuses = [{"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": terminated}}]
            status = {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": statuses, "conditions": [{"type": "Ready", "status": "False"}]}
            await self.client.patch(PODS, pod["metadata"]["name"], {"status": status}, pod["metadata"]["namespace"], kind="strategic", subresource="status")
        else:
            await super().handle(pod)


@pytest.fixture
async def w(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job, "BACKOFF_SECONDS_MIN", 0.05)
    async with world() as running:
        await running.start(
            "serviceaccount-controller", "job-controller", "cronjob-controller", "ttl-after-finished-controller", "garbage-collector-controller"
        )
        await running.until(lambda: running.exists("v1/serviceaccounts", "default", "default"))
        yield running


async def work(w: World, outcome: Any = lambda pod: 0) -> Worker:
    kubelet = Worker(w.client_for("kubelet"))
    kubelet.outcome = outcome
    w.supervisor.start("kubelet", kubelet.run)
    w.supervisor.start("kubelet informer", kubelet.pods.run)
    return kubelet


def make_job(name: str = "sum", **spec: Any) -> Object:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "default"}, "spec": {"template": template, **spec}}


async def ended(w: World, type: str, name: str = "sum") -> Object:
    async def yes() -> Any:
        found = await w.client.get(JOBS, name, "default")
        return found if (condition(found, type) or {}).get("status") == "True" else None

    return await w.until(yes)


async def test_a_job_completes(w: World) -> None:
    await work(w)
    await w.client.create(JOBS, make_job(completions=5, parallelism=2))
    found = await ended(w, "Complete")
    s = found["status"]
    assert s["succeeded"] == 5 and not s.get("active") and not s.get("failed") and s["completionTime"] and s["startTime"]
    assert not s.get("uncountedTerminatedPods") and s["ready"] == 0
    assert condition(found, "SuccessCriteriaMet")["reason"] == "CompletionsReached"
    pods = await w.items(PODS)
    assert len(pods) == 5 and not any(p["metadata"].get("finalizers") for p in pods)
    assert pods[0]["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "sum"
    assert "Completed: Job completed" in await w.events("sum")
    assert not await w.rest()


async def test_a_failing_job_gives_up(w: World) -> None:
    await work(w, lambda pod: 1)
    await w.client.create(JOBS, make_job(backoffLimit=2))
    found = await ended(w, "Failed")
    assert condition(found, "Failed")["reason"] == "BackoffLimitExceeded" and found["status"]["failed"] == 3
    assert "BackoffLimitExceeded: Job has reached the specified backoff limit" in await w.events("sum")
    assert not await w.rest()


async def test_indexed_jobs(w: World) -> None:
    tries: dict[str, int] = {}

    def outcome(pod: Object) -> int:
        index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
        tries[index] = tries.get(index, 0) + 1
        return 1 if index == "1" and tries[index] == 1 else 0

    await work(w, outcome)
    await w.client.create(JOBS, make_job(completions=4, parallelism=4, completionMode="Indexed", backoffLimitPerIndex=2))
    found = await ended(w, "Complete")
    assert found["status"]["completedIndexes"] == "0-3" and found["status"]["succeeded"] == 4 and found["status"]["failed"] == 1
    pods = {p["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]: p for p in await w.items(PODS)}
    assert pods["2"]["spec"]["hostname"] == "sum-2" and any(e["name"] == "JOB_COMPLETION_INDEX" for e in pods["2"]["spec"]["containers"][0]["env"])
    counts = sorted(p["metadata"]["annotations"].get("batch.kubernetes.io/job-index-failure-count") for p in await w.items(PODS))
    assert counts == ["0", "0", "0", "0", "1"]


async def test_suspend_and_resume(w: World) -> None:
    release: list[int] = []
    await work(w, lambda pod: 0 if release else None)
    await w.client.create(JOBS, make_job(completions=2, parallelism=2))

    async def active(count: int) -> bool:
        return ((await w.client.get(JOBS, "sum", "default")).get("status") or {}).get("active", 0) == count

    await w.until(lambda: active(2))
    await w.client.patch(JOBS, "sum", {"spec": {"suspend": True}}, "default")
    await w.until(lambda: active(0))
    found = await w.client.get(JOBS, "sum", "default")
    assert condition(found, "Suspended")["status"] == "True" and not found["status"].get("failed") and "startTime" not in found["status"]
    release.append(1)
    await w.client.patch(JOBS, "sum", {"spec": {"suspend": False}}, "default")
    assert (await ended(w, "Complete"))["status"]["succeeded"] == 2


async def test_deadline_and_ttl(w: World) -> None:
    await work(w, lambda pod: None)
    await w.client.create(JOBS, make_job(activeDeadlineSeconds=1, ttlSecondsAfterFinished=1))
    found = await ended(w, "Failed")
    assert condition(found, "Failed")["reason"] == "DeadlineExceeded"

    async def gone() -> bool:
        return await w.exists(JOBS, "sum", "default") is None and not await w.items(PODS)

    await w.until(gone)


async def test_a_deleted_job_leaves_no_pod_behind(w: World) -> None:
    await work(w, lambda pod: None)
    await w.client.create(JOBS, make_job(parallelism=3, completions=3))

    async def three() -> bool:
        return len(await w.items(PODS)) == 3

    await w.until(three)
    await w.client.delete(JOBS, "sum", "default", propagation="Background")

    async def gone() -> bool:
        return not await w.items(PODS)

    await w.until(gone)


async def test_cron_jobs_make_jobs(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await work(w)
    spec = {"schedule": "@every 1s", "successfulJobsHistoryLimit": 1, "jobTemplate": {"spec": make_job()["spec"]}}
    monkeypatch.setattr(cronjob, "job_name", lambda cj, scheduled: f"tick-{int(scheduled)}")
    await w.client.create(CRON_JOBS, {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick", "namespace": "default"}, "spec": spec})

    async def ran() -> Any:
        found = await w.client.get(CRON_JOBS, "tick", "default")
        return found if (found.get("status") or {}).get("lastSuccessfulTime") else None

    found = await w.until(ran)
    assert found["status"]["lastScheduleTime"]
    jobs = await w.items(JOBS)
    assert "batch.kubernetes.io/cronjob-scheduled-timestamp" in jobs[0]["metadata"]["annotations"]
    assert any(e.startswith("SuccessfulCreate: Created job tick-") for e in await w.events("tick"))

    async def trimmed() -> bool:
        return any(e.startswith("SuccessfulDelete: Deleted job tick-") for e in await w.events("tick"))

    await w.until(trimmed)
    await w.client.patch(CRON_JOBS, "tick", {"spec": {"suspend": True}}, "default")
    assert not await w.rest(1.2)
