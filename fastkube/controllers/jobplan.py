"""What a Job does next: pure. Counting finished pods without ever counting one twice, indexes, failure and success policies.

Counting (KEP-2307): each pod carries the finalizer TRACKING. A finished pod's uid is first written into status.uncountedTerminatedPods, then its
finalizer is taken off, then the uid is turned into a count: whatever crashes in between, each pod counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fastkube.controllers.meta import Object, condition, deleting, is_ready, is_terminal, phase, seconds, uid

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"
INDEX_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
UNLIMITED = 2**31 - 1

# A failed pod's fate under podFailurePolicy
COUNT, IGNORE, FAIL_JOB, FAIL_INDEX = "Count", "Ignore", "FailJob", "FailIndex"


def is_indexed(job: Object) -> bool:
    return job["spec"].get("completionMode") == "Indexed"


def parallelism(job: Object) -> int:
    value = job["spec"].get("parallelism")
    return 1 if value is None else value


def is_finished(job: Object) -> bool:
    return any(condition(job, t) is not None and condition(job, t)["status"] == "True" for t in ("Complete", "Failed"))  # type: ignore[index]


def index_of(pod: Object) -> int:
    """The completion index; -1 when the pod has none."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdigit() else -1


# --- sets of indexes, written "0,3-5,7" ---


def parse_indexes(text: str) -> set[int]:
    out: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.partition("-")
        if first.isdigit() and (not dash or last.isdigit()):
            out.update(range(int(first), int(last if dash else first) + 1))
    return out


def format_indexes(indexes: Iterable[int]) -> str:
    """Ranges of two are written as two numbers, longer ones with a dash, as upstream does."""
    parts: list[str] = []
    run: list[int] = []
    for i in [*sorted(set(indexes)), None]:
        if run and (i is None or i != run[-1] + 1):
            parts += [str(run[0])] if len(run) == 1 else [f"{run[0]},{run[-1]}"] if len(run) == 2 else [f"{run[0]}-{run[-1]}"]
            run = []
        if i is not None:
            run.append(i)
    return ",".join(parts)


# --- failure policy ---


def failure_action(job: Object, pod: Object) -> tuple[str, int, str]:
    """(action, number of the rule, why) of a failed pod; COUNT and -1 when no rule matches."""
    rules = (job["spec"].get("podFailurePolicy") or {}).get("rules") or ()
    for i, rule in enumerate(rules):
        why = _matches(rule, pod)
        if why:
            return rule["action"], i, why
    return COUNT, -1, ""


def _matches(rule: Object, pod: Object) -> str:
    status = pod.get("status") or {}
    name = f"{pod['metadata'].get('namespace')}/{pod['metadata']['name']}"
    codes = rule.get("onExitCodes")
    if codes:
        values = codes.get("values") or ()
        for group in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(group) or ():
                terminated = (container.get("state") or {}).get("terminated")
                if terminated is None or terminated.get("exitCode", 0) == 0:
                    continue
                if codes.get("containerName") and codes["containerName"] != container.get("name"):
                    continue
                code = terminated["exitCode"]
                if (code in values) == (codes["operator"] == "In"):
                    return f"Container {container.get('name')} for pod {name} failed with exit code {code}"
        return ""
    for pattern in rule.get("onPodConditions") or ():
        found = condition(pod, pattern["type"])
        if found is not None and found["status"] == pattern.get("status", "True"):
            return f"Pod {name} has condition {pattern['type']}"
    return ""


def is_failed(job: Object, pod: Object) -> bool:
    """Failed; or, unless pods are replaced only when they have Failed, going away before it ended."""
    if phase(pod) == "Failed":
        return True
    only_failed = job["spec"].get("podReplacementPolicy") == "Failed" or bool(job["spec"].get("podFailurePolicy"))
    return deleting(pod) and phase(pod) != "Succeeded" and not only_failed


# --- the state of a job ---


@dataclass(slots=True)
class State:
    """A Job's pods sorted by what they mean now."""

    active: list[Object] = field(default_factory=list)
    ready: int = 0
    terminating: int = 0
    succeeded: int = 0  # all told, counted and not yet
    failed: int = 0
    succeeded_indexes: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    new_succeeded: list[Object] = field(default_factory=list)  # finished and not yet counted
    new_failed: list[Object] = field(default_factory=list)
    index_failures: dict[int, int] = field(default_factory=dict)
    fail_job: tuple[str, str] | None = None  # (reason, message) of the rule that ends it all
    last_failure: float = 0.0
    recent_failures: int = 0  # since the last success, for the back-off


def observe(job: Object, pods: list[Object]) -> State:
    status = job.get("status") or {}
    uncounted = status.get("uncountedTerminatedPods") or {}
    counted_failed, counted_succeeded = set(uncounted.get("failed") or ()), set(uncounted.get("succeeded") or ())
    state = State(succeeded=(status.get("succeeded") or 0) + len(counted_succeeded), failed=(status.get("failed") or 0) + len(counted_failed))
    state.succeeded_indexes = parse_indexes(status.get("completedIndexes", ""))
    state.failed_indexes = parse_indexes(status.get("failedIndexes", ""))
    limit = (job["spec"].get("completions") or 0) if is_indexed(job) else 0
    for pod in pods:
        tracked = TRACKING in (pod["metadata"].get("finalizers") or ())
        if phase(pod) == "Succeeded":
            if tracked and uid(pod) not in counted_succeeded:
                if is_indexed(job):
                    if not 0 <= index_of(pod) < limit or index_of(pod) in state.succeeded_indexes:
                        state.new_succeeded.append(pod)  # its finalizer goes, it counts for nothing
                        continue
                    state.succeeded_indexes.add(index_of(pod))
                state.succeeded += not is_indexed(job)
                state.new_succeeded.append(pod)
        elif is_failed(job, pod):
            _note_index_failure(pod, state)
            if tracked and uid(pod) not in counted_failed:
                _count_failure(job, pod, state)
            state.terminating += deleting(pod) and not is_terminal(pod)
        elif deleting(pod):
            state.terminating += 1
        else:
            state.active.append(pod)
            state.ready += is_ready(pod)
    if is_indexed(job):
        state.succeeded = len(state.succeeded_indexes)
    return state


def _count_failure(job: Object, pod: Object, state: State) -> None:
    action, rule, why = failure_action(job, pod) if phase(pod) == "Failed" else (COUNT, -1, "")
    state.new_failed.append(pod)
    if action == IGNORE:
        return
    state.failed += 1
    state.last_failure = max(state.last_failure, finished_at(pod))
    state.recent_failures += 1
    index = index_of(pod)
    if is_indexed(job) and index >= 0:
        per_index = job["spec"].get("backoffLimitPerIndex")
        if per_index is not None and (action == FAIL_INDEX or state.index_failures[index] > per_index):
            state.failed_indexes.add(index)
    if action == FAIL_JOB and state.fail_job is None:
        state.fail_job = ("PodFailurePolicy", f"{why} matching FailJob rule at index {rule}")


def _note_index_failure(pod: Object, state: State) -> None:
    """Each failed pod knows how many of its index failed before it; the next one is told how many it makes."""
    had = (pod["metadata"].get("annotations") or {}).get(INDEX_FAILURES, "")
    if had.isdigit():
        index = index_of(pod)
        state.index_failures[index] = max(state.index_failures.get(index, 0), int(had) + 1)


def finished_at(pod: Object) -> float:
    """When the pod's last container ended, seconds since the epoch."""
    times = [seconds(((c.get("state") or {}).get("terminated") or {}).get("finishedAt")) for c in (pod.get("status") or {}).get("containerStatuses") or ()]
    if any(times):
        return max(times)
    for type in ("Ready", "DisruptionTarget"):
        found = condition(pod, type)
        if found is not None and found.get("lastTransitionTime"):
            return seconds(found["lastTransitionTime"])
    return seconds(pod["metadata"].get("deletionTimestamp") or pod["metadata"].get("creationTimestamp"))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a Job ends: the condition's type, its reason and message."""

    type: str  # Complete or Failed
    reason: str
    message: str


def ending(job: Object, state: State, now: float) -> Ending | None:
    """Whether the job is over, and how; None: it goes on."""
    spec, status = job["spec"], job.get("status") or {}
    completions = spec.get("completions")
    if state.fail_job is not None:
        return Ending("Failed", *state.fail_job)
    limit = spec.get("backoffLimit")
    limit = 6 if limit is None else limit
    per_index = spec.get("backoffLimitPerIndex") is not None
    if limit != UNLIMITED and state.failed > limit and not (per_index and limit == UNLIMITED):
        return Ending("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    deadline, start = spec.get("activeDeadlineSeconds"), status.get("startTime")
    if deadline is not None and start and not spec.get("suspend") and now - seconds(start) >= deadline:
        return Ending("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    if is_indexed(job):
        return _indexed_ending(job, state, completions or 0)
    if completions is None:
        if state.succeeded > 0 and not state.active and not state.terminating:
            return Ending("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    elif state.succeeded >= completions:
        return Ending("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    return None


def _indexed_ending(job: Object, state: State, completions: int) -> Ending | None:
    spec = job["spec"]
    for i, rule in enumerate((spec.get("successPolicy") or {}).get("rules") or ()):
        wanted = parse_indexes(rule["succeededIndexes"]) if rule.get("succeededIndexes") else set(range(completions))
        reached = len(wanted & state.succeeded_indexes)
        needed = rule.get("succeededCount")
        if reached >= (len(wanted) if needed is None else needed):
            return Ending("Complete", "SuccessPolicy", f"Matched rules at index {i}")
    most = spec.get("maxFailedIndexes")
    if most is not None and len(state.failed_indexes) > most:
        return Ending("Failed", "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes")
    if len(state.succeeded_indexes) >= completions:
        return Ending("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    if len(state.succeeded_indexes | state.failed_indexes) >= completions and state.failed_indexes:
        return Ending("Failed", "FailedIndexes", "Job has failed indexes")
    return None


def wanted_active(job: Object, state: State) -> int:
    """How many pods should be active now."""
    if job["spec"].get("suspend"):
        return 0
    completions = job["spec"].get("completions")
    if completions is None:
        return len(state.active) if state.succeeded > 0 else parallelism(job)
    left = completions - state.succeeded - (len(state.failed_indexes) if is_indexed(job) else 0)
    return max(min(parallelism(job), left), 0)


def free_indexes(job: Object, state: State, count: int) -> list[int]:
    """The first `count` indexes that are neither done nor being worked on."""
    taken = {index_of(p) for p in state.active} | state.succeeded_indexes | state.failed_indexes
    out: list[int] = []
    for i in range(job["spec"].get("completions") or 0):
        if len(out) == count:
            break
        if i not in taken:
            out.append(i)
    return out


def surplus_pods(job: Object, state: State) -> list[Object]:
    """Indexed: active pods whose index is out of range, done, or taken by an older pod."""
    if not is_indexed(job):
        return []
    seen: set[int] = set()
    out: list[Any] = []
    for pod in sorted(state.active, key=lambda p: (seconds(p["metadata"].get("creationTimestamp")), p["metadata"]["name"])):
        index = index_of(pod)
        if index in seen or index in state.succeeded_indexes or not 0 <= index < (job["spec"].get("completions") or 0):
            out.append(pod)
        seen.add(index)
    return out
