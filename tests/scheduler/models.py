"""Plain-Python models of the plugins that count pods: they go over all pods and nodes, as the written rules say. What the kernels must equal."""

from __future__ import annotations

import math
from typing import Any

from fastkube.scheduler.plugins import reasons
from fastkube.scheduler.podinfo import PodInfo
from fastkube.scheduler.relations import HOSTNAME, Term

Nodes = dict[str, dict[str, Any]]
Placed = list[tuple[PodInfo, str]]


def labels_of(node):
    return node["metadata"].get("labels") or {}


def takes(term: Term, pod: PodInfo, namespaces) -> bool:
    return term.covers(pod.namespace, namespaces.get(pod.namespace, {})) and term.selector.matches(pod.labels)


def affinity_refusal(pod: PodInfo, node, nodes: Nodes, placed: Placed, namespaces) -> int:
    placed = [(p, n) for p, n in placed if n in nodes]
    here = labels_of(node)
    relations = pod.relations

    def same(key, other):
        return key in here and labels_of(nodes[other]).get(key) == here[key]

    if relations and relations.affinity:
        terms = relations.affinity
        matching = [(p, n) for p, n in placed if all(takes(t, p, namespaces) for t, _ in terms)]
        anywhere = any(key in labels_of(nodes[n]) for _, n in matching for _, key in terms)
        if any(key not in here for _, key in terms):
            return reasons.POD_AFFINITY
        if not all(any(same(key, n) for _, n in matching) for _, key in terms) and (anywhere or not all(takes(t, pod, namespaces) for t, _ in terms)):
            return reasons.POD_AFFINITY
    if relations and any(takes(t, p, namespaces) and same(key, n) for t, key in relations.anti_affinity for p, n in placed):
        return reasons.POD_ANTI_AFFINITY
    if any(takes(t, pod, namespaces) and same(key, n) for p, n in placed if p.relations for t, key in p.relations.anti_affinity):
        return reasons.EXISTING_ANTI_AFFINITY
    return 0


def affinity_scores(pod: PodInfo, feasible: list[str], nodes: Nodes, placed: Placed, namespaces) -> dict[str, int]:
    raw = dict.fromkeys(feasible, 0)
    for other, n in placed:
        if n not in nodes:
            continue
        terms = []
        if pod.relations:
            terms += [(key, w) for t, key, w in pod.relations.preferred if takes(t, other, namespaces)]
        if other.relations:
            terms += [(key, w) for t, key, w in other.relations.preferred if takes(t, pod, namespaces)]
            terms += [(key, 1) for t, key in other.relations.affinity if takes(t, pod, namespaces)]
        for key, weight in terms:
            value = labels_of(nodes[n]).get(key)
            for name in feasible:
                if value is not None and labels_of(nodes[name]).get(key) == value:
                    raw[name] += weight
    low, high = min(raw.values()), max(raw.values())
    return {name: int(100 * ((s - low) / (high - low))) if high > low else 0 for name, s in raw.items()}


def _counted(pod: PodInfo, constraint, nodes: Nodes, placed: Placed, keys, allowed) -> dict[str, int]:
    """Matching pods per domain, over the nodes that count."""
    counts: dict[str, int] = {}
    for name, node in nodes.items():
        if not all(k in labels_of(node) for k in keys) or not allowed(constraint, node):
            continue
        matching = sum(n == name and not p.deleting and p.namespace == pod.namespace and constraint.term.selector.matches(p.labels) for p, n in placed)
        value = labels_of(node).get(constraint.topology_key)
        if value is not None:
            counts[value] = counts.get(value, 0) + matching
    return counts


def spread_refusal(pod: PodInfo, node, nodes: Nodes, placed: Placed, allowed) -> int:
    hard = [c for c in pod.relations.spread if c.hard] if pod.relations else []
    keys = {c.topology_key for c in hard}
    for c in hard:
        counts = _counted(pod, c, nodes, placed, keys, allowed)
        value = labels_of(node).get(c.topology_key)
        if value is None:
            return reasons.SPREAD_LABEL
        least = 0 if len(counts) < c.min_domains else min(counts.values(), default=0)
        if counts.get(value, 0) + c.term.selector.matches(pod.labels) - least > c.max_skew:
            return reasons.SPREAD
    return 0


def spread_scores(pod: PodInfo, soft, all_keys: bool, feasible: list[str], nodes: Nodes, placed: Placed, allowed) -> dict[str, int]:
    if not soft:
        return dict.fromkeys(feasible, 0)
    keys = {c.topology_key for c in soft}
    kept = [n for n in feasible if not all_keys or all(k in labels_of(nodes[n]) for k in keys)]
    raw = dict.fromkeys(kept, 0.0)
    for c in soft:
        counts = _counted(pod, c, nodes, placed, keys if all_keys else (), allowed)
        values = {labels_of(nodes[n]).get(c.topology_key) for n in kept} - {None}
        factor = math.log((len(kept) if c.topology_key == HOSTNAME else len(values)) + 2)
        for n in kept:
            value = labels_of(nodes[n]).get(c.topology_key)
            if value is None:
                continue
            count = counts.get(value, 0)
            if c.topology_key == HOSTNAME:
                count = sum(on == n and not p.deleting and p.namespace == pod.namespace and c.term.selector.matches(p.labels) for p, on in placed)
            raw[n] += count * factor + c.max_skew - 1
    rounded = {n: math.floor(s + 0.5) for n, s in raw.items()}
    low, high = min(rounded.values(), default=0), max(rounded.values(), default=0)
    return {n: 0 if n not in rounded else 100 if high == 0 else 100 * (high + low - rounded[n]) // high for n in feasible}
