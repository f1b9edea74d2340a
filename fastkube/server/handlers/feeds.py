"""Watches of one field's value (`spec.nodeName=n1`: every node agent has one) share a subscription: an event reaches those whose value it has or had.

So an event costs nothing for the watchers that it does not concern, however many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastkube.server.registry.endpoint import Endpoint
from fastkube.store.interface import Event, Store, StoreError


class Taker(Protocol):
    def events(self, events: Sequence[Event]) -> None: ...
    def ended(self, why: StoreError) -> None: ...


class Feed:
    """The events of a resource, by one field's value."""

    def __init__(self, store: Store, endpoint: Endpoint, field: str) -> None:
        self._endpoint = endpoint
        self._field = field
        self._takers: dict[str, set[Taker]] = {}
        self._source = store.watch(endpoint.prefix, endpoint.end, on_events=self._events, on_end=self._ended)

    def add(self, value: str, taker: Taker) -> None:
        self._takers.setdefault(value, set()).add(taker)

    def remove(self, value: str, taker: Taker) -> None:
        takers = self._takers.get(value)
        if takers is not None:
            takers.discard(taker)
            if not takers:
                del self._takers[value]

    @property
    def empty(self) -> bool:
        return not self._takers

    def close(self) -> None:
        self._source.close()

    def _value(self, kv: Any) -> str:
        return self._endpoint.digest_of(kv).fields.get(self._field, "")

    def _events(self, events: Sequence[Event]) -> None:
        touched: dict[Taker, list[Event]] = {}
        for event in events:
            value = None if event.deleted else self._value(event.kv)
            before = None if event.prev is None else self._value(event.prev)
            for which in {value, before}:
                if which is not None:
                    for taker in self._takers.get(which, ()):
                        touched.setdefault(taker, []).append(event)
        for taker, batch in touched.items():
            taker.events(batch)

    def _ended(self, why: StoreError) -> None:
        for takers in tuple(self._takers.values()):
            for taker in tuple(takers):
                taker.ended(why)


class Feeds:
    """The feeds in use, by resource and field."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._feeds: dict[tuple[bytes, str], Feed] = {}

    def join(self, endpoint: Endpoint, field: str, value: str, taker: Taker) -> None:
        """From now on `taker` gets the events that concern `value`; those made from here on."""
        feed = self._feeds.get((endpoint.prefix, field))
        if feed is None:
            feed = self._feeds[endpoint.prefix, field] = Feed(self._store, endpoint, field)
        feed.add(value, taker)

    def leave(self, endpoint: Endpoint, field: str, value: str, taker: Taker) -> None:
        feed = self._feeds.get((endpoint.prefix, field))
        if feed is not None:
            feed.remove(value, taker)
            if feed.empty:
                feed.close()
                del self._feeds[endpoint.prefix, field]
