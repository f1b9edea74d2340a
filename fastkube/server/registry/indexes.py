"""Which objects have a label (or field) value: kept only for the names that lists really select by, so that 50 of 3,000 cost 50.

An index follows the commits in the very turn in which they become visible; it answers for the visible revision only. It is made when somebody
selects by its name among many objects, and given up when others are asked for more recently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastkube.store.interface import Event, Store, StoreError

OBJECTS_MIN = 256  # fewer are looked through
INDEXES_MAX = 16  # of one resource
VALUES_MAX = 64  # of one requirement: `a in (...)` with more is looked through

Term = tuple[bool, str, frozenset[str]]  # (on fields, name, one of these values)


class _Index:
    """value -> keys, of one label or field."""

    def __init__(self, store: Store, endpoint: Any, on_fields: bool, name: str) -> None:
        self._endpoint, self._on_fields, self._name = endpoint, on_fields, name
        self._keys: dict[str, set[bytes]] = {}
        self.broken = False
        for kv in store.range(endpoint.prefix, endpoint.end).kvs:
            self._put(kv)
        self._source = store.watch(endpoint.prefix, endpoint.end, on_events=self._events, on_end=self._ended)

    def _value(self, kv: Any) -> str | None:
        digest = self._endpoint.digest_of(kv)
        return (digest.fields if self._on_fields else digest.labels).get(self._name)

    def _put(self, kv: Any) -> None:
        value = self._value(kv)
        if value is not None:
            self._keys.setdefault(value, set()).add(kv.key)

    def _events(self, events: Sequence[Event]) -> None:
        for event in events:
            before = None if event.prev is None else self._value(event.prev)
            after = None if event.deleted else self._value(event.kv)
            if before == after:
                continue
            if before is not None:
                keys = self._keys[before]
                keys.discard(event.kv.key)
                if not keys:
                    del self._keys[before]
            if after is not None:
                self._keys.setdefault(after, set()).add(event.kv.key)

    def _ended(self, why: StoreError) -> None:
        self.broken = True

    def find(self, values: frozenset[str]) -> list[bytes]:
        return [key for value in values for key in self._keys.get(value, ())]

    def close(self) -> None:
        self._source.close()


class Indexes:
    """The indexes of one resource, the most recently used last."""

    def __init__(self, store: Store, endpoint: Any) -> None:
        self._store, self._endpoint = store, endpoint
        self._indexes: dict[tuple[bool, str], _Index] = {}

    def find(self, term: Term, start: bytes, end: bytes) -> list[Any] | None:
        """The visible versions in [start, end) that `term` holds for, in key order; None when they had better be looked for."""
        on_fields, name, values = term
        if len(values) > VALUES_MAX:
            return None
        index = self._indexes.pop((on_fields, name), None)
        if index is None or index.broken:
            if self._store.count(start, end) < OBJECTS_MIN:
                return None
            index = _Index(self._store, self._endpoint, on_fields, name)
            while len(self._indexes) >= INDEXES_MAX:
                self._indexes.pop(next(iter(self._indexes))).close()
        self._indexes[on_fields, name] = index
        get = self._store.get
        found = [get(key) for key in sorted(key for key in index.find(values) if start <= key < end)]
        return found if None not in found else None
