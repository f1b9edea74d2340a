"""The scheduling queue as a pure state machine: active, backoff, unschedulable and gated pods (upstream's PriorityQueue).

Laws: a pod key is in at most one of the parts, or in flight (popped, not yet `done` or `failed`); a pod whose world changed while it was in
flight goes to backoff rather than to unschedulable, so that no change is missed. Unschedulable pods are found by the plugins that refused them: an
event costs what it may help, not what waits. Time comes in as arguments (monotonic seconds).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastkube.scheduler.podinfo import PodInfo

BACKOFF_SECONDS_INITIAL = 1.0
BACKOFF_SECONDS_MAX = 10.0
UNSCHEDULABLE_SECONDS_MAX = 300.0
ANYTHING = "*"  # stands among the plugins of a pod that any event may help


@dataclass(slots=True, eq=False)
class Waiting:
    """A pod on its way to a decision. `attempts` failed so far; `plugins` that refused it last (what must change to help it)."""

    pod: PodInfo
    since: float
    attempts: int = 0
    plugins: frozenset[str] = frozenset()
    place: str = "active"  # active, backoff, unschedulable, gated, flight, gone
    order: int = 0
    moves_seen: int = 0
    parked: float = 0.0


class SchedulingQueue:
    def __init__(self, backoff_seconds: float = BACKOFF_SECONDS_INITIAL, backoff_seconds_max: float = BACKOFF_SECONDS_MAX) -> None:
        self.waiting: dict[str, Waiting] = {}
        self._backoff_seconds = backoff_seconds, backoff_seconds_max
        self._active: list[tuple[int, int, Waiting]] = []
        self._backoff: list[tuple[float, int, Waiting]] = []
        self._parked: dict[str, Waiting] = {}  # unschedulable, the longest parked first
        self._by_plugin: dict[str, dict[str, Waiting]] = {}
        self._sequence = itertools.count(1)
        self._moves = 0  # counts events that may have helped somebody

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, pod: PodInfo, now: float) -> None:
        """A pod that wants a node, new or changed; a change of its spec gives it another chance at once."""
        known = self.waiting.get(pod.key)
        if known is None:
            known = self.waiting[pod.key] = Waiting(pod, now, order=next(self._sequence))
            self._activate(known)
            return
        old = known.pod
        changed = (
            old.template is not pod.template
            or old.uid != pod.uid
            or old.gated != pod.gated
            or old.priority != pod.priority
            or old.label_key != pod.label_key
            or old.relations is not pod.relations
        )
        known.pod = pod
        if changed and known.place in ("unschedulable", "gated"):
            self._activate(known)
        elif changed and known.place == "flight":
            self._moves += 1  # decided on what is no longer so: it will come again
        elif changed and known.place == "active":
            self._activate(known)

    def remove(self, key: str) -> None:
        """The pod is gone or no longer ours."""
        known = self.waiting.pop(key, None)
        if known is not None:
            self._unpark(known)
            known.place = "gone"

    def _activate(self, waiting: Waiting) -> None:
        self._unpark(waiting)
        waiting.place = "active"
        heapq.heappush(self._active, (-waiting.pod.priority, waiting.order, waiting))

    def _park(self, waiting: Waiting) -> None:
        waiting.place = "unschedulable"
        self._parked[waiting.pod.key] = waiting
        for plugin in waiting.plugins or (ANYTHING,):
            self._by_plugin.setdefault(plugin, {})[waiting.pod.key] = waiting

    def _unpark(self, waiting: Waiting) -> None:
        if waiting.place == "unschedulable":
            self._parked.pop(waiting.pod.key, None)
            for plugin in waiting.plugins or (ANYTHING,):
                self._by_plugin.get(plugin, {}).pop(waiting.pod.key, None)

    def pop(self, now: float) -> Waiting | None:
        """The next pod to decide on, highest priority first, then first come; None when all wait."""
        self._expire(now)
        while self._active:
            priority, _, waiting = heapq.heappop(self._active)
            if waiting.place == "active" and -priority == waiting.pod.priority:
                waiting.place = "flight"
                waiting.moves_seen = self._moves
                return waiting
        return None

    def next_due(self) -> float | None:
        """When `pop` may have something again without an event; None: only an event can tell."""
        while self._backoff and self._backoff[0][2].place != "backoff":
            heapq.heappop(self._backoff)
        due = [self._backoff[0][0]] if self._backoff else []
        due += [w.parked + UNSCHEDULABLE_SECONDS_MAX for w in itertools.islice(self._parked.values(), 1)]
        return min(due, default=None)

    def _expire(self, now: float) -> None:
        while self._backoff and self._backoff[0][0] <= now:
            _, _, waiting = heapq.heappop(self._backoff)
            if waiting.place == "backoff":
                self._activate(waiting)

    def done(self, waiting: Waiting) -> None:
        """Bound: it waits no more."""
        if self.waiting.get(waiting.pod.key) is waiting:
            self.remove(waiting.pod.key)

    def failed(self, waiting: Waiting, plugins: frozenset[str], now: float, *, transient: bool = False) -> None:
        """No node for it: park it until an event helps; back off only when one came meanwhile or the failure was `transient`."""
        if waiting.place != "flight":
            return
        waiting.attempts += 1
        waiting.plugins, waiting.parked = plugins, now
        if transient or waiting.moves_seen != self._moves:
            self._back_off(waiting, now)
        else:
            self._park(waiting)

    def gate(self, waiting: Waiting, now: float) -> None:
        """It has scheduling gates: only a change of the pod itself helps."""
        if waiting.place == "flight":
            waiting.place, waiting.parked = "gated", now

    def _back_off(self, waiting: Waiting, now: float) -> None:
        """Active again once its backoff, which began with its last failure, is over."""
        self._unpark(waiting)
        first, most = self._backoff_seconds
        due = waiting.parked + min(first * 2 ** (min(waiting.attempts, 16) - 1), most)
        if due <= now:
            self._activate(waiting)
            return
        waiting.place = "backoff"
        heapq.heappush(self._backoff, (due, next(self._sequence), waiting))

    def moved(self, now: float, plugins: Iterable[str] | None = None, hint: Callable[[Waiting], bool] | None = None) -> int:
        """Something changed that may help pods refused by one of `plugins` (None: any) for whom `hint` holds -> how many got another chance."""
        self._moves += 1
        if not self._parked:
            return 0
        found: dict[str, Waiting] = {}
        if plugins is None:
            found.update(self._parked)
        else:
            for plugin in (*plugins, ANYTHING):
                found.update(self._by_plugin.get(plugin, ()))
        count = 0
        for waiting in found.values():
            if hint is None or hint(waiting):
                self._back_off(waiting, now)
                count += 1
        return count

    def flush(self, now: float) -> int:
        """Pods parked for longer than five minutes get a chance without any event."""
        old = list(itertools.takewhile(lambda w: now - w.parked > UNSCHEDULABLE_SECONDS_MAX, self._parked.values()))
        for waiting in old:
            self._activate(waiting)
        return len(old)
