"""The scheduling queue as a pure state machine: active, backoff and unschedulable pods (upstream's PriorityQueue).

Laws: a pod key is in at most one of the three parts, or in flight (popped, not yet `done` or `failed`); a pod whose world changed while it was in
flight goes to backoff rather than to unschedulable, so that no change is missed. Time comes in as arguments (monotonic seconds).
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from fastkube.scheduler.podinfo import PodInfo

BACKOFF_SECONDS_INITIAL = 1.0
BACKOFF_SECONDS_MAX = 10.0
UNSCHEDULABLE_SECONDS_MAX = 300.0


@dataclass(slots=True, eq=False)
class Waiting:
    """A pod on its way to a decision. `attempts` failed so far; `reasons` that refused it last (what must change to help it)."""

    pod: PodInfo
    since: float
    attempts: int = 0
    reasons: frozenset[str] = frozenset()
    place: str = "active"  # active, backoff, unschedulable, flight, gone
    order: int = 0
    moves_seen: int = 0
    parked: float = field(default=0.0)


class SchedulingQueue:
    def __init__(self) -> None:
        self.waiting: dict[str, Waiting] = {}
        self._active: list[tuple[int, int, Waiting]] = []
        self._backoff: list[tuple[float, int, Waiting]] = []
        self._sequence = itertools.count()
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
        changed = known.pod.template is not pod.template or known.pod.uid != pod.uid or known.pod.gated != pod.gated or known.pod.priority != pod.priority
        known.pod = pod
        if changed and known.place == "unschedulable":
            self._activate(known)
        elif changed and known.place == "flight":
            self._moves += 1  # decided on what is no longer so: it will come again
        elif changed and known.place == "active":
            self._activate(known)

    def remove(self, key: str) -> None:
        """The pod is gone or no longer ours."""
        known = self.waiting.pop(key, None)
        if known is not None:
            known.place = "gone"

    def _activate(self, waiting: Waiting) -> None:
        waiting.place = "active"
        waiting.order = waiting.order or next(self._sequence)
        heapq.heappush(self._active, (-waiting.pod.priority, waiting.order, waiting))

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
        due += [w.parked + UNSCHEDULABLE_SECONDS_MAX for w in self.waiting.values() if w.place == "unschedulable"][:1]
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

    def failed(self, waiting: Waiting, reasons: frozenset[str], now: float, *, transient: bool = False) -> None:
        """No node for it: park it until an event helps; back off only when one came meanwhile or the failure was `transient`."""
        if waiting.place != "flight":
            return
        waiting.attempts += 1
        waiting.reasons = reasons
        if transient or waiting.moves_seen != self._moves:
            self._back_off(waiting, now)
        else:
            waiting.place, waiting.parked = "unschedulable", now

    def gate(self, waiting: Waiting, now: float) -> None:
        """It has scheduling gates: only a change of the pod itself helps."""
        if waiting.place == "flight":
            waiting.reasons, waiting.place, waiting.parked = frozenset({"SchedulingGates"}), "unschedulable", now

    def _back_off(self, waiting: Waiting, now: float) -> None:
        waiting.place = "backoff"
        delay = min(BACKOFF_SECONDS_INITIAL * 2 ** (min(waiting.attempts, 16) - 1), BACKOFF_SECONDS_MAX)
        heapq.heappush(self._backoff, (now + delay, next(self._sequence), waiting))

    def moved(self, now: float, helps: frozenset[str] | None = None) -> int:
        """Something changed that may help pods refused for one of `helps` (None: any) -> how many got another chance."""
        self._moves += 1
        count = 0
        for waiting in self.waiting.values():
            if waiting.place != "unschedulable" or waiting.pod.gated:
                continue
            if helps is None or not waiting.reasons or waiting.reasons & helps:
                self._back_off(waiting, now) if waiting.attempts and now - waiting.parked < BACKOFF_SECONDS_MAX else self._activate(waiting)
                count += 1
        return count

    def flush(self, now: float) -> int:
        """Pods parked for longer than five minutes get a chance without any event."""
        count = 0
        for waiting in self.waiting.values():
            if waiting.place == "unschedulable" and not waiting.pod.gated and now - waiting.parked > UNSCHEDULABLE_SECONDS_MAX:
                self._activate(waiting)
                count += 1
        return count
