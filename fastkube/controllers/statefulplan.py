"""What a StatefulSet does next: pure. From the set and its pods to a list of steps (pkg/controller/statefulset updateStatefulSet).

Laws:
1. Pod NAME-i is made only after all pods before it are running and ready (OrderedReady), and at most one pod per ordinal is ever there.
2. Pods beyond the last ordinal go from the highest down, each after the ones above it are gone (OrderedReady).
3. An update takes pods from the highest ordinal down to the partition, no more than maxUnavailable at a time.
4. podManagementPolicy Parallel drops the waiting of laws 1 and 2, not that of law 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastkube.controllers.meta import Object, deleting, is_available, is_ready, phase, resolve_int_or_percent

REVISION_LABEL = "controller-revision-hash"
POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"


@dataclass(slots=True)
class Steps:
    create: list[tuple[int, str]] = field(default_factory=list)  # (ordinal, revision name)
    delete: list[Object] = field(default_factory=list)


def ordinal_of(set_name: str, pod: Object) -> int:
    """The number in the pod's name; -1 when it is none of the set's."""
    prefix, _, number = pod["metadata"]["name"].rpartition("-")
    return int(number) if prefix == set_name and number.isdigit() and str(int(number)) == number else -1


def revision_of(pod: Object) -> str:
    return (pod["metadata"].get("labels") or {}).get(REVISION_LABEL, "")


def replicas(sts: Object) -> int:
    value = sts["spec"].get("replicas")
    return 1 if value is None else value


def start_ordinal(sts: Object) -> int:
    return (sts["spec"].get("ordinals") or {}).get("start") or 0


def is_parallel(sts: Object) -> bool:
    return sts["spec"].get("podManagementPolicy") == "Parallel"


def partition(sts: Object) -> int:
    return ((sts["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0


def max_unavailable(sts: Object) -> int:
    value = ((sts["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable")
    return max(resolve_int_or_percent(value, replicas(sts), round_up=False), 1) if value is not None else 1


def is_running_and_ready(pod: Object) -> bool:
    return phase(pod) == "Running" and is_ready(pod)


def revision_for(sts: Object, ordinal: int, current: str, update: str) -> str:
    """Of which revision a pod made now is: below the partition, and while the update has not come down to it, the current one."""
    spec = sts["spec"]
    if (spec.get("updateStrategy") or {}).get("type", "RollingUpdate") == "OnDelete":
        return update
    start = start_ordinal(sts)
    below = (
        ordinal < start + partition(sts)
        if "rollingUpdate" in (spec.get("updateStrategy") or {})
        else ordinal < start + ((sts.get("status") or {}).get("currentReplicas") or 0)
    )
    return current if below else update


def steps(sts: Object, pods: list[Object], current: str, update: str, now: float) -> Steps:
    """What to do now; nothing while something has to be waited for."""
    name, start, parallel = sts["metadata"]["name"], start_ordinal(sts), is_parallel(sts)
    min_ready = sts["spec"].get("minReadySeconds") or 0
    by_ordinal = {ordinal_of(name, p): p for p in pods}
    wanted = range(start, start + replicas(sts))
    out = Steps()
    if deleting(sts):
        return out
    for ordinal in wanted:
        pod = by_ordinal.get(ordinal)
        if pod is None:
            out.create.append((ordinal, revision_for(sts, ordinal, current, update)))
            if not parallel:
                return out
        elif phase(pod) in ("Failed", "Succeeded"):
            if not deleting(pod):
                out.delete.append(pod)
            if not parallel:
                return out
        elif not parallel and (deleting(pod) or not is_running_and_ready(pod) or not is_available(pod, min_ready, now)):
            return out
    condemned = sorted((o for o in by_ordinal if o >= 0 and o not in wanted), reverse=True)
    unhealthy = [o for o in sorted(by_ordinal) if o >= 0 and (deleting(by_ordinal[o]) or not is_running_and_ready(by_ordinal[o]))]
    for ordinal in condemned:
        pod = by_ordinal[ordinal]
        if deleting(pod):
            if not parallel:
                return out
            continue
        if not parallel and unhealthy and unhealthy[0] != ordinal and not is_running_and_ready(pod):
            return out
        out.delete.append(pod)
        if not parallel:
            return out
    if out.create or (out.delete and not parallel) or condemned:
        return out
    out.delete += _update(sts, by_ordinal, wanted, update, min_ready, now)
    return out


def _update(sts: Object, by_ordinal: dict[int, Object], wanted: range, update: str, min_ready: int, now: float) -> list[Object]:
    """Pods of old revisions that go now in a rolling update."""
    if (sts["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") != "RollingUpdate":
        return []
    allowed = max_unavailable(sts)
    pods = [(o, by_ordinal[o]) for o in wanted if o in by_ordinal]
    unavailable = sum(deleting(p) or not is_running_and_ready(p) or not is_available(p, min_ready, now) for _, p in pods) + len(wanted) - len(pods)
    doomed: list[Object] = []
    for _, pod in sorted((x for x in pods if x[0] >= wanted.start + partition(sts)), key=lambda x: x[0], reverse=True):
        healthy = is_running_and_ready(pod) and is_available(pod, min_ready, now) and not deleting(pod)
        if revision_of(pod) != update and not deleting(pod):
            if not healthy:
                doomed.append(pod)  # it counts as unavailable already
            elif unavailable + sum(is_running_and_ready(p) for p in doomed) < allowed:
                doomed.append(pod)
        if allowed == 1 and (doomed or not healthy):
            break  # one after the other, in order
    return doomed


def status(sts: Object, pods: list[Object], current: str, update: str, collisions: int, now: float) -> Object:
    """The status' numbers; when all pods are of the update revision and ready, it becomes the current one."""
    name, min_ready = sts["metadata"]["name"], sts["spec"].get("minReadySeconds") or 0
    own = [p for p in pods if ordinal_of(name, p) >= 0 and phase(p) not in ("Failed", "Succeeded")]
    alive = [p for p in own if not deleting(p)]
    ready = [p for p in own if is_running_and_ready(p)]
    updated = sum(revision_of(p) == update for p in alive)
    out: Object = {
        "observedGeneration": sts["metadata"].get("generation", 0), "replicas": len(own), "readyReplicas": len(ready),
        "availableReplicas": sum(is_available(p, min_ready, now) for p in ready), "currentReplicas": sum(revision_of(p) == current for p in alive),
        "updatedReplicas": updated, "currentRevision": current, "updateRevision": update, "collisionCount": collisions,
    }  # fmt: skip
    rolling = (sts["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
    if rolling and updated == len(own) == len(ready) == replicas(sts) and current != update:
        out |= {"currentRevision": update, "currentReplicas": updated}
    return {k: v for k, v in out.items() if v or k in ("replicas", "availableReplicas", "collisionCount")}
