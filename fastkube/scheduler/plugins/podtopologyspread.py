"""PodTopologySpread: pods alike spread evenly over domains; as a filter (DoNotSchedule) and as a score (ScheduleAnyway, and the system's defaults).

The system's defaults hold for pods that state no constraint and belong to a Service, ReplicaSet, ReplicationController or StatefulSet (`Workloads`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from fastkube._ext.nodes import NodeColumns
from fastkube._ext.topology import DomainCount
from fastkube.api import selectors
from fastkube.api.selectors import LabelSelector
from fastkube.scheduler import filters
from fastkube.scheduler.plugins import reasons
from fastkube.scheduler.podinfo import PodTemplate
from fastkube.scheduler.population import Node, PodClass, Population
from fastkube.scheduler.relations import HOSTNAME, Relations, Spread, system_default_spread


@dataclass(slots=True, eq=False)
class Hard:
    view: DomainCount
    max_skew: int
    min_domains: int
    own: int  # 1: the pod counts itself


@dataclass(slots=True, eq=False)
class Plan:
    hard: list[Hard]
    soft: list[tuple[DomainCount, int, bool]]  # (counts, max skew, each node is a domain)
    all_keys: bool


class Workloads:
    """Selectors of services and controllers: who belongs together."""

    CONTROLLERS = frozenset(("ReplicaSet", "ReplicationController", "StatefulSet"))

    def __init__(self) -> None:
        self.generation = 0
        self._services: dict[str, dict[str, dict[str, str]]] = {}  # namespace -> name -> selector
        self._controllers: dict[tuple[str, str, str], LabelSelector] = {}  # (kind, namespace, name)

    def set_service(self, namespace: str, name: str, selector: dict[str, str] | None) -> None:
        """None: it went."""
        services = self._services.setdefault(namespace, {})
        if services.get(name) != selector:
            self.generation += 1
            services.pop(name, None)
            if selector is not None:
                services[name] = selector
            if not services:
                del self._services[namespace]

    def set_controller(self, kind: str, namespace: str, name: str, selector: LabelSelector | None) -> None:
        key = kind, namespace, name
        if self._controllers.get(key) != selector:
            self.generation += 1
            self._controllers.pop(key, None)
            if selector is not None:
                self._controllers[key] = selector

    def selector(self, cls: PodClass, owner: tuple[str, str]) -> LabelSelector | None:
        """What the pods that belong together with this one match; None when it belongs to nothing."""
        merged: dict[str, str] = {}
        for wanted in self._services.get(cls.namespace, {}).values():
            if wanted and all(cls.labels.get(k) == v for k, v in wanted.items()):
                merged |= wanted
        own = self._controllers.get((owner[0], cls.namespace, owner[1]))
        both = [*selectors.from_set(merged).requirements, *(own.requirements if own else ())]
        return LabelSelector(both) if both else None


def _eligible(spread: Spread, template: PodTemplate, keys: tuple[str, ...]) -> tuple[Any, Callable[[Node], bool]]:
    """(a key, which nodes count): those with all `keys`, that the pod's own node affinity and (when asked) tolerations let in."""
    affinity = spread.honor_affinity and (template.node_selector or template.required_terms is not None)
    tolerations = template.tolerations if spread.honor_taints else None
    about = orjson.dumps([keys, [template.node_selector, template.required_terms] if affinity else None, tolerations], option=orjson.OPT_SORT_KEYS)

    def counts(node: Node) -> bool:
        labels = node["metadata"].get("labels") or {}
        if not all(key in labels for key in keys):
            return False
        if affinity and not filters.matches_affinity(template, node):
            return False
        return tolerations is None or not filters.untolerated(template, node)

    return about, counts


def plan(population: Population, cls: PodClass, template: PodTemplate, relations: Relations | None, default: LabelSelector | None) -> Plan | None:
    stated = relations.spread if relations is not None else ()
    hard = [s for s in stated if s.hard]
    soft = [s for s in stated if not s.hard]
    if not stated and default is not None:
        soft = list(system_default_spread(cls.namespace, default))
    if not hard and not soft:
        return None

    def view(spread: Spread, among: list[Spread], all_keys: bool) -> DomainCount:
        keys = tuple(sorted({s.topology_key for s in among})) if all_keys else ()
        about, counts = _eligible(spread, template, keys)
        return population.view((spread.term,), spread.topology_key, True, about, counts)

    return Plan(
        hard=[Hard(view(s, hard, True), s.max_skew, s.min_domains, population.takes_in(s.term, cls)) for s in hard],
        soft=[(view(s, soft, bool(stated)), s.max_skew, s.topology_key == HOSTNAME) for s in soft],
        all_keys=bool(stated),
    )


def filter(plan: Plan, codes: Any, first: int, last: int) -> None:
    for c in plan.hard:
        least, domains = c.view.least()
        if domains < c.min_domains:
            least = 0
        c.view.refuse_over(codes, first, last, least + c.max_skew - c.own, reasons.SPREAD, reasons.SPREAD_LABEL)


def score(plan: Plan, columns: NodeColumns, weight: int) -> None:
    if plan.soft:
        columns.score_spread(plan.soft, plan.all_keys, weight)
