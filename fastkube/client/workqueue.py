"""Workqueue: keys to be worked on, each once however often it was added, and never by two workers at a time.

Laws (as client-go's util/workqueue):
1. A key added many times before it is taken is worked on once.
2. A key added while it is being worked on is worked on again after `done`, not beside.
3. Keys come out in the order they went in.
4. `add_rate_limited` waits 5 ms x 2^failures, at most 1000 s, and no more than BUCKET_PER_SECOND of all keys after a burst; `forget` resets.

Time is the event loop's, so a queue under a virtual loop runs on virtual time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

BACKOFF_SECONDS_MIN = 0.005
BACKOFF_SECONDS_MAX = 1000.0
BUCKET_PER_SECOND = 10.0
BUCKET_BURST = 100


class ShutDown(Exception):
    """The queue was shut down and is empty."""


class Workqueue:
    """Single event loop; no locks. The number of keys is bounded by the number of objects that are there."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.adds = 0
        self.retries = 0
        self._queue: deque[Hashable] = deque()
        self._dirty: set[Hashable] = set()
        self._processing: set[Hashable] = set()
        self._waiting: dict[Hashable, asyncio.TimerHandle] = {}
        self._failures: dict[Hashable, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._bucket_time = -1e18  # when the bucket's next token is due
        self._down = False

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def unfinished(self) -> int:
        """Keys queued or being worked on (not those that wait for their time)."""
        return len(self._queue) + len(self._processing)

    def add(self, key: Hashable) -> None:
        if self._down or key in self._dirty:
            return
        self.adds += 1
        self._dirty.add(key)
        if key not in self._processing:
            self._queue.append(key)
            self._wake()

    async def get(self) -> Hashable:
        """The next key; call `done` with it when the work is over. Raises ShutDown."""
        while not self._queue:
            if self._down:
                raise ShutDown
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if not getter.cancelled():
                    self._wake()  # the key we were woken for goes to somebody else
                elif getter in self._getters:
                    self._getters.remove(getter)
                raise
        key = self._queue.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: Hashable) -> None:
        self._processing.discard(key)
        if key in self._dirty:
            self._queue.append(key)
            self._wake()

    def add_after(self, key: Hashable, seconds: float) -> None:
        """Add `key` in so many seconds; of several times asked for, the earliest counts."""
        if self._down:
            return
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        waiting = self._waiting.get(key)
        if waiting is not None:
            if waiting.when() <= when:
                return
            waiting.cancel()
        self._waiting[key] = loop.call_at(when, self._due, key)

    def _due(self, key: Hashable) -> None:
        self._waiting.pop(key, None)
        self.add(key)

    def add_rate_limited(self, key: Hashable) -> None:
        """Add after the back-off that the key's failures (and all keys' together) have earned."""
        self.retries += 1
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        backoff = min(BACKOFF_SECONDS_MIN * 2 ** min(failures, 30), BACKOFF_SECONDS_MAX)
        now = asyncio.get_running_loop().time()
        self._bucket_time = max(self._bucket_time, now - BUCKET_BURST / BUCKET_PER_SECOND) + 1 / BUCKET_PER_SECOND
        self.add_after(key, max(backoff, self._bucket_time - now))

    def forget(self, key: Hashable) -> None:
        self._failures.pop(key, None)

    def failures(self, key: Hashable) -> int:
        return self._failures.get(key, 0)

    def shut_down(self) -> None:
        """Take no more keys; those queued are still handed out, then `get` raises ShutDown."""
        self._down = True
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
        while self._getters:
            self._wake()

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
