"""Conversion between the served versions of kinds that share a storage version: autoscaling v1 and v2, core and events.k8s.io events; and Scale.

Objects of every other kind are stored as they are served. Pure functions on decoded objects; the argument may be taken over by the result.
"""

from __future__ import annotations

import copy
from typing import Any

import orjson

from fastkube.api import selectors
from fastkube.api.resources import Resource

Object = dict[str, Any]

# Facts of v2 that v1 has no fields for travel in annotations (upstream: pkg/apis/autoscaling/annotations.go).
METRICS = "autoscaling.alpha.kubernetes.io/metrics"
CURRENT_METRICS = "autoscaling.alpha.kubernetes.io/current-metrics"
CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"


def storage_kind(resource: Resource) -> tuple[str, str]:
    """(group, kind) of the rules for the objects that `resource` serves. Events keep the rules of the API they come through."""
    return resource.group, resource.kind


def to_storage(resource: Resource, obj: Object) -> Object:
    """An object as it is served -> as it is stored."""
    if resource.kind == "HorizontalPodAutoscaler" and resource.version == "v1":
        return _hpa_to_v2(obj)
    if resource.group == "events.k8s.io":
        return _event_to_core(obj)
    return obj


def from_storage(resource: Resource, obj: Object) -> Object:
    """An object as it is stored -> as `resource` serves it."""
    if resource.kind == "HorizontalPodAutoscaler" and resource.version == "v1":
        return _hpa_to_v1(obj)
    if resource.group == "events.k8s.io":
        return _event_from_core(obj)
    return obj


def converts(resource: Resource) -> bool:
    """Whether the bytes stored are not those that `resource` serves."""
    return resource.storage_version != resource.api_version


# ---- HorizontalPodAutoscaler


def _hpa_to_v2(obj: Object) -> Object:
    spec, status, meta = dict(obj.get("spec") or {}), dict(obj.get("status") or {}), dict(obj.get("metadata") or {})
    annotations = dict(meta.get("annotations") or {})
    metrics = _json(annotations.pop(METRICS, None)) or []
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        metrics = [*metrics, {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}]
    elif not metrics:
        metrics = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]
    spec["metrics"] = metrics
    behavior = _json(annotations.pop(BEHAVIOR, None))
    if behavior is not None:
        spec["behavior"] = behavior
    conditions = _json(annotations.pop(CONDITIONS, None))
    if conditions is not None:
        status["conditions"] = conditions
    current = _json(annotations.pop(CURRENT_METRICS, None)) or []
    cpu = status.pop("currentCPUUtilizationPercentage", None)
    if cpu is not None:
        current = [*current, {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": cpu}}}]
    status["currentMetrics"] = current or None
    if annotations:
        meta["annotations"] = annotations
    else:
        meta.pop("annotations", None)
    return {**obj, "apiVersion": "autoscaling/v2", "metadata": meta, "spec": spec, "status": status}


def _hpa_to_v1(obj: Object) -> Object:
    spec, status, meta = dict(obj.get("spec") or {}), dict(obj.get("status") or {}), dict(obj.get("metadata") or {})
    annotations = dict(meta.get("annotations") or {})
    others = []
    for metric in spec.pop("metrics", None) or ():
        resource = metric.get("resource") or {}
        percent = (resource.get("target") or {}).get("averageUtilization")
        if metric.get("type") == "Resource" and resource.get("name") == "cpu" and percent is not None and "targetCPUUtilizationPercentage" not in spec:
            spec["targetCPUUtilizationPercentage"] = percent
        else:
            others.append(metric)
    if others:
        annotations[METRICS] = orjson.dumps(others).decode()
    behavior = spec.pop("behavior", None)
    if behavior is not None:
        annotations[BEHAVIOR] = orjson.dumps(behavior).decode()
    conditions = status.pop("conditions", None)
    if conditions:
        annotations[CONDITIONS] = orjson.dumps(conditions).decode()
    kept = []
    for metric in status.pop("currentMetrics", None) or ():
        resource = metric.get("resource") or {}
        percent = (resource.get("current") or {}).get("averageUtilization")
        if metric.get("type") == "Resource" and resource.get("name") == "cpu" and percent is not None and "currentCPUUtilizationPercentage" not in status:
            status["currentCPUUtilizationPercentage"] = percent
        else:
            kept.append(metric)
    if kept:
        annotations[CURRENT_METRICS] = orjson.dumps(kept).decode()
    if annotations:
        meta["annotations"] = annotations
    status.setdefault("currentReplicas", 0)
    status.setdefault("desiredReplicas", 0)
    return {**obj, "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status}


def _json(text: str | None) -> Any:
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError:
        return None


# ---- Event: (name in events.k8s.io/v1, name in v1)

_EVENT_FIELDS = (
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
)


def _event_to_core(obj: Object) -> Object:
    out = {**obj, "apiVersion": "v1"}
    for new, core in _EVENT_FIELDS:
        if new in out:
            out[core] = out.pop(new)
    out.setdefault("involvedObject", {})
    out.setdefault("source", {})
    for key in ("reportingComponent", "reportingInstance"):
        out.setdefault(key, "")
    for key in ("firstTimestamp", "lastTimestamp", "eventTime"):
        out.setdefault(key, None)
    return out


def _event_from_core(obj: Object) -> Object:
    out = {**obj, "apiVersion": "events.k8s.io/v1"}
    for new, core in _EVENT_FIELDS:
        if core in out:
            out[new] = out.pop(core)
    for key in ("reportingController", "reportingInstance"):
        if not out.get(key):
            out.pop(key, None)
    return out


# ---- Scale


def scale_of(obj: Object) -> Object:
    """The autoscaling/v1 Scale of a Deployment, ReplicaSet, StatefulSet or ReplicationController."""
    meta = obj["metadata"]
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    selector = spec.get("selector")
    plain = obj["kind"] == "ReplicationController"
    text = str(selectors.from_set(selector) if plain else selectors.from_object(selector or {}))
    scale_meta = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp") if k in meta}
    scale_spec = {"replicas": spec["replicas"]} if spec.get("replicas") else {}
    scale_status: Object = {"replicas": status.get("replicas", 0)}
    if text:
        scale_status["selector"] = text
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": scale_meta, "spec": scale_spec, "status": scale_status}


def apply_scale(obj: Object, scale: Object) -> Object:
    """`obj` (left alone) with the replicas of a Scale, and its resourceVersion as the precondition when it has one."""
    out = copy.deepcopy(obj)
    out["spec"]["replicas"] = (scale.get("spec") or {}).get("replicas", 0)
    version = (scale.get("metadata") or {}).get("resourceVersion")
    if version:
        out["metadata"]["resourceVersion"] = version
    return out
