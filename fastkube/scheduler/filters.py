"""Filters and scores that depend on a node's spec and labels only: NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, ImageLocality.

Pure functions of one template and one node; `scheduler.snapshot` caches their results per template and row, so a node is looked at again
only when it changes. Rules: https://kubernetes.io/docs/concepts/scheduling-eviction/
"""

from __future__ import annotations

from typing import Any

from fastkube.scheduler.podinfo import PodTemplate

# Why a node was refused; the index is what the cache keeps, the text upstream's.
REASONS = (
    "",
    "node(s) were unschedulable",
    "node(s) had untolerated taint(s)",
    "node(s) didn't match Pod's node affinity/selector",
)
UNSCHEDULABLE, TAINTED, AFFINITY = 1, 2, 3

TAINT_WEIGHT, AFFINITY_WEIGHT, IMAGE_WEIGHT = 3, 2, 1
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


def refusal(template: PodTemplate, node: dict[str, Any]) -> int:
    """The first filter, in upstream's order, that refuses this node for this template: an index into REASONS, 0 when none does."""
    spec, meta = node.get("spec") or {}, node["metadata"]
    if spec.get("unschedulable") and not tolerated(template, _UNSCHEDULABLE_TAINT):
        return UNSCHEDULABLE
    if any(t.get("effect") in ("NoSchedule", "NoExecute") and not tolerated(template, t) for t in spec.get("taints") or ()):
        return TAINTED
    labels = meta.get("labels") or {}
    if any(labels.get(k) != v for k, v in template.node_selector.items()):
        return AFFINITY
    if template.required_terms is not None and not any(matches_term(t, meta["name"], labels) for t in template.required_terms):
        return AFFINITY
    return 0


def raw_scores(template: PodTemplate, node: dict[str, Any]) -> tuple[int, int, int]:
    """(PreferNoSchedule taints it does not tolerate, weights of its preferred terms that match, bytes of its images that are there)."""
    spec, meta = node.get("spec") or {}, node["metadata"]
    soft = sum(t.get("effect") == "PreferNoSchedule" and not tolerated(template, t) for t in spec.get("taints") or ())
    labels = meta.get("labels") or {}
    preferred = sum(p.get("weight", 0) for p in template.preferred_terms if matches_term(p.get("preference") or {}, meta["name"], labels))
    images = 0
    if template.images:
        there = {name: i.get("sizeBytes", 0) for i in (node.get("status") or {}).get("images") or () for name in i.get("names") or ()}
        images = sum(there.get(normalized_image(i), 0) for i in template.images)
    return soft, preferred, images


def normalized_image(name: str) -> str:
    """As nodes list images: with a tag."""
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def image_score(image_bytes: int, containers: int) -> int:
    """Upstream's ImageLocality: linear between 23 MiB and 1000 MiB a container."""
    low, high = 23 << 20, (1000 << 20) * containers
    return SCORE_MAX * (min(max(image_bytes, low), high) - low) // (high - low) if high > low else 0


def normalized(values: list[int], reverse: bool = False) -> list[int]:
    """Scores spread to 0..100 by their maximum (framework helper.DefaultNormalizeScore)."""
    top = max(values, default=0)
    if top == 0:
        return [SCORE_MAX if reverse else 0] * len(values)
    return [SCORE_MAX - SCORE_MAX * v // top if reverse else SCORE_MAX * v // top for v in values]
