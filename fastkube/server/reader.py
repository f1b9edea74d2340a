"""How the server's own parts (authorizers, admission, allocators) read what is stored: decoded objects, cached with the stored bytes.

Objects handed out are shared: whoever wants to change one copies it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import orjson

from fastkube.api.resources import Resource
from fastkube.server.registry.endpoint import Endpoint
from fastkube.store.interface import Event, Store

Object = dict[str, Any]
# Resources of which there are many and whose objects nobody asks for twice: decoded for those who follow them, and forgotten.
UNKEPT = ("/registry/pods/", "/registry/events/", "/registry/leases/", "/registry/endpointslices/", "/registry/replicasets/")

Callback = Callable[[Object | None, Object | None], None]
Commit = Callable[[str, str, Object | None], None]


class Reader(Protocol):
    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The stored object at the visible revision; None when there is none. Synchronous: everything is in memory."""
        ...

    def list(self, resource: Resource, namespace: str | None = None) -> Iterator[Object]: ...

    def version(self, resource: Resource) -> int:
        """A number that changes whenever an object of `resource` changes: what caches of derived facts compare."""
        ...

    def on_change(self, resource: Resource, callback: Callable[[Object | None, Object | None], None]) -> None:
        """Call `callback(new, old)` on each commit that touches `resource` (new None: deleted), in revision order, synchronously."""
        ...

    def on_commit(self, resource: Resource, callback: Commit) -> None:
        """As `on_change`, but `callback(namespace, name, new)`: what stood there before need not be decoded (pods change often)."""
        ...


class StoreReader:
    """The Reader over a store. `endpoint_of` gives the Endpoint of a resource."""

    def __init__(self, store: Store, endpoint_of: Callable[[Resource], Endpoint]) -> None:
        self._store = store
        self._endpoint_of = endpoint_of
        self._versions: dict[str, int] = {}
        self._callbacks: dict[str, list[Callback]] = {}
        self._commits: dict[str, list[Commit]] = {}

    def _decoded(self, endpoint: Endpoint, kv: Any) -> Object:
        digest = endpoint.digest_of(kv)
        obj: Object | None = digest.obj
        if obj is None:
            obj = orjson.loads(kv.value)
            if endpoint.resource.prefix not in UNKEPT:
                digest.obj = obj
        return obj

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        kv = self._store.get(resource.key(namespace, name))
        return None if kv is None else self._decoded(self._endpoint_of(resource), kv)

    def list(self, resource: Resource, namespace: str | None = None) -> Iterator[Object]:
        endpoint = self._endpoint_of(resource)
        start, end = endpoint.range(namespace or "")
        for kv in self._store.range(start, end).kvs:
            yield self._decoded(endpoint, kv)

    def version(self, resource: Resource) -> int:
        """See Reader. The first question begins the counting."""
        self._follow(resource)
        return self._versions[resource.prefix]

    def on_change(self, resource: Resource, callback: Callback) -> None:
        self._follow(resource)
        self._callbacks[resource.prefix].append(callback)

    def on_commit(self, resource: Resource, callback: Commit) -> None:
        self._follow(resource)
        self._commits[resource.prefix].append(callback)

    def _follow(self, resource: Resource) -> None:
        prefix = resource.prefix
        if prefix in self._versions:
            return
        self._versions[prefix] = self._store.revision
        callbacks = self._callbacks[prefix] = []
        commits = self._commits[prefix] = []
        endpoint = self._endpoint_of(resource)
        endpoint.followed = True
        kept = prefix not in UNKEPT

        def changed(events: Sequence[Event]) -> None:
            self._versions[prefix] = events[-1].kv.mod_revision
            for event in events:
                new = None if event.deleted or not (callbacks or commits) else self._fresh(endpoint, event.kv)
                if commits:
                    *_, namespace, name = event.kv.key.decode().split("/")
                    for commit in commits:
                        commit(namespace if endpoint.resource.namespaced else "", name, new)
                if callbacks:
                    old = None if event.prev is None else self._decoded(endpoint, event.prev)
                    for callback in callbacks:
                        callback(new, old)
                if not kept and not event.deleted and event.kv.attrs is not None:
                    event.kv.attrs.obj = None

        self._store.watch(endpoint.prefix, endpoint.end, on_events=changed)

    def _fresh(self, endpoint: Endpoint, kv: Any) -> Object:
        """The object just written: the writer left it with the digest, without its resourceVersion."""
        obj = self._decoded(endpoint, kv)
        obj["metadata"]["resourceVersion"] = str(kv.mod_revision)
        return obj
