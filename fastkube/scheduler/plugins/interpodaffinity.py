"""InterPodAffinity: required and preferred affinity and anti-affinity, the pod's own and that of the pods already there.

A plan holds the counts a decision reads; it is made once per class of pods and stays true, for the counts are live.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkube._ext.nodes import NodeColumns
from fastkube._ext.topology import DomainCount
from fastkube.scheduler.plugins import reasons
from fastkube.scheduler.population import PodClass, Population
from fastkube.scheduler.relations import Relations


@dataclass(slots=True, eq=False)
class Plan:
    affinity: tuple[DomainCount, ...]  # each over the pods that all required terms take in
    first: bool  # the pod takes itself in: it may be the first of its kind
    anti_affinity: tuple[DomainCount, ...]
    existing: tuple[DomainCount, ...]  # carriers of anti-affinity that takes the pod in
    scores: list[tuple[DomainCount, int]]


def plan(population: Population, cls: PodClass, relations: Relations | None) -> Plan | None:
    """None when neither the pod nor anybody else says anything that concerns it."""
    existing = tuple(c.count for c in cls.carriers if not c.weight)
    scores = [(c.count, c.weight) for c in cls.carriers if c.weight]
    affinity: tuple[DomainCount, ...] = ()
    anti: tuple[DomainCount, ...] = ()
    first = False
    if relations is not None:
        terms = tuple(t for t, _ in relations.affinity)
        affinity = tuple(population.view(terms, key) for _, key in relations.affinity)
        first = all(population.takes_in(t, cls) for t in terms)
        anti = tuple(population.view((t,), key) for t, key in relations.anti_affinity)
        scores += [(population.view((t,), key), weight) for t, key, weight in relations.preferred]
    return Plan(affinity, first, anti, existing, scores) if affinity or anti or existing or scores else None


def filter(plan: Plan, codes: Any, first: int, last: int) -> None:
    if plan.affinity:
        if plan.first and not any(view.occupied() for view in plan.affinity):
            for view in plan.affinity:
                view.domains.refuse_missing(codes, first, last, reasons.POD_AFFINITY)
        else:
            for view in plan.affinity:
                view.refuse_empty(codes, first, last, reasons.POD_AFFINITY)
    for view in plan.anti_affinity:
        view.refuse_occupied(codes, first, last, reasons.POD_ANTI_AFFINITY)
    for view in plan.existing:
        if view.pods.total:
            view.refuse_occupied(codes, first, last, reasons.EXISTING_ANTI_AFFINITY)


def score(plan: Plan, columns: NodeColumns, weight: int) -> None:
    terms = [(view, each) for view, each in plan.scores if view.pods.total]
    if terms:
        columns.score_affinity(terms, weight)
