"""The feed: watchers get every event of their range, once, in revision order, from history first and then from each commit.

A watcher that starts in the past reads the tree's log in slices, a millisecond of the loop's turn at most, until it has reached the visible revision;
in that same instant it joins the fan-out (fastkube/_ext/watch.pyx), so that no event falls between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fastkube._ext.tree import Event, Tree
from fastkube._ext.watch import Hub, Subscription
from fastkube.runtime import clock, logs
from fastkube.store.interface import Compacted, StoreError, WatchCancelled

WATCH_BUFFER_EVENTS_MAX = 10_000  # what a watcher that takes its events with `next` may leave lying; more cuts it off
SLICE_SECONDS = 0.001  # of one turn of the loop
SLICE_EVENTS = 200  # between two looks at the clock

log = logs.get("store")


class Watch:
    """One watcher, as its owner holds it. With a callback it is only there to be closed; without, `next` takes batches from a bounded buffer."""

    def __init__(
        self,
        key: bytes,
        end: bytes,
        start: int,
        on_events: Callable[[Sequence[Event]], None] | None,
        on_end: Callable[[StoreError], None] | None,
        detach: Callable[[Watch], None],
    ) -> None:
        self.subscription = Subscription(key, end, start, on_events or self._keep)
        self._on_end = on_end
        self._detach = detach
        self._buffer: list[Event] = []
        self._ended: StoreError | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def synced(self) -> bool:
        return self.subscription.live

    def close(self) -> None:
        """No event is handed over after this; a `next` that waits raises WatchCancelled."""
        self._buffer = []
        self._detach(self)
        self._wake()

    def end(self, why: StoreError) -> None:
        """The store's word that it cannot go on."""
        if self._ended is not None or self.subscription.closed:
            return
        self._ended = why
        self._detach(self)
        if self._on_end is not None:
            self._on_end(why)
        self._wake()

    async def next(self) -> Sequence[Event]:
        while not self._buffer:
            if self._ended is not None:
                raise self._ended
            if self.subscription.closed:
                raise WatchCancelled("the watch is closed")
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        batch, self._buffer = self._buffer, []
        return batch

    def _keep(self, events: Sequence[Event]) -> None:
        if self._buffer and len(self._buffer) + len(events) > WATCH_BUFFER_EVENTS_MAX:
            self._buffer = []
            self.end(WatchCancelled(f"the watcher left more than {WATCH_BUFFER_EVENTS_MAX} events lying"))
            return
        self._buffer.extend(events)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Feed:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._hub = Hub(self._callback_raised)
        self._watches: dict[Subscription, Watch] = {}
        self._behind: list[Subscription] = []  # those that are being fed from history
        self._pumping = False

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def close(self, why: StoreError) -> None:
        for watch in list(self._watches.values()):
            watch.end(why)

    def watch(
        self, key: bytes, end: bytes, start: int, on_events: Callable[[Sequence[Event]], None] | None, on_end: Callable[[StoreError], None] | None
    ) -> Watch:
        tree = self._tree
        start = start or tree.visible + 1
        watch = Watch(key, end, start, on_events, on_end, self._detach)
        self._watches[watch.subscription] = watch
        if start > tree.visible:
            self._hub.add(watch.subscription)
        elif start < tree.compacted:
            self._loop.call_soon(watch.end, Compacted(tree.compacted))
        else:
            watch.subscription.position = tree.position(start)
            self._behind.append(watch.subscription)
            self._pump_soon()
        return watch

    def publish(self, revision: int) -> None:
        """Make everything up to `revision` visible, to reads and to watchers."""
        start = self._tree.visible_at
        self._tree.publish(revision)
        self._hub.feed(self._tree, start, self._tree.visible_at)

    def _detach(self, watch: Watch) -> None:
        self._hub.remove(watch.subscription)
        self._watches.pop(watch.subscription, None)

    def _callback_raised(self, subscription: Subscription) -> None:
        log.exception("a watcher's callback raised, the watch ends", key=subscription.key)
        self._watches[subscription].end(WatchCancelled("the watcher's callback raised"))

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        behind, self._behind = self._behind, []
        until = clock.monotonic() + SLICE_SECONDS
        for at, subscription in enumerate(behind):
            while not subscription.closed and not subscription.live:
                if clock.monotonic() > until:
                    self._behind += behind[at:]
                    self._pump_soon()
                    return
                self._catch_up(subscription)

    def _catch_up(self, subscription: Subscription) -> None:
        """One slice of history for one watcher."""
        tree = self._tree
        if subscription.position < tree.log_start:
            self._watches[subscription].end(Compacted(tree.compacted))
            return
        batch = self._hub.history(tree, subscription, SLICE_EVENTS)
        if subscription.position == tree.visible_at:
            self._hub.add(subscription)
        if batch:
            try:
                subscription.on_events(batch)
            except Exception:
                self._callback_raised(subscription)
