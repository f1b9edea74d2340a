"""Queueing hints: which plugins' refusals an event may lift, and for which pods. Pure.

An event that cannot help a pod must not wake it; one that can must never be missed: where in doubt, the pod is woken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastkube.scheduler import filters
from fastkube.scheduler.podinfo import PodInfo
from fastkube.scheduler.population import Population
from fastkube.scheduler.queue import Waiting
from fastkube.scheduler.relations import Term
from fastkube.scheduler.snapshot import Snapshot

Node = dict[str, Any]
Hint = Callable[[Waiting], bool]

NODE_LOCAL = ("NodeUnschedulable", "TaintToleration", "NodeAffinity")
BY_LABELS = (*NODE_LOCAL, "InterPodAffinity", "PodTopologySpread", "VolumeBinding", "VolumeZone")
BY_ALLOCATABLE = ("NodeResourcesFit",)
VOLUMES = ("VolumeBinding", "VolumeZone", "VolumeRestrictions", "NodeVolumeLimits")
POD_COMES = ("InterPodAffinity", "PodTopologySpread")
ROOM_ONLY = frozenset(("NodeResourcesFit", *NODE_LOCAL))
POD_GOES = ("NodeResourcesFit", "NodePorts", "InterPodAffinity", "PodTopologySpread", "VolumeRestrictions", "NodeVolumeLimits")


def node_matters(old: Node, new: Node) -> bool:
    """Whether a node changed in anything the snapshot holds: heartbeats do not count."""
    before, after = old.get("status") or {}, new.get("status") or {}
    return (
        old.get("spec") != new.get("spec")
        or old["metadata"].get("labels") != new["metadata"].get("labels")
        or before.get("allocatable") != after.get("allocatable")
        or before.get("images") != after.get("images")
    )


def node_event(old: Node | None, new: Node) -> tuple[tuple[str, ...] | None, Hint] | None:
    """(plugins it may help, None for all; for whom); None when it helps nobody."""
    name = new["metadata"]["name"]

    def admitted(waiting: Waiting) -> bool:
        pod = waiting.pod
        return (pod.pins is None or name in pod.pins) and not filters.refusal(pod.template, new)

    if old is None:
        return None, admitted
    plugins: tuple[str, ...] = ()
    if (old.get("status") or {}).get("allocatable") != (new.get("status") or {}).get("allocatable"):
        plugins += BY_ALLOCATABLE
    if old.get("spec") != new.get("spec") or old["metadata"].get("labels") != new["metadata"].get("labels"):
        plugins += BY_LABELS
    return (plugins, admitted) if plugins else None


def _concerns(population: Population, term: Term, pod: PodInfo) -> bool:
    return term.covers(pod.namespace, population.namespaces.get(pod.namespace, {})) and term.selector.matches(pod.labels)


def pod_came(population: Population, other: PodInfo) -> Hint:
    """A pod was bound, or its labels changed."""

    def helps(waiting: Waiting) -> bool:
        relations = waiting.pod.relations
        if relations is None:
            return False
        terms = [t for t, _ in relations.affinity] + [s.term for s in relations.spread if s.hard]
        return any(_concerns(population, t, other) for t in terms)

    return helps


def pod_went(snapshot: Snapshot, node: str) -> Hint:
    """A pod left `node`: who lacks nothing but room is woken when it now fits there (room held for nominated pods is not free) or waits for it."""

    def helps(waiting: Waiting) -> bool:
        nominated = snapshot.nominated.get(waiting.pod.key)
        return (nominated is not None and nominated[1] == node) or not waiting.plugins <= ROOM_ONLY or snapshot.has_room(waiting.pod, node)

    return helps
