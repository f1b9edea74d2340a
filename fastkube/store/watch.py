"""One watcher, as its owner holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fastkube._ext.watch import Subscription
from fastkube.store.interface import Event, StoreError, WatchCancelled

WATCH_BUFFER_EVENTS_MAX = 10_000  # what a watcher that takes its events with `next` may leave lying; more cuts it off


class Watch:
    """Made by the store's `watch`. With a callback it is only there to be closed; without, `next` takes batches from a bounded buffer."""

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

    def close(self) -> None:
        """No event is handed over after this."""
        self._buffer = []
        self._detach(self)

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
        if len(self._buffer) + len(events) > WATCH_BUFFER_EVENTS_MAX and self._buffer:
            self._buffer = []
            self.end(WatchCancelled(f"the watcher left more than {WATCH_BUFFER_EVENTS_MAX} events lying"))
            return
        self._buffer.extend(events)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
