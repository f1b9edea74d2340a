"""Does a pod template fit a node, as far as a DaemonSet asks: name, selector, required affinity, taints. Pure (component-helpers nodeaffinity)."""

from __future__ import annotations

from fastkube.controllers.meta import Object
from fastkube.controllers.taints import tolerates


def fits_selector(pod_spec: Object, node: Object) -> bool:
    """nodeSelector and requiredDuringSchedulingIgnoredDuringExecution hold on the node."""
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(k) != v for k, v in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    return affinity is None or any(_term(term, labels, node["metadata"]["name"]) for term in affinity.get("nodeSelectorTerms") or ())


def _term(term: Object, labels: dict[str, str], name: str) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False  # an empty term matches nothing
    return all(_holds(e, labels) for e in expressions) and all(_holds(f, {"metadata.name": name}) for f in fields)


def _holds(requirement: Object, labels: dict[str, str]) -> bool:
    key, operator, values = requirement["key"], requirement["operator"], requirement.get("values") or []
    value = labels.get(key)
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    try:
        have, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return have > bound if operator == "Gt" else have < bound if operator == "Lt" else False


def untolerated(pod_spec: Object, node: Object, effects: tuple[str, ...]) -> Object | None:
    """The first taint with one of these effects that the template does not tolerate."""
    tolerations = pod_spec.get("tolerations") or ()
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("effect") in effects and not any(tolerates(t, taint) for t in tolerations):
            return taint
    return None
