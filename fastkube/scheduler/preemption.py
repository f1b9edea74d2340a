"""DefaultPreemption: which pods must leave which node so that a pod of higher priority fits. Pure: works on the snapshot, leaves it as it was.

Upstream's order: a candidate node is one where the pod fits once all pods of lower priority are gone; of these as many as possible are spared, the
more important first, those that a PodDisruptionBudget protects before all others. The best candidate violates the fewest budgets, then has the
lowest highest victim, the smallest sum of priorities, the fewest victims, the latest start. Pods alike share the search: what did not change since
is not looked at again.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastkube.api import selectors
from fastkube.scheduler.plugins.reasons import FIT, REASONS
from fastkube.scheduler.podinfo import PodInfo
from fastkube.scheduler.profile import DEFAULT, Profile
from fastkube.scheduler.snapshot import Codes, Failure, Snapshot

CANDIDATES_MIN = 100
CANDIDATES_PERCENT = 10
REMEMBERED_MAX = 64  # (template, priority) pairs whose search is remembered
TERMINATING = "not eligible due to a terminating pod on the nominated node."
HELPFUL = frozenset((FIT, *(code for code, reason in REASONS.items() if not reason.hopeless)))
PRIORITY_OFFSET = 2**31  # makes every victim count in the sum, also one of negative priority


@dataclass(slots=True, frozen=True)
class Candidate:
    node: str
    victims: tuple[PodInfo, ...]  # the most important first
    violations: int
    cost: tuple[Any, ...]  # lower is better


def cost_of(victims: list[PodInfo], violations: int) -> tuple[Any, ...]:
    """(budgets violated, highest priority, sum of priorities, number, start of the highest victims: the later the lower)."""
    priorities = [v.priority for v in victims]
    top = max(priorities, default=-PRIORITY_OFFSET)
    start = min((started(v) for v in victims if v.priority == top), default="")
    return violations, top, sum(p + PRIORITY_OFFSET for p in priorities), len(priorities), tuple(-ord(c) for c in start)


@dataclass(slots=True)
class Search:
    """What is known for pods alike, row by row, as of `seen` changes of `epoch`; `heap` has all candidates, and stale ones."""

    rows: dict[int, tuple[int, Candidate | int | None]] = field(default_factory=dict)  # row -> (version, result)
    heap: list[tuple[tuple[Any, ...], int, int]] = field(default_factory=list)  # (cost, row, version)
    seen: int = 0
    epoch: int = -1


def started(pod: PodInfo) -> str:
    """RFC 3339; a pod that has not started is the youngest of all."""
    return pod.started or "~"


def importance(pod: PodInfo) -> tuple[int, str, str]:
    """Sorts the more important first: higher priority, then longer running."""
    return -pod.priority, started(pod), pod.key


class Budgets:
    """PodDisruptionBudgets as told: who is protected, and how many may still go."""

    def __init__(self) -> None:
        self.generation = 0
        self._by_namespace: dict[str, dict[str, tuple[Any, int, frozenset[str]]]] = {}

    def tell(self, budget: dict[str, Any], gone: bool = False) -> None:
        meta, status = budget["metadata"], budget.get("status") or {}
        self.generation += 1
        held = self._by_namespace.setdefault(meta["namespace"], {})
        held.pop(meta["name"], None)
        if not gone:
            selector = selectors.from_object((budget.get("spec") or {}).get("selector"))
            held[meta["name"]] = (selector, status.get("disruptionsAllowed", 0), frozenset(status.get("disruptedPods") or ()))

    @property
    def any(self) -> bool:
        return any(self._by_namespace.values())

    def violating(self, pods: Iterable[PodInfo]) -> set[str]:
        """Keys of the pods whose going, after those before them, breaks a budget."""
        left: dict[tuple[str, str], int] = {}
        found = set()
        for pod in pods:
            for name, (selector, allowed, disrupted) in self._by_namespace.get(pod.namespace, {}).items():
                if not pod.labels or selector.empty or not selector.matches(pod.labels) or pod.name in disrupted:
                    continue
                key = pod.namespace, name
                left[key] = left.get(key, allowed) - 1
                if left[key] < 0:
                    found.add(pod.key)
        return found


class Preemption:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.budgets = Budgets()
        self.leaving: set[str] = set()  # victims told to go, not gone yet
        self._known: dict[Any, Search] = {}

    def eligible(self, pod: PodInfo, failure: Failure) -> bool:
        """Not while victims of its own are still leaving a node that may yet take it."""
        nominated = self.snapshot.nominated.get(pod.key)
        if nominated is None:
            return True
        row = self.snapshot.rows.get(nominated[1])
        if row is None or (failure.codes and (reason := REASONS.get(failure.codes[row])) is not None and reason.hopeless):
            return True
        on = (self.snapshot.pods[key][0] for key in self.snapshot.by_node.get(nominated[1], ()))
        return not any(p.priority < pod.priority and (p.deleting or p.key in self.leaving) for p in on)

    def find(self, pod: PodInfo, failure: Failure, seed: int, profile: Profile = DEFAULT) -> Candidate | None:
        """The node to clear for `pod`; None when there is none. `failure.preemption` is set to what upstream says of it."""
        if failure.prefilter or not failure.nodes:
            return None
        if not self.eligible(pod, failure):
            failure.preemption = TERMINATING
            return None
        snapshot = self.snapshot
        if failure.unresolvable >= failure.nodes or not any(p < pod.priority for p in snapshot.priorities):
            return None
        known = self._remembered(pod)
        best, refused = self._sampled(pod, failure, seed, known, profile) if known is None or self.budgets.any else self._kept(pod, failure, known, profile)
        if best is None:
            failure.preemption = failure.tail(self._words(refused, failure))
            return None
        failure.preemption = ""
        return best

    def _sampled(self, pod: PodInfo, failure: Failure, seed: int, known: Search | None, profile: Profile) -> tuple[Candidate | None, Counter[int]]:
        """The best of as many candidates as upstream looks at, and why the other rows are none."""
        wanted = max(len(self.snapshot.rows) * CANDIDATES_PERCENT // 100, CANDIDATES_MIN)
        best: Candidate | None = None
        spared = found = 0
        refused: Counter[int] = Counter()
        for row in self._rows(failure.codes, seed):
            result = self._at(pod, row, known, profile)
            if isinstance(result, Candidate):
                found += 1
                if best is None or result.cost < best.cost:
                    best = result
                spared += not result.violations
                if found >= wanted and spared:
                    break
            elif result is not None:
                refused[result] += 1
        return best, refused

    def _kept(self, pod: PodInfo, failure: Failure, known: Search, profile: Profile) -> tuple[Candidate | None, Counter[int]]:
        """The best of all rows, of which only those that changed are looked at again."""
        snapshot = self.snapshot
        _, epoch = snapshot.mark()
        if epoch != known.epoch or len(known.heap) > 4 * len(snapshot.names) + CANDIDATES_MIN:
            changed = set(self._rows(failure.codes, 0))
            known.heap.clear()
            known.rows.clear()
        else:
            changed = {row for row in snapshot.changed_since(known.seen) if failure.codes[row] in HELPFUL}
        for row in changed:
            result = self._at(pod, row, known, profile)
            if isinstance(result, Candidate):
                heapq.heappush(known.heap, (result.cost, row, known.rows[row][0]))
        known.seen, known.epoch = snapshot.mark()
        while known.heap:
            _, row, version = known.heap[0]
            result = known.rows[row][1]
            if version == snapshot.versions[row] and isinstance(result, Candidate):
                return result, Counter()
            heapq.heappop(known.heap)
        refused = Counter(r for row, (_, r) in known.rows.items() if isinstance(r, int) and failure.codes[row] in HELPFUL)
        return None, refused

    @staticmethod
    def _rows(codes: Codes, seed: int) -> Iterator[int]:
        """Rows where pods' going may help, from a place given by chance, so that the work is spread over the nodes."""
        start = seed % len(codes)
        for row in (*range(start, len(codes)), *range(start)):
            if codes[row] in HELPFUL:
                yield row

    @staticmethod
    def _words(refused: Counter[int], failure: Failure) -> Counter[str]:
        told: Counter[str] = Counter()
        for code, count in refused.items():
            if code == FIT:
                # what is short of room even without its victims is short of the same as with them, in all but exotic cases
                told.update({text: count for text in failure.reasons if text.startswith(("Insufficient ", "Too many"))} if len(refused) == 1 else {})
            else:
                told[REASONS[code].text] += count
        return told

    def _remembered(self, pod: PodInfo) -> Search | None:
        """What is known of the rows for pods like this one; None when the answer for a row depends on other rows too."""
        snapshot = self.snapshot
        spread, affinity = snapshot.plans(pod, snapshot.class_of(pod))
        if (
            pod.template.claims is not None
            or pod.template.host_ports
            or (spread and spread.hard)
            or (affinity and (affinity.affinity or affinity.anti_affinity or affinity.existing))
        ):
            return None
        key = (pod.template.signature, pod.priority, self.budgets.generation)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            known = self._known[key] = Search()
        return known

    def _at(self, pod: PodInfo, row: int, known: Search | None, profile: Profile) -> Candidate | int | None:
        if known is None:
            return self._dry_run(pod, row, profile, False)
        version = self.snapshot.versions[row]
        held = known.rows.get(row)
        if held is None or held[0] != version:
            held = known.rows[row] = version, self._dry_run(pod, row, profile, True)  # touches nothing but the columns, and puts them back
        return held[1]

    def _dry_run(self, pod: PodInfo, row: int, profile: Profile, room_only: bool) -> Candidate | int | None:
        """A candidate; the code of the filter that refuses even the cleared node; or None: there is nobody to take off."""
        snapshot = self.snapshot
        node = snapshot.names[row]
        lower = sorted((p for key in snapshot.by_node.get(node, ()) if (p := snapshot.pods[key][0]).priority < pod.priority), key=importance)
        if not lower:
            return None
        vector = snapshot.vector(pod.template.requests)
        codes = Codes(len(snapshot.names))

        def refused() -> int:
            if room_only:
                return FIT if snapshot.columns.short(row, vector) else 0
            codes[row] = 0
            snapshot.filter(pod, codes, row, row + 1, profile)
            return codes[row]

        def count(victim: PodInfo, sign: int) -> None:
            if room_only:
                t = victim.template
                snapshot.columns.add(row, snapshot.vector(t.requests), t.scoring_cpu, t.scoring_memory, sign)
            else:
                snapshot.recount(victim, row, sign)

        for victim in lower:
            count(victim, -1)
        victims: list[PodInfo] = []
        code = refused()
        if not code:
            violating = self.budgets.violating(lower)
            for victim in sorted(lower, key=lambda p: p.key not in violating):
                count(victim, 1)
                if refused():
                    count(victim, -1)
                    victims.append(victim)
            for victim in victims:
                count(victim, 1)
            broken = sum(v.key in violating for v in victims)
            return Candidate(node, tuple(sorted(victims, key=importance)), broken, cost_of(victims, broken))
        for victim in lower:
            count(victim, 1)
        return code
