"""Small pure functions on objects that every controller needs: owners, labels, selectors, conditions, pod states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastkube.api import selectors
from fastkube.runtime import clock

Object = dict[str, Any]
Labels = dict[str, str]


def uid(obj: Object) -> str:
    return obj["metadata"].get("uid", "")


def deleting(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def version(obj: Object) -> int:
    """resourceVersion as a number: versions of one object, and of objects of one server, are ordered."""
    return int(obj["metadata"].get("resourceVersion") or 0)


# --- owners ---


def controller_of(obj: Object) -> Object | None:
    """The ownerReference with controller: true; None when nobody controls `obj`."""
    for ref in obj["metadata"].get("ownerReferences") or ():
        if ref.get("controller"):
            return ref
    return None


def controller_uid(obj: Object) -> str:
    ref = controller_of(obj)
    return ref["uid"] if ref else ""


def owner_reference(owner: Object, api_version: str, kind: str) -> Object:
    """What a controlled object carries (metav1.NewControllerRef)."""
    meta = owner["metadata"]
    return {"apiVersion": api_version, "kind": kind, "name": meta["name"], "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}


# --- selectors ---


def matcher(selector: Object | None) -> Callable[[Labels], bool]:
    """A metav1.LabelSelector as a predicate. None selects nothing, the empty selector everything; an invalid one nothing."""
    try:
        return selectors.from_object(selector).matches
    except ValueError:
        return selectors.NOTHING.matches


def is_subset(selector: Labels, labels: Labels) -> bool:
    """A map selector (Service, ReplicationController): every pair is there."""
    return all(labels.get(k) == v for k, v in selector.items())


# --- conditions ---


def condition(obj_or_status: Object, type: str) -> Object | None:
    status = obj_or_status.get("status", obj_or_status)
    for found in status.get("conditions") or ():
        if found["type"] == type:
            return found
    return None


def condition_is(obj: Object, type: str, status: str = "True") -> bool:
    found = condition(obj, type)
    return found is not None and found["status"] == status


def with_condition(conditions: Iterable[Object], new: Object) -> list[Object]:
    """`conditions` with the one of new's type replaced; lastTransitionTime is kept while the status is the same."""
    out, kept = [], new
    for old in conditions:
        if old["type"] != new["type"]:
            out.append(old)
        elif old["status"] == new["status"] and "lastTransitionTime" in old:
            kept = {**new, "lastTransitionTime": old["lastTransitionTime"]}
    return [*out, kept]


def without_condition(conditions: Iterable[Object], type: str) -> list[Object]:
    return [c for c in conditions if c["type"] != type]


# --- pods ---


def phase(pod: Object) -> str:
    return (pod.get("status") or {}).get("phase") or "Pending"


def is_terminal(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    return not is_terminal(pod) and not deleting(pod)


def is_terminating(pod: Object) -> bool:
    return deleting(pod) and not is_terminal(pod)


def is_ready(pod: Object) -> bool:
    for c in (pod.get("status") or {}).get("conditions") or ():
        if c["type"] == "Ready":
            return c["status"] == "True"
    return False


def ready_since(pod: Object) -> float | None:
    """When the pod became ready (seconds since the epoch); None while it is not."""
    for c in (pod.get("status") or {}).get("conditions") or ():
        if c["type"] == "Ready":
            return seconds(c.get("lastTransitionTime")) if c["status"] == "True" else None
    return None


def is_available(pod: Object, min_ready_seconds: int, now: float) -> bool:
    """Ready for at least `min_ready_seconds`."""
    if not min_ready_seconds:
        return is_ready(pod)
    since = ready_since(pod)
    return since is not None and since + min_ready_seconds <= now


def seconds(stamp: str | None) -> float:
    """An RFC 3339 time as seconds since the epoch; 0 for none."""
    return clock.parse(stamp) if stamp else 0.0


def resolve_int_or_percent(value: Any, total: int, round_up: bool) -> int:
    """`3` or `"25%"` of `total`. ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.endswith("%") and value[:-1].isdigit():
        scaled = int(value[:-1]) * total
        return -(-scaled // 100) if round_up else scaled // 100
    raise ValueError(f"{value!r} is neither an integer nor a percentage")
