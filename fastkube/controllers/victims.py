"""Which pods go first when a ReplicaSet (or ReplicationController, Job ...) has too many: pure.

The order (k8s.io/kubernetes pkg/controller ActivePodsWithRanks): unassigned before assigned; Pending, Unknown, Running; not ready before
ready; lower pod-deletion-cost; on a node with more pods of the same family; ready for less long; more restarts; younger.
Ages are compared by powers of two (LogarithmicScaleDown), so that pods of about the same age are chosen from as if by lot (by uid).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from fastkube.controllers.meta import Object, is_active, phase, ready_since, seconds, uid

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def choose(pods: Iterable[Object], count: int, family: Iterable[Object], now: float) -> list[Object]:
    """The `count` pods to delete. `family`: the pods of all sets with the same owner; `now`: seconds since the epoch."""
    candidates = list(pods)
    if count >= len(candidates):
        return candidates
    crowd = Counter(p.get("spec", {}).get("nodeName") for p in family if is_active(p))
    return sorted(candidates, key=lambda pod: _rank(pod, crowd, now))[:count]


def _rank(pod: Object, crowd: Counter[Any], now: float) -> tuple[Any, ...]:
    node = pod.get("spec", {}).get("nodeName")
    since = ready_since(pod)
    # Newest first means smallest age first; what is not ready compares equal here (it went before already).
    return (
        bool(node),
        _PHASES.get(phase(pod), 2),
        since is not None,
        deletion_cost(pod),
        -crowd[node] if node else 0,
        _log_age(since, now) if since is not None else 0,
        -restarts(pod),
        _log_age(seconds(pod["metadata"].get("creationTimestamp")) or None, now),
        uid(pod),
    )


def _log_age(then: float | None, now: float) -> int:
    """floor(log2 of the age); times unset or in the future count as youngest."""
    if then is None or now - then <= 0:
        return -(1 << 30)
    return math.frexp(now - then)[1] - 1


def deletion_cost(pod: Object) -> int:
    """The annotation's int32; 0 when there is none or it is no number."""
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
    digits = text[1:] if text[:1] == "-" else text
    if not (digits.isascii() and digits.isdigit()) or (len(digits) > 1 and digits[0] == "0"):
        return 0
    value = int(text)
    return value if -(1 << 31) <= value < 1 << 31 else 0


def restarts(pod: Object) -> int:
    """The most restarts of one container (sidecars included)."""
    status = pod.get("status") or {}
    counts = [c.get("restartCount", 0) for group in ("containerStatuses", "initContainerStatuses") for c in status.get(group) or ()]
    return max(counts, default=0)
