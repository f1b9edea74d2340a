"""The cluster as the scheduler sees it: nodes as rows of columns, the pods on them, and what is cached per pod template.

Laws: a pod counts on at most one node at a time, whether it is assumed (decided, not yet bound) or bound; adding what is there and removing what
is not are no-ops; `columns` equal the sums over `pods` after every call (`check` says so). Pure: no I/O, no clock.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fastkube._ext.nodes import NodeColumns
from fastkube.api import quantity
from fastkube.scheduler import filters
from fastkube.scheduler.podinfo import PodInfo, PodTemplate

BASE_RESOURCES = ("cpu", "memory", "ephemeral-storage")
PORTS_REASON = "node(s) didn't have free ports for the requested pod ports"
NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"


@dataclass(slots=True, eq=False)
class StaticResult:
    """Per row: which filter refuses the template there (0: none), and the raw scores; `mask` is 1 where none does."""

    template: PodTemplate
    mask: bytearray
    refusals: bytearray
    soft: list[int]
    preferred: list[int]
    images: list[int]
    scores: Any = None  # the weighted sum as an int64 array; None until asked for
    scored: bool = False  # False: all rows score alike, the kernel need not add them


@dataclass(slots=True)
class Failure:
    """Why a pod fits nowhere: how many nodes gave which reason; `unresolvable` of them could not be helped by preemption."""

    reasons: Counter[str]
    nodes: int
    unresolvable: int

    def message(self, never_preempts: bool = False) -> str:
        """Upstream's FitError text."""
        if not self.nodes:
            return "no nodes available to schedule pods"
        listed = ", ".join(sorted(f"{count} {reason}" for reason, count in self.reasons.items()))
        head = f"0/{self.nodes} nodes are available: {listed}."
        if never_preempts:
            return f"{head} no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never."
        helps = {NOT_HELPFUL: self.unresolvable, NO_VICTIMS: self.nodes - self.unresolvable}
        tail = ", ".join(sorted(f"{count} {reason}" for reason, count in helps.items() if count))
        return f"{head} no new claims to deallocate, preemption: 0/{self.nodes} nodes are available: {tail}."


class Snapshot:
    def __init__(self) -> None:
        self.columns = NodeColumns()
        self.rows: dict[str, int] = {}  # node name -> row
        self.names: list[str] = []  # row -> node name, "" for a free row
        self.nodes: list[dict[str, Any] | None] = []
        self.pods: dict[str, tuple[PodInfo, str]] = {}  # pod key -> (pod, node name it counts on)
        self.by_node: dict[str, set[str]] = {}  # also for nodes not (yet) known
        self.ports: list[Counter[tuple[str, str, int]]] = []
        self._resources: dict[str, int] = {name: i for i, name in enumerate(BASE_RESOURCES)}
        self._free: list[int] = []
        self._static: dict[bytes, StaticResult] = {}
        self.templates_max = 512

    # nodes

    def set_node(self, node: dict[str, Any]) -> None:
        name = node["metadata"]["name"]
        row = self.rows.get(name)
        fresh = row is None
        if row is None:
            row = self._free.pop() if self._free else len(self.names)
            if row == len(self.names):
                self.names.append("")
                self.nodes.append(None)
                self.ports.append(Counter())
                for static in self._static.values():
                    static.mask.append(0)
                    static.refusals.append(0)
                    static.soft.append(0)
                    static.preferred.append(0)
                    static.images.append(0)
            self.rows[name] = row
            self.names[row] = name
        self.nodes[row] = node
        allocatable = (node.get("status") or {}).get("allocatable") or {}
        amounts = self._vector({k: quantity.milli(v) if k == "cpu" else quantity.value(v) for k, v in allocatable.items() if k != "pods"})
        self.columns.ensure(len(self.names), len(self._resources))
        self.columns.set_allocatable(row, amounts, quantity.value(allocatable.get("pods", 0)))
        if fresh:
            for key in self.by_node.get(name, ()):
                self._count(self.pods[key][0], row, 1)
        for static in self._static.values():
            static.scores = None
            self._evaluate(static, row, node)

    def remove_node(self, name: str) -> None:
        row = self.rows.pop(name, None)
        if row is None:
            return
        self.columns.clear(row)
        self.ports[row].clear()
        self.names[row], self.nodes[row] = "", None
        self._free.append(row)
        for static in self._static.values():
            static.mask[row] = 0
            static.scores = None

    def _vector(self, amounts: dict[str, int]) -> list[int]:
        """Amounts by resource index; resources not seen before get one."""
        for name in amounts:
            if name not in self._resources:
                self._resources[name] = len(self._resources)
                self.columns.ensure(max(len(self.names), 1), len(self._resources))
        vector = [0] * len(self._resources)
        for name, amount in amounts.items():
            vector[self._resources[name]] = amount
        return vector

    # pods

    def add_pod(self, pod: PodInfo, node: str) -> None:
        """`pod` counts on `node` from here on (assumed or bound: the same)."""
        before = self.pods.get(pod.key)
        if before is not None:
            if before[1] == node and before[0].template is pod.template:
                self.pods[pod.key] = (pod, node)
                return
            self.remove_pod(pod.key)
        self.pods[pod.key] = (pod, node)
        self.by_node.setdefault(node, set()).add(pod.key)
        row = self.rows.get(node)
        if row is not None:
            self._count(pod, row, 1)

    def remove_pod(self, key: str) -> bool:
        """The pod no longer counts anywhere -> whether it did."""
        found = self.pods.pop(key, None)
        if found is None:
            return False
        pod, node = found
        on = self.by_node[node]
        on.discard(key)
        if not on:
            del self.by_node[node]
        row = self.rows.get(node)
        if row is not None:
            self._count(pod, row, -1)
        return True

    def _count(self, pod: PodInfo, row: int, sign: int) -> None:
        t = pod.template
        self.columns.add(row, self._vector(t.requests), t.scoring_cpu, t.scoring_memory, sign)
        for port in t.host_ports:
            self.ports[row][port] += sign
            if not self.ports[row][port]:
                del self.ports[row][port]

    # filters that do not depend on pods, cached per template

    def static(self, template: PodTemplate) -> StaticResult:
        static = self._static.pop(template.signature, None)
        if static is None:
            n = len(self.names)
            static = StaticResult(template, bytearray(n), bytearray(n), [0] * n, [0] * n, [0] * n)
            for row, node in enumerate(self.nodes):
                if node is not None:
                    self._evaluate(static, row, node)
            if len(self._static) >= self.templates_max:
                self._static.pop(next(iter(self._static)))
        self._static[template.signature] = static
        return static

    @staticmethod
    def _evaluate(static: StaticResult, row: int, node: dict[str, Any]) -> None:
        template = static.template
        refused = filters.refusal(template, node)
        static.refusals[row] = refused
        static.mask[row] = not refused
        static.soft[row], static.preferred[row], static.images[row] = filters.raw_scores(template, node)

    @staticmethod
    def _scores(static: StaticResult) -> Any:
        """Weighted scores of TaintToleration, NodeAffinity and ImageLocality; None when they are the same for all."""
        if static.scores is None:
            soft = filters.normalized(static.soft, reverse=True)
            preferred = filters.normalized(static.preferred)
            images = [filters.image_score(b, len(static.template.images)) for b in static.images] if any(static.images) else [0] * len(soft)
            weights = filters.TAINT_WEIGHT, filters.AFFINITY_WEIGHT, filters.IMAGE_WEIGHT
            static.scores = array("q", (weights[0] * s + weights[1] * p + weights[2] * i for s, p, i in zip(soft, preferred, images, strict=True)))
            static.scored = len(set(static.scores)) > 1
        return static.scores if static.scored else None

    # decisions

    def decide(self, pod: PodInfo, seed: int) -> str | Failure:
        """The best node for `pod`, or why there is none. `seed` breaks ties."""
        template = pod.template
        static = self.static(template)
        mask = static.mask
        if template.host_ports:
            mask = bytearray(m and not self._ports_taken(template, row) for row, m in enumerate(mask))
        if not self.names:
            return Failure(Counter(), 0, 0)
        request = self._vector(template.requests)
        # a pod that asks for nothing at all is not what balance is about (upstream skips the plugin for best-effort pods)
        balance = bool(template.requests.get("cpu") or template.requests.get("memory"))
        row, _ = self.columns.select(request, template.scoring_cpu, template.scoring_memory, mask, self._scores(static), balance, seed)
        return self.names[row] if row >= 0 else self._failure(template, static, request)

    def _ports_taken(self, template: PodTemplate, row: int) -> bool:
        """NodePorts: the same port and protocol on the same address, where 0.0.0.0 is every address."""
        used = self.ports[row]
        return bool(used) and any(
            port == p and protocol == q and (ip == a or "0.0.0.0" in (ip, a)) for ip, protocol, port in template.host_ports for a, q, p in used
        )

    def _failure(self, template: PodTemplate, static: StaticResult, request: list[int]) -> Failure:
        reasons: Counter[str] = Counter()
        unresolvable = nodes = 0
        names = {index: name for name, index in self._resources.items()}
        for row, name in enumerate(self.names):
            if not name:
                continue
            nodes += 1
            if static.refusals[row]:
                reasons[filters.REASONS[static.refusals[row]]] += 1
                unresolvable += 1
            elif template.host_ports and self._ports_taken(template, row):
                reasons[PORTS_REASON] += 1
            else:
                crowded, short = self.columns.shortages(row, request)
                if crowded:
                    reasons["Too many pods"] += 1
                for index, _ in short:
                    reasons[f"Insufficient {names[index]}"] += 1
                unresolvable += any(hopeless for _, hopeless in short)
        return Failure(reasons, nodes, unresolvable)

    def check(self) -> None:
        """Raises AssertionError unless the columns equal the sums over the pods: the invariant that tests hold after every step."""
        for name, row in self.rows.items():
            pods = [self.pods[key][0] for key in self.by_node.get(name, ())]
            _, requested, cpu, memory, count, _ = self.columns.row(row)
            total: Counter[str] = Counter()
            for pod in pods:
                total.update(pod.template.requests)
            assert {n: requested[i] for n, i in self._resources.items() if requested[i]} == {k: v for k, v in total.items() if v}, name
            assert (cpu, memory, count) == (sum(p.template.scoring_cpu for p in pods), sum(p.template.scoring_memory for p in pods), len(pods)), name
            ports: Counter[tuple[str, str, int]] = Counter(port for p in pods for port in p.template.host_ports)
            assert self.ports[row] == ports, name
