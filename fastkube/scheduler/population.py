"""Who is where, by what they look like: counts of pods per selector and topology domain, kept by each pod's coming and going.

Pods of the same namespace and labels are one `PodClass`. A selector that somebody asks about becomes a `PodSet`; each class knows the sets it
belongs to, so a pod that comes costs one addition per set. Pods that carry terms of their own (required anti-affinity, preferences) are sets too,
the `Carrier`s, and each class knows the carriers whose term takes it in. Laws: a set's count on a row is the number of pods there that it
takes in, whenever it was made; selectors' sets can be dropped at any time and come back from the classes (`check` compares all with the pods).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastkube._ext.topology import DomainCount, Domains, PodSet
from fastkube.scheduler.relations import HARD_AFFINITY_WEIGHT, Labels, Relations, Term

CARRIERS_MAX = 4096  # terms carried by pods; beyond it those that nobody carries any more are forgotten
SETS_MAX = 4096  # selectors counted at a time; beyond it all are dropped and come back as they are asked for

Node = dict[str, Any]
Pair = tuple[str, str]


@dataclass(slots=True, eq=False)
class Selected:
    """The pods that all `terms` take in; with `live`, those that are not being deleted."""

    terms: tuple[Term, ...]
    live: bool
    pods: PodSet = field(default_factory=PodSet)


@dataclass(slots=True, eq=False)
class Carrier:
    """The pods that carry `term` over one topology key; `weight` is what it counts in scores, 0 for required anti-affinity."""

    term: Term
    weight: int
    pods: PodSet
    count: DomainCount


@dataclass(slots=True, eq=False)
class PodClass:
    namespace: str
    labels: Labels
    live: bool
    pods: int = 0  # also on nodes not known
    rows: dict[int, int] = field(default_factory=dict)
    sets: list[Selected] = field(default_factory=list)
    carriers: tuple[Carrier, ...] = ()
    generation: int = -1  # of `carriers` and `plans`
    plans: dict[Any, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Eligibility:
    """Which nodes count for a spread constraint, and the counts that obey it."""

    counts: Callable[[Node], bool]
    views: list[DomainCount] = field(default_factory=list)


def _pair(term: Term) -> Pair | None:
    """A label that every pod of the term has."""
    for r in term.selector.requirements:
        if (value := term.selector.exact(r.key)) is not None:
            return r.key, value
    return None


class Population:
    def __init__(self) -> None:
        self.nodes: list[Node | None] = []  # by row
        self.namespaces: dict[str, Labels] = {}
        self.classes: dict[tuple[bytes, bool], PodClass] = {}
        self.generation = 0  # changes whenever what classes have cached is no longer so
        self._domains: dict[str, Domains] = {}
        self._sets: dict[Any, Selected] = {}
        self._by_pair: dict[Pair | None, list[Selected]] = {}
        self._views: dict[Any, DomainCount] = {}
        self._eligibilities: dict[Any, Eligibility] = {}
        self._carriers: dict[Any, Carrier] = {}
        self._carriers_by_pair: dict[Pair | None, list[Carrier]] = {}
        self._carried: dict[bytes, tuple[PodSet, ...]] = {}

    # nodes and namespaces

    def set_node(self, row: int, node: Node | None) -> None:
        """The node of `row` came, changed or (None) went; its pods are counted by `count`."""
        while len(self.nodes) <= row:
            self.nodes.append(None)
        self.nodes[row] = node
        labels = (node["metadata"].get("labels") or {}) if node else {}
        for key, domains in self._domains.items():
            domains.set(row, labels.get(key))
        for eligibility in self._eligibilities.values():
            counts = node is not None and eligibility.counts(node)
            for view in eligibility.views:
                view.admit(row, counts)

    def set_namespace(self, name: str, labels: Labels) -> None:
        if self.namespaces.get(name) == labels:
            return
        self.namespaces[name] = labels
        self.generation += 1
        concerned = [s for s in self._sets.values() if any(t.namespace_selector is not None for t in s.terms)]
        for cls in self.classes.values() if concerned else ():
            if cls.namespace == name:
                for selected in concerned:
                    self._reconsider(cls, selected)

    def _reconsider(self, cls: PodClass, selected: Selected) -> None:
        was, now = selected in cls.sets, self._belongs(cls, selected)
        if was != now:
            cls.sets.append(selected) if now else cls.sets.remove(selected)
            for row, count in cls.rows.items():
                selected.pods.add(row, count if now else -count)

    # pods

    def class_of(self, key: bytes, namespace: str, labels: Labels, live: bool) -> PodClass:
        cls = self.classes.get((key, live))
        if cls is None:
            cls = self.classes[key, live] = PodClass(namespace, labels, live)
            cls.sets = [s for s in self._candidates(self._by_pair, labels) if self._belongs(cls, s)]
        return cls

    def forget_class(self, key: bytes, live: bool) -> None:
        """The class is forgotten when it has no pods."""
        cls = self.classes.get((key, live))
        if cls is not None and not cls.pods:
            del self.classes[key, live]

    def count(self, cls: PodClass, relations: Relations | None, row: int, sign: int) -> None:
        """A pod comes to `row` (`sign` 1) or goes (-1)."""
        count = cls.rows.get(row, 0) + sign
        if count:
            cls.rows[row] = count
        else:
            del cls.rows[row]
        for selected in cls.sets:
            selected.pods.add(row, sign)
        if relations is not None:
            for pods in self._carried_by(relations):
                pods.add(row, sign)

    @staticmethod
    def _candidates(index: dict[Pair | None, list[Any]], labels: Labels) -> Iterable[Any]:
        for pair in (*labels.items(), None):
            yield from index.get(pair, ())

    def takes_in(self, term: Term, cls: PodClass) -> bool:
        return term.covers(cls.namespace, self.namespaces.get(cls.namespace, {})) and term.selector.matches(cls.labels)

    def _belongs(self, cls: PodClass, selected: Selected) -> bool:
        return (cls.live or not selected.live) and all(self.takes_in(t, cls) for t in selected.terms)

    # counts

    def domains(self, key: str) -> Domains:
        domains = self._domains.get(key)
        if domains is None:
            domains = self._domains[key] = Domains(key)
            for row, node in enumerate(self.nodes):
                if node is not None:
                    domains.set(row, (node["metadata"].get("labels") or {}).get(key))
        return domains

    def selected(self, terms: tuple[Term, ...], live: bool = False) -> Selected:
        """The set of pods that all `terms` take in."""
        key = (tuple(t.key for t in terms), live)
        selected = self._sets.get(key)
        if selected is None:
            if len(self._sets) >= SETS_MAX:
                self._drop_sets()
            selected = self._sets[key] = Selected(terms, live)
            self._by_pair.setdefault(_pair(terms[0]), []).append(selected)
            for cls in self.classes.values():
                if self._belongs(cls, selected):
                    cls.sets.append(selected)
                    for row, count in cls.rows.items():
                        selected.pods.add(row, count)
        return selected

    def _drop_sets(self) -> None:
        for view in self._views.values():
            view.close()
        self._views.clear()
        self._sets.clear()
        self._by_pair.clear()
        self._eligibilities.clear()
        for cls in self.classes.values():
            cls.sets.clear()
        self.generation += 1

    def view(
        self, terms: tuple[Term, ...], topology_key: str, live: bool = False, eligible: Any = None, counts: Callable[[Node], bool] | None = None
    ) -> DomainCount:
        """Pods that `terms` take in, per domain of `topology_key`; with `eligible` (a key for `counts`) on the nodes that count only."""
        key = (tuple(t.key for t in terms), live, topology_key, eligible)
        view = self._views.get(key)
        if view is None:
            pods = self.selected(terms, live).pods
            view = self._views[key] = DomainCount(self.domains(topology_key), pods, counts is None)
            if counts is not None:
                eligibility = self._eligibilities.setdefault(eligible, Eligibility(counts))
                eligibility.views.append(view)
                for row, node in enumerate(self.nodes):
                    view.admit(row, node is not None and counts(node))
        return view

    # carriers

    def _carried_by(self, relations: Relations) -> tuple[PodSet, ...]:
        carried = self._carried.get(relations.signature)
        if carried is None:
            wanted = [(t, key, 0) for t, key in relations.anti_affinity]
            wanted += [(t, key, HARD_AFFINITY_WEIGHT) for t, key in relations.affinity]
            wanted += [w for w in relations.preferred if w[2]]
            carried = self._carried[relations.signature] = tuple(self._carrier(*w).pods for w in wanted)
        return carried

    def _carrier(self, term: Term, topology_key: str, weight: int) -> Carrier:
        key = (term.key, topology_key, weight)
        carrier = self._carriers.get(key)
        if carrier is None:
            if len(self._carriers) >= CARRIERS_MAX:
                self._drop_carriers()
            pods = PodSet()
            carrier = self._carriers[key] = Carrier(term, weight, pods, DomainCount(self.domains(topology_key), pods))
            self._carriers_by_pair.setdefault(_pair(term), []).append(carrier)
            self.generation += 1
        return carrier

    def _drop_carriers(self) -> None:
        for key, carrier in list(self._carriers.items()):
            if not carrier.pods.total:
                carrier.count.close()
                self._carriers_by_pair[_pair(carrier.term)].remove(carrier)
                del self._carriers[key]
        self._carried.clear()
        self.generation += 1

    def refresh(self, cls: PodClass) -> None:
        """What the class has cached is made true again: the carriers whose term takes it in."""
        if cls.generation != self.generation:
            cls.carriers = tuple(c for c in self._candidates(self._carriers_by_pair, cls.labels) if self.takes_in(c.term, cls))
            cls.plans.clear()
            cls.generation = self.generation

    def check(self, pods: Iterable[tuple[PodClass, Relations | None, int]]) -> None:
        """Raises AssertionError unless every count equals what going over `pods` (class, relations, row) gives."""
        pods = list(pods)
        views = [(v, set_key) for set_key, v in self._views.items()]
        for selected in self._sets.values():
            rows = [row for cls, _, row in pods if self._belongs(cls, selected)]
            assert selected.pods.total == len(rows)
            assert all(selected.pods.at(row) == rows.count(row) for row in range(len(self.nodes)))
        for (term_key, topology_key, weight), carrier in self._carriers.items():
            carried = [row for _, r, row in pods for k in self._terms_of(r) if k == (term_key, topology_key, weight)]
            assert carrier.pods.total == len(carried)
            assert all(carrier.pods.at(row) == carried.count(row) for row in range(len(self.nodes)))
            self._check_view(carrier.count, None)
        for view, (*_, eligible) in views:
            self._check_view(view, eligible)

    @staticmethod
    def _terms_of(relations: Relations | None) -> list[Any]:
        if relations is None:
            return []
        return (
            [(t.key, key, 0) for t, key in relations.anti_affinity]
            + [(t.key, key, HARD_AFFINITY_WEIGHT) for t, key in relations.affinity]
            + [(t.key, key, w) for t, key, w in relations.preferred if w]
        )

    def _check_view(self, view: DomainCount, eligible: Any) -> None:
        counts = self._eligibilities[eligible].counts if eligible is not None else lambda node: True
        wanted: dict[str, int] = {}
        for row, node in enumerate(self.nodes):
            value = ((node["metadata"].get("labels") or {}).get(view.domains.key)) if node else None
            assert view.domains.value(row) == value
            if node is not None and value is not None and counts(node):
                wanted[value] = wanted.get(value, 0) + view.pods.at(row)
        for row in range(len(self.nodes)):
            value = view.domains.value(row)
            if value is not None:
                assert view.count(row) == wanted.get(value, 0)
        assert view.least() == (min(wanted.values(), default=0), len(wanted))
