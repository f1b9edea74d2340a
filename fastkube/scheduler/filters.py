"""Filters and scores that depend on a node's spec and labels only: NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, ImageLocality.

Pure functions of one template and one node; `scheduler.snapshot` caches their results per template and row, so a node is looked at again
only when it changes. Rules: https://kubernetes.io/docs/concepts/scheduling-eviction/
"""

from __future__ import annotations

from typing import Any

from fastkube.scheduler.plugins import reasons
from fastkube.scheduler.podinfo import PodTemplate

SCORE_MAX = 100

_UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


def tolerates(toleration: dict[str, Any], taint: dict[str, Any]) -> bool:
    """core/v1 Toleration.ToleratesTaint."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    mine, theirs = toleration.get("value") or "", taint.get("value") or ""
    if operator == "Equal":
        return bool(toleration.get("key")) and mine == theirs
    try:  # Lt and Gt compare whole numbers: the taint's value against the toleration's
        return int(theirs) < int(mine) if operator == "Lt" else operator == "Gt" and int(theirs) > int(mine)
    except ValueError:
        return False


def tolerated(template: PodTemplate, taint: dict[str, Any]) -> bool:
    return any(tolerates(t, taint) for t in template.tolerations)


def matches_requirement(requirement: dict[str, Any], values: dict[str, str]) -> bool:
    """core/v1 NodeSelectorRequirement against labels (or fields)."""
    key, operator, wanted = requirement.get("key", ""), requirement.get("operator"), requirement.get("values") or []
    value = values.get(key)
    if operator == "In":
        return value in wanted
    if operator == "NotIn":
        return value not in wanted
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    if value is None or len(wanted) != 1:
        return False
    try:
        have, bound = int(value), int(wanted[0])
    except ValueError:
        return False
    return have > bound if operator == "Gt" else operator == "Lt" and have < bound


def matches_term(term: dict[str, Any], name: str, labels: dict[str, str]) -> bool:
    """core/v1 NodeSelectorTerm: all of its requirements; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(matches_requirement(r, labels) for r in expressions) and all(matches_requirement(r, {"metadata.name": name}) for r in fields)


def matches_affinity(template: PodTemplate, node: dict[str, Any]) -> bool:
    """The node selector and the required node affinity."""
    meta = node["metadata"]
    labels = meta.get("labels") or {}
    if any(labels.get(k) != v for k, v in template.node_selector.items()):
        return False
    return template.required_terms is None or any(matches_term(t, meta["name"], labels) for t in template.required_terms)


def untolerated(template: PodTemplate, node: dict[str, Any]) -> bool:
    """Whether the node has a taint that keeps the template's pods away."""
    taints = (node.get("spec") or {}).get("taints") or ()
    return any(t.get("effect") in ("NoSchedule", "NoExecute") and not tolerated(template, t) for t in taints)


ALL = frozenset(("NodeUnschedulable", "TaintToleration", "NodeAffinity"))


def refusal(template: PodTemplate, node: dict[str, Any], enabled: frozenset[str] = ALL) -> int:
    """The first filter, in upstream's order, that refuses this node for this template: a code of `plugins.reasons`, 0 when none does."""
    if "NodeUnschedulable" in enabled and (node.get("spec") or {}).get("unschedulable") and not tolerated(template, _UNSCHEDULABLE_TAINT):
        return reasons.UNSCHEDULABLE
    if "TaintToleration" in enabled and untolerated(template, node):
        return reasons.TAINTED
    return 0 if "NodeAffinity" not in enabled or matches_affinity(template, node) else reasons.NODE_AFFINITY


def raw_scores(template: PodTemplate, node: dict[str, Any]) -> tuple[int, int]:
    """(PreferNoSchedule taints it does not tolerate, weights of its preferred terms that match)."""
    spec, meta = node.get("spec") or {}, node["metadata"]
    soft = sum(t.get("effect") == "PreferNoSchedule" and not tolerated(template, t) for t in spec.get("taints") or ())
    labels = meta.get("labels") or {}
    preferred = sum(p.get("weight", 0) for p in template.preferred_terms if matches_term(p.get("preference") or {}, meta["name"], labels))
    return soft, preferred


def normalized_image(name: str) -> str:
    """As nodes list images: with a tag."""
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def image_score(image_bytes: int, containers: int) -> int:
    """Upstream's ImageLocality: linear between 23 MiB and 1000 MiB a container."""
    low, high = 23 << 20, (1000 << 20) * containers
    return SCORE_MAX * (min(max(image_bytes, low), high) - low) // (high - low) if high > low else 0
