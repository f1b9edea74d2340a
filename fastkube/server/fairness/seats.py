"""Seats and queues of priority levels: the pure core. No clock, no loop: a driver asks, is told whether a waiter may go, and releases.

Laws:
1. `sum(max(in use, guaranteed))` over all levels never exceeds the total: a level always gets its guaranteed seats (nominal less lendable) at once, whatever
   the others do; all the rest is a common pool that whoever has work may borrow from, up to its borrowing limit. Nothing idles while somebody waits for it.
2. When seats come free, the level that uses least of its nominal share goes first; in it, the queue that has been served least (start-time fair queueing).
3. A flow's waiters go to the shortest queue of the hand that its hash deals it: a loud flow fills its own hand, a quiet one has with high probability
   another queue. A full queue refuses (QUEUE_FULL), a level without queues refuses at once (CONCURRENCY_LIMIT).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

QUEUE_FULL, CONCURRENCY_LIMIT = "queue-full", "concurrency-limit"
WIDTH_SEATS_MAX = 10  # of one request, as upstream


class Refused(Exception):
    """No seat and no place to wait; `reason` as the metrics have it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Waiter:
    """One who waits for `width` seats; `go()` is called when they are his."""

    __slots__ = ("go", "gone", "queue", "width")

    def __init__(self, width: int, queue: Queue, go: Any) -> None:
        self.width, self.queue, self.go = width, queue, go
        self.gone = False


class Queue:
    __slots__ = ("seats", "start", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.seats = 0  # asked for by those who wait
        self.start = 0.0  # virtual time at which its next one begins


class Level:
    """A priority level. `spec` is a PriorityLevelConfiguration's. Seats are given by its Pool."""

    def __init__(self, name: str, spec: dict[str, Any], uid: str = "") -> None:
        self.name, self.uid = name, uid
        self.exempt = spec.get("type") == "Exempt"
        limited = (spec.get("exempt") if self.exempt else spec.get("limited")) or {}
        shares = limited.get("nominalConcurrencyShares")
        self.shares: int = shares if shares is not None else 0 if self.exempt else 30
        self.lendable: int = limited.get("lendablePercent") or 0
        self.borrowing: int | None = limited.get("borrowingLimitPercent")
        queuing = ((limited.get("limitResponse") or {}).get("queuing")) or {}
        queues = 0 if (limited.get("limitResponse") or {}).get("type") != "Queue" else queuing.get("queues") or 64
        self.queues = [Queue() for _ in range(queues)]
        self.hand: int = min(queuing.get("handSize") or 8, queues)
        self.length_max: int = queuing.get("queueLengthLimit") or 50
        self.nominal = self.guaranteed = self.upper = 0
        self.in_use = self.executing = self.waiting = 0
        self.clock = 0.0  # virtual

    def choose(self, flow: int) -> Queue:
        """The queue of a flow (hash of 64 bits) with the fewest seats asked for. Raises Refused."""
        if not self.queues:
            raise Refused(CONCURRENCY_LIMIT)
        best = min((self.queues[i] for i in deal(flow, len(self.queues), self.hand)), key=lambda q: q.seats)
        if len(best.waiters) >= self.length_max:
            raise Refused(QUEUE_FULL)
        return best

    def next(self) -> Queue | None:
        """The queue to be served."""
        return min((q for q in self.queues if q.waiters), key=lambda q: q.start, default=None)


def deal(flow: int, deck: int, hand: int) -> list[int]:
    """`hand` different cards of `deck`, dealt by the bits of `flow` (shuffle sharding)."""
    cards: list[int] = []
    for i in range(hand):
        flow, card = divmod(flow, deck - i)
        for taken in sorted(cards):
            if card >= taken:
                card += 1
        cards.append(card)
    return cards


class Pool:
    """All levels over the server's seats."""

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self.levels: dict[str, Level] = {}
        self.total = seats
        self._waiting = 0  # over all levels
        self._reserved = 0  # sum of max(in use, guaranteed)

    def configure(self, levels: Iterable[Level]) -> None:
        """Replace the levels. Those of a name that stays keep what is in use and who waits."""
        fresh = {level.name: level for level in levels}
        for name, old in self.levels.items():
            new = fresh.get(name)
            if new is None:
                if old.in_use or old.waiting:  # goes when it is empty
                    old.shares = old.lendable = 0
                    fresh[name] = old
                continue
            _copy(new, old)
            fresh[name] = old
        shares = sum(level.shares for level in fresh.values()) or 1
        for level in fresh.values():
            level.nominal = math.ceil(self._seats * level.shares / shares)
            level.guaranteed = 0 if level.exempt else level.nominal - round(level.nominal * level.lendable / 100)
        self.total = sum(level.nominal for level in fresh.values())  # rounded up: each can have its nominal seats
        for level in fresh.values():
            level.upper = self.total if level.borrowing is None else min(self.total, level.nominal + round(level.nominal * level.borrowing / 100))
        self.levels = fresh
        self._reserved = sum(max(level.in_use, level.guaranteed) for level in fresh.values() if not level.exempt)
        self._serve()

    def fits(self, level: Level, width: int) -> bool:
        used = level.in_use + width
        if used > level.upper:
            return False
        return used <= level.guaranteed or self._reserved + used - max(level.in_use, level.guaranteed) <= self.total

    def take(self, level: Level, width: int) -> bool:
        """Take seats at once; False when they are not to be had, or others wait for them."""
        if level.waiting or not self.fits(level, width):
            return False
        self._use(level, width)
        return True

    def wait(self, level: Level, width: int, flow: int, go: Any) -> Waiter:
        """Stand in line. Raises Refused."""
        queue = level.choose(flow)
        waiter = Waiter(width, queue, go)
        if not queue.waiters:
            queue.start = max(queue.start, level.clock)
        queue.waiters.append(waiter)
        queue.seats += width
        level.waiting += 1
        self._waiting += 1
        return waiter

    def leave(self, level: Level, waiter: Waiter) -> None:
        """Wait no longer."""
        if not waiter.gone:
            waiter.gone = True
            waiter.queue.waiters.remove(waiter)
            waiter.queue.seats -= waiter.width
            level.waiting -= 1
            self._waiting -= 1
            self._serve()

    def release(self, level: Level, width: int) -> None:
        used, guaranteed = level.in_use, level.guaranteed
        level.in_use = left = used - width
        level.executing -= 1
        if used > guaranteed:
            self._reserved -= used - (left if left > guaranteed else guaranteed)
        if self._waiting:
            self._serve()

    def _use(self, level: Level, width: int) -> None:
        used, guaranteed = level.in_use, level.guaranteed
        level.in_use = used = used + width
        level.executing += 1
        if used > guaranteed:
            self._reserved += width if used - width > guaranteed else used - guaranteed

    def _serve(self) -> None:
        """Let go whoever may now."""
        waiting = [level for level in self.levels.values() if level.waiting]
        while waiting:
            level = min(waiting, key=lambda x: x.in_use / (x.nominal or 1))
            queue = level.next()
            if queue is None or not self.fits(level, queue.waiters[0].width):
                waiting.remove(level)
                continue
            waiter = queue.waiters.popleft()
            waiter.gone = True
            queue.seats -= waiter.width
            level.waiting -= 1
            self._waiting -= 1
            level.clock = queue.start
            queue.start += waiter.width
            self._use(level, waiter.width)
            waiter.go()


def _copy(new: Level, old: Level) -> None:
    """`old` takes the settings of `new`; queues too many stay until they are empty."""
    old.uid, old.exempt, old.shares, old.lendable, old.borrowing = new.uid, new.exempt, new.shares, new.lendable, new.borrowing
    old.hand, old.length_max = new.hand, new.length_max
    if len(new.queues) != len(old.queues) and not old.waiting:
        old.queues = new.queues
    old.hand = min(old.hand, len(old.queues))
