"""Node conditions to taints, and taints to evictions: pure (KEP-589, k8s.io/kubernetes pkg/controller/nodelifecycle, tainteviction)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastkube.controllers.meta import Object, condition, seconds

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"

# condition -> status -> taint key with effect NoSchedule
_BY_CONDITION = {
    "Ready": {"False": NOT_READY, "Unknown": UNREACHABLE},
    "MemoryPressure": {"True": "node.kubernetes.io/memory-pressure"},
    "DiskPressure": {"True": "node.kubernetes.io/disk-pressure"},
    "PIDPressure": {"True": "node.kubernetes.io/pid-pressure"},
    "NetworkUnavailable": {"True": "node.kubernetes.io/network-unavailable"},
}
MANAGED = frozenset(key for by_status in _BY_CONDITION.values() for key in by_status.values()) | {UNSCHEDULABLE}


def ready_status(node: Object) -> str:
    """`True`, `False` or `Unknown`; Unknown without the condition."""
    ready = condition(node, "Ready")
    return ready["status"] if ready else "Unknown"


def wanted(node: Object, evict: bool) -> set[tuple[str, str]]:
    """(key, effect) of every taint that the node's conditions call for; NoExecute for a node that is not ready only if `evict`."""
    out = set()
    for type, by_status in _BY_CONDITION.items():
        found = condition(node, type)
        key = by_status.get(found["status"]) if found else None
        if key:
            out.add((key, "NoSchedule"))
            if type == "Ready" and evict:
                out.add((key, "NoExecute"))
    if (node.get("spec") or {}).get("unschedulable"):
        out.add((UNSCHEDULABLE, "NoSchedule"))
    return out


def merge(current: Sequence[Object], want: set[tuple[str, str]], now: str) -> list[Object]:
    """`current` with the managed taints brought to `want`; others and those that stay (with their timeAdded) are kept as they are."""
    kept = [t for t in current if not _managed(t) or (t["key"], t["effect"]) in want]
    have = {(t["key"], t["effect"]) for t in kept}
    return kept + [{"key": key, "effect": effect, "timeAdded": now} for key, effect in sorted(want - have)]


def _managed(taint: Object) -> bool:
    effect = taint.get("effect")
    return (effect == "NoSchedule" and taint["key"] in MANAGED) or (effect == "NoExecute" and taint["key"] in (NOT_READY, UNREACHABLE))


# --- eviction ---


def tolerates(toleration: Object, taint: Object) -> bool:
    """v1.Toleration.ToleratesTaint."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == (taint.get("value") or "")


def evict_at(pod: Object, taints: Iterable[Object], now: float) -> float | None:
    """When the pod must go from a node with these NoExecute taints (seconds since the epoch, maybe past); None: never."""
    tolerations = pod["spec"].get("tolerations") or ()
    times = []
    for taint in taints:
        if taint.get("effect") != "NoExecute":
            continue
        matching = [t for t in tolerations if tolerates(t, taint)]
        if not matching:
            return now
        limits = [t["tolerationSeconds"] for t in matching if t.get("tolerationSeconds") is not None]
        if limits:
            times.append(max(seconds(taint.get("timeAdded")) or now, _bound_at(pod)) + max(min(limits), 0))
    return min(times) if times else None


def _bound_at(pod: Object) -> float:
    """Since when the pod is on its node: one that came later than the taint has its time from then on."""
    scheduled = condition(pod, "PodScheduled")
    bound = scheduled.get("lastTransitionTime") if scheduled is not None and scheduled["status"] == "True" else None
    return seconds(bound or pod["metadata"].get("creationTimestamp"))


# --- how fast nodes may be emptied ---


@dataclass(frozen=True, slots=True)
class Rates:
    """Evictions of nodes per second, per zone."""

    normal: float = 0.1
    secondary: float = 0.01
    unhealthy_threshold: float = 0.55
    large_cluster: int = 50


def zone_rates(zones: dict[str, tuple[int, int]], rates: Rates) -> dict[str, float]:
    """`zones`: name -> (ready, not ready) nodes. Evictions per second in each.

    A zone that is wholly down is emptied at the normal rate if another one is up (it is the zone); when all are down, nothing is evicted: then
    it is more likely we who are cut off. A zone that is mostly down is emptied slowly if it is large, else not at all.
    """
    states = {name: _state(ready, unready, rates) for name, (ready, unready) in zones.items()}
    if states and all(s == "full" for s in states.values()):
        return dict.fromkeys(zones, 0.0)
    out = {}
    for name, state in states.items():
        if state == "partial":
            out[name] = rates.secondary if sum(zones[name]) > rates.large_cluster else 0.0
        else:
            out[name] = rates.normal
    return out


def _state(ready: int, unready: int, rates: Rates) -> str:
    if not ready and unready:
        return "full"
    if unready > 2 and unready / (ready + unready) >= rates.unhealthy_threshold:
        return "partial"
    return "normal"
