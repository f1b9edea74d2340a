"""What a pod says about other pods: affinity and anti-affinity terms, spread constraints. Parsed once and shared by all pods that say the same.

A `Term` names a set of pods by namespaces and labels. matchLabelKeys and mismatchLabelKeys are merged into the selector with the pod's own values,
as the API describes. Sources: https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/ and .../topology-spread-constraints/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from fastkube.api import selectors
from fastkube.api.selectors import IN, NOT_IN, LabelSelector, Requirement

HOSTNAME = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
HARD_AFFINITY_WEIGHT = 1  # what an existing pod's required affinity counts in scores (InterPodAffinityArgs.hardPodAffinityWeight)

Labels = dict[str, str]


@dataclass(slots=True, eq=False)
class Term:
    """The pods of `namespaces` and of those that `namespace_selector` takes in, whose labels match `selector`. Equal terms have equal `key`."""

    namespaces: frozenset[str]
    namespace_selector: LabelSelector | None
    selector: LabelSelector
    key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        nothing = not self.selector.requirements and not self.selector.empty
        of = None if self.namespace_selector is None else str(self.namespace_selector)
        self.key = (tuple(sorted(self.namespaces)), of, nothing, str(self.selector))

    def covers(self, namespace: str, namespace_labels: Labels) -> bool:
        return namespace in self.namespaces or (self.namespace_selector is not None and self.namespace_selector.matches(namespace_labels))


@dataclass(slots=True, eq=False)
class Spread:
    """One topologySpreadConstraint."""

    term: Term
    topology_key: str
    max_skew: int
    min_domains: int
    hard: bool
    honor_affinity: bool
    honor_taints: bool


@dataclass(slots=True, eq=False)
class Relations:
    signature: bytes
    affinity: tuple[tuple[Term, str], ...]  # (term, topology key)
    anti_affinity: tuple[tuple[Term, str], ...]
    preferred: tuple[tuple[Term, str, int], ...]  # (term, topology key, weight); anti-affinity has negative weights
    spread: tuple[Spread, ...]


def _merged(selector: dict[str, Any] | None, labels: Labels, match: list[str], mismatch: list[str]) -> LabelSelector:
    parsed = selectors.from_object(selector)
    if selector is None or not (match or mismatch):
        return parsed
    more = [Requirement(k, IN, frozenset((labels[k],))) for k in match if k in labels]
    more += [Requirement(k, NOT_IN, frozenset((labels[k],))) for k in mismatch if k in labels]
    return LabelSelector([*parsed.requirements, *more]) if parsed.requirements or more else parsed


def _term(term: dict[str, Any], namespace: str, labels: Labels) -> tuple[Term, str]:
    of = term.get("namespaceSelector")
    named = frozenset(term.get("namespaces") or ())
    namespaces = named if named or of is not None else frozenset((namespace,))
    selector = _merged(term.get("labelSelector"), labels, term.get("matchLabelKeys") or [], term.get("mismatchLabelKeys") or [])
    return Term(namespaces, None if of is None else selectors.from_object(of), selector), term.get("topologyKey") or ""


def _terms(part: dict[str, Any], namespace: str, labels: Labels) -> tuple[tuple[Term, str], ...]:
    return tuple(_term(t, namespace, labels) for t in part.get("requiredDuringSchedulingIgnoredDuringExecution") or ())


def _preferred(part: dict[str, Any], namespace: str, labels: Labels, sign: int) -> list[tuple[Term, str, int]]:
    weighted = part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return [(*_term(t.get("podAffinityTerm") or {}, namespace, labels), sign * t.get("weight", 0)) for t in weighted]


def _spread(constraint: dict[str, Any], namespace: str, labels: Labels) -> Spread:
    return Spread(
        term=Term(frozenset((namespace,)), None, _merged(constraint.get("labelSelector"), labels, constraint.get("matchLabelKeys") or [], [])),
        topology_key=constraint.get("topologyKey") or "",
        max_skew=constraint.get("maxSkew", 1),
        min_domains=constraint.get("minDomains") or 1,
        hard=constraint.get("whenUnsatisfiable") != "ScheduleAnyway",
        honor_affinity=(constraint.get("nodeAffinityPolicy") or "Honor") == "Honor",
        honor_taints=(constraint.get("nodeTaintsPolicy") or "Ignore") == "Honor",
    )


def system_default_spread(namespace: str, selector: LabelSelector) -> tuple[Spread, ...]:
    """PodTopologySpread's constraints for pods that state none and belong to a service or controller with `selector`."""
    term = Term(frozenset((namespace,)), None, selector)
    return tuple(Spread(term, key, skew, 1, False, True, False) for key, skew in ((HOSTNAME, 3), (ZONE, 5)))


def _label_keys(parts: list[Any]) -> list[str]:
    """All keys of matchLabelKeys and mismatchLabelKeys, however deep: the pod's own labels that its terms depend on."""
    found: list[str] = []
    stack = list(parts)
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            found += [*(part.get("matchLabelKeys") or ()), *(part.get("mismatchLabelKeys") or ())]
            stack += [v for v in part.values() if isinstance(v, dict | list)]
        elif isinstance(part, list):
            stack += part
    return found


class RelationsCache:
    """Interns Relations by what they are made of; the least recently used are forgotten beyond `RELATIONS_MAX`."""

    RELATIONS_MAX = 4096

    def __init__(self) -> None:
        self._known: dict[bytes, Relations] = {}

    def of(self, namespace: str, labels: Labels, spec: dict[str, Any]) -> Relations | None:
        """What a pod's spec says about other pods; None when nothing."""
        said = spec.get("affinity") or {}
        affinity, anti, spread = said.get("podAffinity"), said.get("podAntiAffinity"), spec.get("topologySpreadConstraints")
        if not (affinity or anti or spread):
            return None
        own = {k: labels[k] for k in _label_keys([affinity, anti, spread]) if k in labels}
        signature = orjson.dumps([namespace, own, affinity, anti, spread], option=orjson.OPT_SORT_KEYS)
        known = self._known.pop(signature, None)
        if known is None:
            known = self._parse(signature, namespace, labels, affinity or {}, anti or {}, spread or [])
            if len(self._known) >= self.RELATIONS_MAX:
                self._known.pop(next(iter(self._known)))
        self._known[signature] = known
        return known

    @staticmethod
    def _parse(signature: bytes, namespace: str, labels: Labels, affinity: dict[str, Any], anti: dict[str, Any], spread: list[dict[str, Any]]) -> Relations:
        preferred = _preferred(affinity, namespace, labels, 1) + _preferred(anti, namespace, labels, -1)
        return Relations(
            signature=signature,
            affinity=_terms(affinity, namespace, labels),
            anti_affinity=_terms(anti, namespace, labels),
            preferred=tuple(preferred),
            spread=tuple(_spread(c, namespace, labels) for c in spread),
        )
