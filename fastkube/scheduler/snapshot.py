"""The cluster as the scheduler sees it: nodes as rows of columns, the pods on them, and what is cached per pod template.

Laws: a pod counts on at most one node at a time, whether it is assumed (decided, not yet bound) or bound; adding what is there and removing what
is not are no-ops; all columns and counts equal the sums over `pods` after every call (`check` says so). Pure: no I/O, no clock.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fastkube._ext.nodes import NodeColumns, Room
from fastkube.api import quantity
from fastkube.scheduler import filters
from fastkube.scheduler.plugins import interpodaffinity, podtopologyspread, reasons
from fastkube.scheduler.plugins.reasons import REASONS
from fastkube.scheduler.plugins.volumes import Volumes
from fastkube.scheduler.podinfo import PodInfo, PodTemplate
from fastkube.scheduler.population import PodClass, Population
from fastkube.scheduler.profile import DEFAULT, Profile

BASE_RESOURCES = ("cpu", "memory", "ephemeral-storage")
TEMPLATES_MAX = 512
ROOMS_MAX = 64  # kinds of requests whose fit and scores are kept for all rows
CHANGES_MAX = 65536  # rows noted as changed before all that is kept is made anew
NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"
NO_CLAIMS = "no new claims to deallocate"
POLICY_NEVER = "not eligible due to preemptionPolicy=Never."

Codes = bytearray


@dataclass(slots=True, eq=False)
class StaticResult:
    """Per row, what depends on node and template alone: the code of the filter that refuses (0: none does) and the raw scores."""

    template: PodTemplate
    codes: Codes
    soft: Any  # array of int64: PreferNoSchedule taints not tolerated
    preferred: Any  # weights of preferred terms that match
    softs: int = 0  # rows with taints that are not tolerated
    images: Any = None
    images_generation: int = -1


@dataclass(slots=True)
class Failure:
    """Why a pod fits nowhere: how many nodes gave which reason; `unresolvable` of them could not be helped by preemption."""

    reasons: Counter[str]
    nodes: int
    unresolvable: int
    codes: Codes = field(default_factory=bytearray)  # per row
    plugins: frozenset[str] = frozenset()  # that refused
    prefilter: str = ""  # the pod was refused before any node was looked at
    preemption: str | None = None  # what the search for victims said; None: nothing found, as counted here; "": it found some

    def message(self, never_preempts: bool = False) -> str:
        """Upstream's FitError text."""
        if not self.nodes:
            return "no nodes available to schedule pods"
        if self.prefilter:
            head = f"0/{self.nodes} nodes are available: {self.prefilter}."
        else:
            head = f"0/{self.nodes} nodes are available: {', '.join(sorted(f'{count} {reason}' for reason, count in self.reasons.items()))}."
        if never_preempts:
            return f"{head} {NO_CLAIMS}, preemption: {POLICY_NEVER}"
        if self.preemption is not None:
            return f"{head} {NO_CLAIMS}, preemption: {self.preemption}" if self.preemption else head
        return f"{head} {NO_CLAIMS}, preemption: {self.tail()}"

    def tail(self, more: Counter[str] | None = None) -> str:
        """What the search for victims says of each node; `more`: why some are of no use even without their victims."""
        told = Counter(more or ())
        told[NOT_HELPFUL] += self.unresolvable
        told[NO_VICTIMS] += self.nodes - told.total()
        return f"0/{self.nodes} nodes are available: {', '.join(sorted(f'{count} {reason}' for reason, count in told.items() if count))}."


class Snapshot:
    def __init__(self) -> None:
        self.columns = NodeColumns()
        self.population = Population()
        self.workloads = podtopologyspread.Workloads()
        self.volumes = Volumes()
        self.rows: dict[str, int] = {}  # node name -> row
        self.names: list[str] = []  # row -> node name, "" for a free row
        self.nodes: list[dict[str, Any] | None] = []
        self.versions: list[int] = []  # row -> how often anything changed there
        self.pods: dict[str, tuple[PodInfo, str]] = {}  # pod key -> (pod, node name it counts on)
        self.by_node: dict[str, set[str]] = {}  # also for nodes not (yet) known
        self.ports: list[Counter[tuple[str, str, int]]] = []
        self.priorities: Counter[int] = Counter()  # of the pods that count somewhere
        self.nominated: dict[str, tuple[PodInfo, str]] = {}  # pod key -> (pod, node name that victims are leaving)
        self.resources: dict[str, int] = {name: i for i, name in enumerate(BASE_RESOURCES)}
        self._reserved: dict[str, tuple[int, list[int]]] = {}  # what the columns hold for nominated pods: pod key -> (row, vector)
        self._level: int | None = None
        self._spared = ""  # the nominated pod whose own room is not held, for it is being decided on
        self._images: dict[str, dict[int, int]] = {}  # image name -> row -> bytes
        self._images_generation = 0
        self._free: list[int] = []
        self._static: dict[bytes, StaticResult] = {}
        self._changes: list[int] = []  # rows, in the order they changed
        self._epoch = 0  # of `_changes`
        self._rooms: dict[Any, Room] = {}

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
                self.versions.append(0)
                self.ports.append(Counter())
                for static in self._static.values():
                    static.codes.append(reasons.NO_NODE)
                    static.soft.append(0)
                    static.preferred.append(0)
                    static.images_generation = -1
            self.rows[name] = row
            self.names[row] = name
        self._set_images(row, self.nodes[row], node)
        self.nodes[row] = node
        self._touch(row)
        allocatable = (node.get("status") or {}).get("allocatable") or {}
        amounts = self.vector({k: quantity.milli(v) if k == "cpu" else quantity.value(v) for k, v in allocatable.items() if k != "pods"})
        self.columns.ensure(len(self.names), len(self.resources))
        self.columns.set_allocatable(row, amounts, quantity.value(allocatable.get("pods", 0)))
        self.population.set_node(row, node)
        if fresh:
            for key in self.by_node.get(name, ()):
                self._count(self.pods[key][0], row, 1)
            self._level = None  # nominated pods may have been waiting for this node
        for static in self._static.values():
            self._evaluate(static, row, node)

    def remove_node(self, name: str) -> None:
        row = self.rows.pop(name, None)
        if row is None:
            return
        for key in self.by_node.get(name, ()):
            self._count(self.pods[key][0], row, -1)
        self._release()
        self.columns.clear(row)
        self._set_images(row, self.nodes[row], None)
        self.population.set_node(row, None)
        self.names[row], self.nodes[row] = "", None
        self._touch(row)
        self._free.append(row)
        for static in self._static.values():
            static.codes[row] = reasons.NO_NODE
            static.softs -= bool(static.soft[row])
            static.soft[row] = 0

    def _touch(self, row: int) -> None:
        self.versions[row] += 1
        self._changes.append(row)
        if len(self._changes) > CHANGES_MAX:
            self._changes.clear()
            self._epoch += 1

    def mark(self) -> tuple[int, int]:
        """(changes so far, epoch): what `changed_since` goes by within one epoch."""
        return len(self._changes), self._epoch

    def changed_since(self, seen: int) -> list[int]:
        return self._changes[seen:]

    def _room(self, template: PodTemplate, least: int, balanced: int) -> Room:
        """Fit and resource scores of pods that ask the same, brought up to date by what changed since they were asked for."""
        key = (template.asks, least, balanced)
        room = self._rooms.pop(key, None)
        if room is None:
            room = Room()
            if len(self._rooms) >= ROOMS_MAX:
                self._rooms.pop(next(iter(self._rooms)))
        self._rooms[key] = room
        if room.seen != len(self._changes) or room.epoch != self._epoch:
            changed = None if room.epoch != self._epoch or len(self._changes) - room.seen > len(self.names) else self._changes[room.seen :]
            self.columns.renew(room, changed, self.vector(template.requests), template.scoring_cpu, template.scoring_memory, least, balanced)
            room.seen, room.epoch = len(self._changes), self._epoch
        return room

    def _room_for(self, template: PodTemplate, profile: Profile) -> Room:
        """With the weights of the scores that can be kept; what a pod asks nothing of (CPU, memory) has no balance: upstream skips the plugin."""
        weights = profile.weights
        balanced = weights.get("NodeResourcesBalancedAllocation", 0) if template.requests.get("cpu") or template.requests.get("memory") else 0
        return self._room(template, weights.get("NodeResourcesFit", 0) if profile.plain_fit else 0, balanced)

    def _set_images(self, row: int, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        before = (old.get("status") or {}).get("images") if old else None
        after = (new.get("status") or {}).get("images") if new else None
        if (before or []) == (after or []):
            return
        self._images_generation += 1
        for image in before or ():
            for name in image.get("names") or ():
                rows = self._images.get(name, {})
                rows.pop(row, None)
                if not rows:
                    self._images.pop(name, None)
        for image in after or ():
            for name in image.get("names") or ():
                self._images.setdefault(name, {})[row] = image.get("sizeBytes", 0)

    def vector(self, amounts: dict[str, int]) -> list[int]:
        """Amounts by resource index; resources not seen before get one."""
        for name in amounts:
            if name not in self.resources:
                self.resources[name] = len(self.resources)
                self.columns.ensure(max(len(self.names), 1), len(self.resources))
        vector = [0] * len(self.resources)
        for name, amount in amounts.items():
            vector[self.resources[name]] = amount
        return vector

    # pods

    def class_of(self, pod: PodInfo) -> PodClass:
        return self.population.class_of(pod.label_key, pod.namespace, pod.labels, not pod.deleting)

    def add_pod(self, pod: PodInfo, node: str) -> None:
        """`pod` counts on `node` from here on (assumed or bound: the same)."""
        before = self.pods.get(pod.key)
        if before is not None:
            had = before[0]
            same = had.template is pod.template and had.label_key == pod.label_key and had.deleting == pod.deleting and had.relations is pod.relations
            if before[1] == node and same:
                self.pods[pod.key] = (pod, node)
                return
            self.remove_pod(pod.key)
        self.pods[pod.key] = (pod, node)
        self.class_of(pod).pods += 1
        self.priorities[pod.priority] += 1
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
        self.class_of(pod).pods -= 1
        self.priorities[pod.priority] -= 1
        if not self.priorities[pod.priority]:
            del self.priorities[pod.priority]
        self.population.forget_class(pod.label_key, not pod.deleting)
        return True

    def recount(self, pod: PodInfo, row: int, sign: int) -> None:
        """As if `pod` left `row` (-1) or came back (1): for questions of what would be."""
        self._count(pod, row, sign)

    def forget(self, pod: PodInfo) -> None:
        """A pod that was decided on is of no concern any more: nothing of it is kept."""
        self.nominate(pod, "")
        self.population.forget_class(pod.label_key, not pod.deleting)

    def _count(self, pod: PodInfo, row: int, sign: int) -> None:
        t = pod.template
        self._touch(row)
        self.columns.add(row, self.vector(t.requests), t.scoring_cpu, t.scoring_memory, sign)
        self.population.count(self.class_of(pod), pod.relations, row, sign)
        for port in t.host_ports:
            self.ports[row][port] += sign
            if not self.ports[row][port]:
                del self.ports[row][port]
        if t.claims is not None:
            self.volumes.count(pod, row, sign)

    # nominated pods: their room is held against pods of lower or equal priority

    def nominate(self, pod: PodInfo, node: str) -> None:
        """Victims are leaving `node` for `pod`; "" takes the nomination back."""
        was = self.nominated.pop(pod.key, None)
        if was is not None:
            self._unreserve(pod.key)
        if node:
            self.nominated[pod.key] = (pod, node)
            if self._level is not None and pod.priority >= self._level:
                self._reserve(pod, node)

    def _reserve(self, pod: PodInfo, node: str) -> None:
        row = self.rows.get(node)
        if row is not None:
            vector = self.vector(pod.template.requests)
            self._reserved[pod.key] = (row, vector)
            self.columns.reserve(row, vector, 1)
            self._touch(row)

    def _unreserve(self, key: str) -> None:
        held = self._reserved.pop(key, None)
        if held is not None:
            self.columns.reserve(*held, -1)
            self._touch(held[0])

    def _release(self) -> None:
        for key in list(self._reserved):
            self._unreserve(key)
        self._level = None

    def _hold_for(self, pod: PodInfo) -> None:
        """The columns hold room for all nominated pods that come before `pod`, itself left out."""
        if self._level != pod.priority:
            self._release()
            for other, node in self.nominated.values():
                if other.priority >= pod.priority:
                    self._reserve(other, node)
            self._level = pod.priority
        elif self._spared not in ("", pod.key) and self._spared in self.nominated and self._spared not in self._reserved:
            other, node = self.nominated[self._spared]
            if other.priority >= pod.priority:
                self._reserve(other, node)
        self._unreserve(pod.key)
        self._spared = pod.key

    def has_room(self, pod: PodInfo, node: str) -> bool:
        """Whether `node` lets `pod` in by itself and has room for it."""
        row = self.rows.get(node)
        if row is None or (pod.pins is not None and node not in pod.pins) or self.static(pod.template).codes[row]:
            return False
        self._hold_for(pod)
        return not self.columns.short(row, self.vector(pod.template.requests))

    # filters and scores that do not depend on pods, cached per template

    def static(self, template: PodTemplate) -> StaticResult:
        static = self._static.pop(template.locality, None)
        if static is None:
            n = len(self.names)
            static = StaticResult(template, Codes([reasons.NO_NODE]) * n, array("q", bytes(8 * n)), array("q", bytes(8 * n)))
            for row, node in enumerate(self.nodes):
                if node is not None:
                    self._evaluate(static, row, node)
            if len(self._static) >= TEMPLATES_MAX:
                self._static.pop(next(iter(self._static)))
        self._static[template.locality] = static
        return static

    @staticmethod
    def _evaluate(static: StaticResult, row: int, node: dict[str, Any]) -> None:
        static.codes[row] = filters.refusal(static.template, node)
        soft, static.preferred[row] = filters.raw_scores(static.template, node)
        static.softs += bool(soft) - bool(static.soft[row])
        static.soft[row] = soft

    def _image_scores(self, static: StaticResult) -> Any:
        """ImageLocality: bytes of the template's images on each row, less for those that few nodes have; None when no node has any."""
        if static.images_generation != self._images_generation:
            static.images_generation = self._images_generation
            found = [rows for image in static.template.images if (rows := self._images.get(filters.normalized_image(image)))]
            static.images = array("q", bytes(8 * len(self.names))) if found else None
            for rows in found:
                for row, size in rows.items():
                    static.images[row] += int(size * (len(rows) / len(self.rows)))
            for row in {row for rows in found for row in rows}:
                static.images[row] = filters.image_score(static.images[row], static.template.containers)
        return static.images

    # decisions

    def plans(self, pod: PodInfo, cls: PodClass, spread_defaults: bool = True) -> tuple[podtopologyspread.Plan | None, interpodaffinity.Plan | None]:
        """What spread and affinity mean for pods like this one; cached with its class for as long as it is true."""
        self.population.refresh(cls)
        key = (pod.relations and pod.relations.signature, pod.owner, pod.template.locality, self.workloads.generation, spread_defaults)
        found = cls.plans.get(key)
        if found is None:
            default = None
            if spread_defaults and (pod.relations is None or not pod.relations.spread):
                default = self.workloads.selector(cls, pod.owner or ("", ""))
            before = self.population.generation
            found = (
                podtopologyspread.plan(self.population, cls, pod.template, pod.relations, default),
                interpodaffinity.plan(self.population, cls, pod.relations),
            )
            if before == self.population.generation:
                if len(cls.plans) >= TEMPLATES_MAX:
                    cls.plans.clear()
                cls.plans[key] = found
        return found

    def filter(self, pod: PodInfo, codes: Codes, first: int, last: int, profile: Profile = DEFAULT) -> None:
        """All filters over rows [first, last), in upstream's order: `codes` tells who refused."""
        template, on = pod.template, profile.filters
        if template.host_ports and "NodePorts" in on:
            for row in range(first, last):
                if not codes[row] and self._ports_taken(template, row):
                    codes[row] = reasons.PORTS
        if "NodeResourcesFit" in on:
            if last - first > 1:
                self.columns.fit_room(self._room_for(template, profile), codes, first, last, reasons.FIT)
            else:
                self.columns.fit(self.vector(template.requests), codes, first, last, reasons.FIT)
        if template.claims is not None:
            self.volumes.filter(pod, self.nodes, codes, first, last, on)
        spread, affinity = self.plans(pod, self.class_of(pod), profile.spread_defaults)
        if spread is not None and "PodTopologySpread" in on:
            podtopologyspread.filter(spread, codes, first, last)
        if affinity is not None and "InterPodAffinity" in on:
            interpodaffinity.filter(affinity, codes, first, last)

    def feasible(self, pod: PodInfo, profile: Profile = DEFAULT) -> tuple[Codes, int, int]:
        """(codes, first, last): which rows may take `pod`, nominated pods taken into account."""
        codes = Codes(self.static(pod.template).codes)
        if len(profile.filters) < len(DEFAULT.filters):
            self._spare(pod.template, codes, profile)
        first, last = 0, len(codes)
        if pod.pins is not None:
            first, last = self._pin(pod.pins, codes)
        if not self.nominated:
            self.filter(pod, codes, first, last, profile)
            return codes, first, last
        self._hold_for(pod)
        guests = [(other, self._reserved[key][0]) for key, (other, _) in self.nominated.items() if key in self._reserved]
        related = [(o, row) for o, row in guests if pod.relations or o.relations or (pod.template.host_ports and o.template.host_ports)]
        if not related:
            self.filter(pod, codes, first, last, profile)
            return codes, first, last
        alone = Codes(codes)
        for other, row in related:
            self._guest(other, row, 1)
        self.filter(pod, codes, first, last, profile)
        for other, row in related:
            self._guest(other, row, -1)
        self.filter(pod, alone, first, last, profile)
        for row in range(first, last):
            codes[row] = codes[row] or alone[row]
        return codes, first, last

    def _guest(self, pod: PodInfo, row: int, sign: int) -> None:
        cls = self.class_of(pod)
        self.population.count(cls, pod.relations, row, sign)
        for port in pod.template.host_ports:
            self.ports[row][port] += sign

    def _spare(self, template: PodTemplate, codes: Codes, profile: Profile) -> None:
        """Node-local filters that the profile does not run refuse nobody."""
        for row, node in enumerate(self.nodes):
            if node is not None and codes[row]:
                codes[row] = filters.refusal(template, node, profile.filters)

    def _pin(self, pins: tuple[str, ...], codes: Codes) -> tuple[int, int]:
        rows = [row for name in pins if (row := self.rows.get(name)) is not None]
        if len(rows) != 1:
            for row, name in enumerate(self.names):
                if name and row not in rows:
                    codes[row] = reasons.NOT_PINNED
            return 0, len(codes)
        return rows[0], rows[0] + 1

    def decide(self, pod: PodInfo, seed: int, profile: Profile = DEFAULT) -> str | Failure:
        """The best node for `pod`, or why there is none. `seed` breaks ties."""
        if not self.rows:
            return Failure(Counter(), 0, 0)
        if pod.template.claims is not None and (refused := self.volumes.prefilter(pod)):
            return Failure(Counter(), len(self.rows), len(self.rows), prefilter=refused[1], plugins=frozenset((refused[0],)))
        codes, first, last = self.feasible(pod, profile)
        count, only = self.columns.gather(codes, first, last)
        if not count:
            if last - first == 1:  # pinned: what the others are was not looked at
                self._unpinned(codes, first)
            return self.failure(pod.template, codes)
        return self.names[only] if count == 1 else self.names[self._best(pod, seed, profile)]

    def _unpinned(self, codes: Codes, row: int) -> None:
        own = codes[row]
        for other, name in enumerate(self.names):
            codes[other] = reasons.NOT_PINNED if name else reasons.NO_NODE
        codes[row] = own

    def _best(self, pod: PodInfo, seed: int, profile: Profile) -> int:
        template, columns, weights = pod.template, self.columns, profile.weights
        static = self.static(template)
        if static.softs and (weight := weights.get("TaintToleration")):
            columns.score_normalized(static.soft, weight, True)
        if template.preferred_terms and (weight := weights.get("NodeAffinity")):
            columns.score_normalized(static.preferred, weight, False)
        if (weight := weights.get("ImageLocality")) and (images := self._image_scores(static)) is not None:
            columns.score_plain(images, weight)
        self._score_resources(template, profile)
        spread, affinity = self.plans(pod, self.class_of(pod), profile.spread_defaults)
        if spread is not None and (weight := weights.get("PodTopologySpread")):
            podtopologyspread.score(spread, columns, weight)
        if affinity is not None and (weight := weights.get("InterPodAffinity")):
            interpodaffinity.score(affinity, columns, weight)
        return columns.best(seed)

    def _score_resources(self, template: PodTemplate, profile: Profile) -> None:
        columns = self.columns
        columns.score_room(self._room_for(template, profile))
        if not profile.plain_fit and (weight := profile.weights.get("NodeResourcesFit")):
            amounts = {"cpu": template.scoring_cpu, "memory": template.scoring_memory}
            strategy = [(self.resources[name], each, amounts.get(name, -1)) for name, each in profile.resources if name in self.resources]
            columns.score_shares(self.vector(template.requests), strategy, profile.strategy == "MostAllocated", list(profile.shape), weight)

    def _ports_taken(self, template: PodTemplate, row: int) -> bool:
        """NodePorts: the same port and protocol on the same address, where 0.0.0.0 is every address."""
        used = self.ports[row]
        return bool(used) and any(
            port == p and protocol == q and (ip == a or "0.0.0.0" in (ip, a)) for ip, protocol, port in template.host_ports for a, q, p in used
        )

    def failure(self, template: PodTemplate, codes: Codes) -> Failure:
        """The words for `codes` that leave no row."""
        told: Counter[str] = Counter()
        plugins = set()
        unresolvable = 0
        for code in (reasons.FIT, *REASONS):
            if not (count := codes.count(code)):
                continue
            if code == reasons.FIT:
                crowded, short, hopeless = self.columns.shortfall(self.vector(template.requests), codes, code)
                names = {index: name for name, index in self.resources.items()}
                if crowded:
                    told["Too many pods"] = crowded
                told.update({f"Insufficient {names[i]}": n for i, n in enumerate(short) if n})
                unresolvable += hopeless
                plugins.add("NodeResourcesFit")
            else:
                told[REASONS[code].text] += count
                plugins.add(REASONS[code].plugin)
                unresolvable += count if REASONS[code].hopeless else 0
        return Failure(told, len(self.rows), unresolvable, codes, frozenset(plugins))

    def check(self) -> None:
        """Raises AssertionError unless the columns and counts equal the sums over the pods: the invariant that tests hold after every step."""
        for name, row in self.rows.items():
            pods = [self.pods[key][0] for key in self.by_node.get(name, ())]
            _, requested, cpu, memory, count, _ = self.columns.row(row)
            total: Counter[str] = Counter()
            for pod in pods:
                total.update(pod.template.requests)
            assert {n: requested[i] for n, i in self.resources.items() if requested[i]} == {k: v for k, v in total.items() if v}, name
            assert (cpu, memory, count) == (sum(p.template.scoring_cpu for p in pods), sum(p.template.scoring_memory for p in pods), len(pods)), name
            ports: Counter[tuple[str, str, int]] = Counter(port for p in pods for port in p.template.host_ports)
            assert self.ports[row] == ports, name
        known = [(self.class_of(p), p.relations, self.rows[node]) for p, node in self.pods.values() if node in self.rows]
        self.population.check(known)
        assert self.priorities == Counter(p.priority for p, _ in self.pods.values())
        assert sum(c.pods for c in self.population.classes.values()) == len(self.pods)
        self.volumes.check([(p, self.rows[node]) for p, node in self.pods.values() if node in self.rows])
