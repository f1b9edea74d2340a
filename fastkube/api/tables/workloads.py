"""Tables of apps, batch, autoscaling and policy."""

from __future__ import annotations

from typing import Any

from fastkube.api.tables.model import (
    NONE,
    UNKNOWN,
    UNSET,
    Cells,
    Object,
    Printer,
    age,
    columns,
    containers,
    duration,
    get,
    labels,
    name_of,
    selector,
    since,
    true,
    yes,
)
from fastkube.runtime import clock

_WORKLOAD = "+Containers|+Images|+Selector"


def _template(obj: Object) -> tuple[str, str]:
    return containers(get(obj, "spec", "template", "spec"))


def _deployment(obj: Object) -> Cells:
    status = obj.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{get(obj, 'spec', 'replicas', default=0)}"
    chosen = selector(get(obj, "spec", "selector"), "")
    return [name_of(obj), ready, status.get("updatedReplicas", 0), status.get("availableReplicas", 0), age(obj), *_template(obj), chosen]


def _replica_set(obj: Object) -> Cells:
    status = obj.get("status") or {}
    counts = [get(obj, "spec", "replicas", default=0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [name_of(obj), *counts, age(obj), *_template(obj), selector(get(obj, "spec", "selector"))]


def _stateful_set(obj: Object) -> Cells:
    ready = f"{get(obj, 'status', 'readyReplicas', default=0)}/{get(obj, 'spec', 'replicas', default=0)}"
    return [name_of(obj), ready, age(obj), *_template(obj)]


def _daemon_set(obj: Object) -> Cells:
    status = obj.get("status") or {}
    counts = [status.get(k, 0) for k in ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable")]
    return [
        name_of(obj), *counts, labels(get(obj, "spec", "template", "spec", "nodeSelector")), age(obj), *_template(obj), selector(get(obj, "spec", "selector")),
    ]  # fmt: skip


def _revision(obj: Object) -> Cells:
    owner: Object | None = next((r for r in get(obj, "metadata", "ownerReferences", default=()) if r.get("controller")), None)
    named = NONE
    if owner:
        group = owner.get("apiVersion", "").rpartition("/")[0]
        named = (owner.get("kind", "") + (f".{group}" if group else "")).lower() + f"/{owner.get('name', '')}"
    return [name_of(obj), named, obj.get("revision", 0), age(obj)]


def _job(obj: Object) -> Cells:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    succeeded, parallelism = status.get("succeeded", 0), spec.get("parallelism") or 0
    if spec.get("completions") is not None:
        done = f"{succeeded}/{spec['completions']}"
    else:
        done = f"{succeeded}/1 of {parallelism}" if parallelism > 1 else f"{succeeded}/1"
    took = ""
    if status.get("startTime"):
        end = clock.parse(status["completionTime"]) if status.get("completionTime") else clock.now()
        took = duration(end - clock.parse(status["startTime"]))
    deleted = bool(get(obj, "metadata", "deletionTimestamp"))
    states = [("Complete", true(obj, "Complete")), ("Failed", true(obj, "Failed")), ("Terminating", deleted), ("Suspended", true(obj, "Suspended"))]
    state = next((name for name, holds in (*states, ("FailureTarget", true(obj, "FailureTarget"))) if holds), "Running")
    return [name_of(obj), state, done, took, age(obj), *_template(obj), selector(spec.get("selector"))]


def _cron_job(obj: Object) -> Cells:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    last = since(status["lastScheduleTime"]) if status.get("lastScheduleTime") else NONE
    job = get(spec, "jobTemplate", "spec", default={})
    return [
        name_of(obj), spec.get("schedule", ""), spec.get("timeZone") or NONE, yes(spec.get("suspend")), len(status.get("active") or ()), last, age(obj),
        *containers(get(job, "template", "spec")), selector(job.get("selector")),
    ]  # fmt: skip


def _metric(spec: Object, status: Object) -> str:
    """One metric of an autoscaler: current value over target."""
    source = {"Resource": "resource", "ContainerResource": "containerResource", "Pods": "pods", "Object": "object", "External": "external"}.get(
        spec.get("type", "")
    )
    if source is None:
        return "<unknown type>"
    of, current = spec.get(source) or {}, get(status, source, "current", default={})
    target = of.get("target") or {}
    average = target.get("averageValue")
    if source in ("resource", "containerResource"):
        if average is not None:
            return f"{of.get('name', '')}: {current.get('averageValue', UNKNOWN)}/{average}"
        return f"{of.get('name', '')}: {_percent(current.get('averageUtilization'), UNKNOWN)}/{_percent(target.get('averageUtilization'), '<auto>')}"
    if source == "pods":
        return f"{current.get('averageValue', UNKNOWN)}/{average or '0'}"
    if average is not None:
        return f"{current.get('averageValue', UNKNOWN)}/{average} (avg)"
    return f"{current.get('value', UNKNOWN)}/{target.get('value', '0')}"


def _percent(value: int | None, absent: str) -> str:
    return absent if value is None else f"{value}%"


def _autoscaler(obj: Object) -> Cells:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    target = spec.get("scaleTargetRef") or {}
    metrics, current = spec.get("metrics") or [], status.get("currentMetrics") or []
    if "targetCPUUtilizationPercentage" in spec:  # autoscaling/v1
        metrics = [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": spec["targetCPUUtilizationPercentage"]}}}]
        used = status.get("currentCPUUtilizationPercentage")
        current = [{"resource": {"current": {} if used is None else {"averageUtilization": used}}}]
    shown = [_metric(m, current[i] if i < len(current) else {}) for i, m in enumerate(metrics)]
    text = ", ".join(shown[:2]) + (f" + {len(shown) - 2} more..." if len(shown) > 2 else "")
    least = spec.get("minReplicas")
    return [
        name_of(obj), f"{target.get('kind', '')}/{target.get('name', '')}", text or NONE, UNSET if least is None else str(least), spec.get("maxReplicas", 0),
        status.get("currentReplicas", 0), age(obj),
    ]  # fmt: skip


def _budget(obj: Object) -> Cells:
    def shown(value: Any) -> str:
        return "N/A" if value is None else str(value)

    spec = obj.get("spec") or {}
    return [name_of(obj), shown(spec.get("minAvailable")), shown(spec.get("maxUnavailable")), get(obj, "status", "disruptionsAllowed", default=0), age(obj)]


PRINTERS = {
    ("apps", "Deployment"): Printer(columns(f"Name|Ready|Up-to-date|Available|Age|{_WORKLOAD}"), _deployment),
    ("apps", "ReplicaSet"): Printer(columns(f"Name|Desired:integer|Current:integer|Ready:integer|Age|{_WORKLOAD}"), _replica_set),
    ("apps", "StatefulSet"): Printer(columns("Name|Ready|Age|+Containers|+Images"), _stateful_set),
    ("apps", "DaemonSet"): Printer(
        columns(f"Name|Desired:integer|Current:integer|Ready:integer|Up-to-date:integer|Available:integer|Node Selector|Age|{_WORKLOAD}"), _daemon_set
    ),
    ("apps", "ControllerRevision"): Printer(columns("Name|Controller|Revision|Age"), _revision),
    ("batch", "Job"): Printer(columns(f"Name|Status|Completions|Duration|Age|{_WORKLOAD}"), _job),
    ("batch", "CronJob"): Printer(columns(f"Name|Schedule|Timezone|Suspend|Active:integer|Last Schedule|Age|{_WORKLOAD}"), _cron_job),
    ("autoscaling", "HorizontalPodAutoscaler"): Printer(columns("Name|Reference|Targets|MinPods|MaxPods|Replicas|Age"), _autoscaler),
    ("autoscaling", "Scale"): Printer(
        columns("Name|Desired:integer|Available:integer|Age"),
        lambda o: [name_of(o), get(o, "spec", "replicas", default=0), get(o, "status", "replicas", default=0), age(o)],
    ),
    ("policy", "PodDisruptionBudget"): Printer(columns("Name|Min Available|Max Unavailable|Allowed Disruptions:integer|Age"), _budget),
}
