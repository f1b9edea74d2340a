"""The arithmetic of a Deployment's rollout: pure functions on numbers and objects (k8s.io/kubernetes pkg/controller/deployment).

Laws that tests hold every step to:
1. No step plans more than replicas + maxSurge pods in all sets together.
2. No step of a rolling update takes an available pod away below replicas - maxUnavailable.
3. Steps end: with pods that become ready, the newest set ends at `replicas` and all others at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fastkube.api.selectors import Labels
from fastkube.controllers.meta import Object, resolve_int_or_percent, seconds
from fastkube.runtime.entropy import SUFFIX_ALPHABET

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED_REPLICAS = "deployment.kubernetes.io/desired-replicas"
MAX_REPLICAS = "deployment.kubernetes.io/max-replicas"
REVISION_HISTORY_CHARACTERS_MAX = 2000
UNLIMITED_HISTORY = 2**31 - 1

# Annotations of a Deployment that its ReplicaSets do not take over
_OWN_ANNOTATIONS = frozenset(
    ("kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, "deprecated.deployment.rollback.to")
)


# --- what a Deployment and its sets say ---


def replicas(obj: Object) -> int:
    """spec.replicas, 1 when unset."""
    value = obj["spec"].get("replicas")
    return 1 if value is None else value


def status_number(obj: Object, field: str) -> int:
    return (obj.get("status") or {}).get(field) or 0


def is_rolling(deployment: Object) -> bool:
    return (deployment["spec"].get("strategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"


@dataclass(frozen=True, slots=True)
class Fence:
    """How far a rollout may stray from `replicas`, in pods."""

    surge: int
    unavailable: int


def fence(deployment: Object) -> Fence:
    """maxSurge rounded up, maxUnavailable down; both zero would allow no step, then one pod may be unavailable."""
    if not is_rolling(deployment) or replicas(deployment) == 0:
        return Fence(0, 0)
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    wanted = replicas(deployment)
    surge = resolve_int_or_percent(rolling.get("maxSurge", "25%"), wanted, round_up=True)
    unavailable = resolve_int_or_percent(rolling.get("maxUnavailable", "25%"), wanted, round_up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Fence(surge, min(unavailable, wanted))


def template_of(rs_or_deployment: Object) -> Object:
    """The pod template without the hash label: what makes two revisions the same."""
    template = rs_or_deployment["spec"]["template"]
    meta = template.get("metadata") or {}
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    return {**template, "metadata": {**{k: v for k, v in meta.items() if k not in ("labels", "creationTimestamp") and v}, "labels": labels}}


def template_hash(template: Object, collisions: int) -> str:
    """FNV-1a of the template (and the collision count), in letters that spell no word; stable as long as the template is."""
    data = orjson.dumps(template, option=orjson.OPT_SORT_KEYS) + (b"%d" % collisions if collisions else b"")
    value = 2166136261
    for byte in data:
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return "".join(SUFFIX_ALPHABET[ord(c) % len(SUFFIX_ALPHABET)] for c in str(value))


def created(obj: Object) -> tuple[float, str]:
    """Sort key: oldest first, names break ties."""
    return seconds(obj["metadata"].get("creationTimestamp")), obj["metadata"]["name"]


def find_new(deployment: Object, sets: Sequence[Object]) -> Object | None:
    """The set of the current template; of several, the oldest."""
    template = template_of(deployment)
    return next((rs for rs in sorted(sets, key=created) if template_of(rs) == template), None)


def revision(obj: Object) -> int:
    text = (obj["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


# --- rolling update ---


def new_set_size(deployment: Object, sets: Sequence[Object], new: Object | None) -> int:
    """How many replicas the newest set should have now: as many more as surge allows."""
    current = replicas(new) if new is not None else 0
    if not is_rolling(deployment):
        return replicas(deployment)
    room = replicas(deployment) + fence(deployment).surge - sum(replicas(rs) for rs in sets)
    if room <= 0:
        return current
    return current + min(room, max(replicas(deployment) - current, 0))


def next_new_size(deployment: Object, sets: Sequence[Object], new: Object) -> int:
    """The newest set's next size in a rolling update; also shrinks it when the Deployment was scaled down."""
    if replicas(new) >= replicas(deployment):
        return replicas(deployment)
    return new_set_size(deployment, sets, new)


def shrink_old(deployment: Object, old: Sequence[Object], new: Object) -> list[tuple[Object, int]]:
    """(old set, its new size) for those that shrink now: unhealthy replicas first, then as many as availability allows."""
    sets = [*old, new]
    limits = fence(deployment)
    minimum = replicas(deployment) - limits.unavailable
    new_unavailable = replicas(new) - status_number(new, "availableReplicas")
    spare = sum(replicas(rs) for rs in sets) - minimum - new_unavailable
    if spare <= 0:
        return []
    sizes = {rs["metadata"]["name"]: replicas(rs) for rs in old}
    ordered = sorted(old, key=created)
    for rs in ordered:  # what is not available is lost to nobody
        name = rs["metadata"]["name"]
        unhealthy = min(spare, max(sizes[name] - status_number(rs, "availableReplicas"), 0))
        sizes[name] -= unhealthy
        spare -= unhealthy
    available = sum(min(status_number(rs, "availableReplicas"), sizes.get(rs["metadata"]["name"], replicas(rs))) for rs in sets)
    spare = available - minimum
    for rs in ordered:
        name = rs["metadata"]["name"]
        cut = min(max(spare, 0), sizes[name])
        sizes[name] -= cut
        spare -= cut
    return [(rs, sizes[rs["metadata"]["name"]]) for rs in ordered if sizes[rs["metadata"]["name"]] != replicas(rs)]


# --- scaling in the middle of a rollout ---


def scale(deployment: Object, sets: Sequence[Object], new: Object | None) -> list[tuple[Object, int]]:
    """(set, size) of each set to bring the sum to what the Deployment wants, in proportion to the sizes there are.

    With one active set it takes all; with a newest set that is complete the others go; else, in a rolling update, each gets its share and
    the largest what is left over.
    """
    active = [rs for rs in sets if replicas(rs) > 0]
    if len(active) <= 1:
        target = active[0] if active else _latest(sets, new)
        return [(target, replicas(deployment))] if target is not None else []
    if new is not None and is_saturated(deployment, new):
        return [(rs, 0) for rs in active if rs["metadata"]["name"] != new["metadata"]["name"]]
    if not is_rolling(deployment):
        return []
    wanted = replicas(deployment)
    allowed = wanted + fence(deployment).surge if wanted > 0 else 0
    to_add = allowed - sum(replicas(rs) for rs in active)
    # Largest first, so that rounding errors fall on whom they hurt least; then newest first when growing, oldest first when shrinking.
    ordered = sorted(active, key=created, reverse=to_add > 0)
    ordered.sort(key=replicas, reverse=True)
    sizes, added = [], 0
    for rs in ordered:
        share = _proportion(rs, deployment, to_add, added) if to_add else 0
        sizes.append(replicas(rs) + share)
        added += share
    left = to_add - added
    for i, size in enumerate(sizes):
        step = max(left, -size)
        sizes[i] += step
        left -= step
    return list(zip(ordered, sizes, strict=True))


def _latest(sets: Sequence[Object], new: Object | None) -> Object | None:
    return new if new is not None else max(sets, key=created, default=None)


def is_saturated(deployment: Object, rs: Object) -> bool:
    """The set is as large as the Deployment wants, all of it is available, and it was scaled for that size."""
    desired = annotation_number(rs, DESIRED_REPLICAS)
    wanted = replicas(deployment)
    return replicas(rs) == wanted and desired == wanted and status_number(rs, "availableReplicas") == wanted


def _proportion(rs: Object, deployment: Object, to_add: int, added: int) -> int:
    if not replicas(rs) or not to_add or to_add == added:
        return 0
    fraction, allowed = _fraction(rs, deployment), to_add - added
    return min(fraction, allowed) if to_add > 0 else max(fraction, allowed)


def _fraction(rs: Object, deployment: Object) -> int:
    """How many pods the set gains (or loses) when the Deployment's size (with surge) changes from what it was to what it is."""
    if not replicas(deployment):
        return -replicas(rs)
    before = annotation_number(rs, MAX_REPLICAS) or status_number(deployment, "replicas") or replicas(rs)
    exact = replicas(rs) * (replicas(deployment) + fence(deployment).surge)
    return (2 * exact + before) // (2 * before) - replicas(rs)  # rounded half up


def is_scaling(deployment: Object, sets: Sequence[Object]) -> bool:
    """An active set was last scaled for another size of the Deployment."""
    return any(replicas(rs) > 0 and (desired := annotation_number(rs, DESIRED_REPLICAS)) is not None and desired != replicas(deployment) for rs in sets)


def annotation_number(obj: Object, name: str) -> int | None:
    text = (obj["metadata"].get("annotations") or {}).get(name)
    return int(text) if text is not None and text.isdigit() else None


# --- annotations and revisions ---


def size_annotations(deployment: Object) -> Labels:
    """What a set is told when it is scaled: the Deployment's size, without and with surge."""
    return {DESIRED_REPLICAS: str(replicas(deployment)), MAX_REPLICAS: str(replicas(deployment) + fence(deployment).surge)}


def new_set_annotations(deployment: Object, annotations: Labels | None, revision_number: int, exists: bool) -> dict[str, str]:
    """The newest set's annotations: the Deployment's own, the revision (the one before goes into the history), and, once, its size."""
    own = deployment["metadata"].get("annotations") or {}
    out = {**(annotations or {}), **{k: v for k, v in own.items() if k not in _OWN_ANNOTATIONS}}
    before = out.get(REVISION, "")
    if revision_number > (int(before) if before.isdigit() else 0):
        out[REVISION] = str(revision_number)
        if before and exists:
            history = [r for r in out.get(REVISION_HISTORY, "").split(",") if r]
            history.append(before)
            while len(",".join(history)) > REVISION_HISTORY_CHARACTERS_MAX:
                history.pop(0)
            out[REVISION_HISTORY] = ",".join(history)
    if not exists:
        out |= size_annotations(deployment)
    return out


def sets_to_forget(deployment: Object, old: Sequence[Object]) -> list[Object]:
    """Old empty sets beyond revisionHistoryLimit, oldest revisions first."""
    limit = deployment["spec"].get("revisionHistoryLimit")
    if limit is None or limit == UNLIMITED_HISTORY:
        return []
    alive = sorted((rs for rs in old if "deletionTimestamp" not in rs["metadata"]), key=lambda rs: (revision(rs), created(rs)))
    return [rs for rs in alive[: max(len(alive) - limit, 0)] if _is_empty(rs)]


def _is_empty(rs: Object) -> bool:
    observed = status_number(rs, "observedGeneration") >= rs["metadata"].get("generation", 0)
    return not replicas(rs) and not status_number(rs, "replicas") and observed


# --- progress ---


def is_complete(deployment: Object, status: Object) -> bool:
    wanted = replicas(deployment)
    counts = [status.get(k) or 0 for k in ("updatedReplicas", "replicas", "availableReplicas")]
    return counts == [wanted] * 3 and (status.get("observedGeneration") or 0) >= deployment["metadata"].get("generation", 0)


def is_progressing(deployment: Object, status: Object) -> bool:
    """Since the status last written: more updated, ready or available pods, or fewer old ones."""
    before: dict[str, Any] = deployment.get("status") or {}
    number = lambda s, k: s.get(k) or 0  # noqa: E731
    old_now = number(status, "replicas") - number(status, "updatedReplicas")
    old_before = number(before, "replicas") - number(before, "updatedReplicas")
    return old_now < old_before or any(number(status, k) > number(before, k) for k in ("updatedReplicas", "readyReplicas", "availableReplicas"))
