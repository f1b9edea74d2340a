"""Informer: a local copy of a collection, kept true by list and watch, with handlers and indexes.

Laws:
1. The store holds, of each object, the newest version seen; handlers see every object come (on_add), change (on_update) and go (on_delete)
   in the order of the watch. Versions in between may be missed after a relist: level, not edge.
2. A watch resumes from the last resourceVersion seen (bookmarks move it on); only 410 leads to a new list, which replaces the store:
   what is gone is told as deleted, what differs as updated, what is the same is not told at all.
3. An object is decoded once, cut down by `transform`, and then shared by all readers: whoever wants to change one copies it first.
4. A handler that raises is logged and harms neither the informer nor the other handlers.

Failures are retried with exponential back-off and jitter for ever: an informer never gives up, it only is out of date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.client.rest import Client, resolve
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor

LIST_PAGE = 500
WATCH_TIMEOUT_SECONDS_MIN = 300  # the server ends a watch after this to twice this long, so that old connections do not pile up on one server
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 30.0
BACKOFF_RESET_SECONDS = 60.0  # a watch that lasted this long was no failure

log = logs.get("informer")

Object = dict[str, Any]
Objects = list[Object]
OnAdd = Callable[[Object], None]
OnUpdate = Callable[[Object, Object], None]


def key_of(obj: Object) -> str:
    """`NAMESPACE/NAME`, or `NAME` for what has no namespace: the key of stores and workqueues."""
    meta = obj["metadata"]
    namespace = meta.get("namespace")
    return f"{namespace}/{meta['name']}" if namespace else meta["name"]


def split_key(key: str) -> tuple[str | None, str]:
    """The namespace (None: it has none) and name of a key."""
    namespace, slash, name = key.partition("/")
    return (namespace, name) if slash else (None, namespace)


class Store:
    """Objects by key, by namespace, and by the values of index functions. Pure: no I/O, no tasks."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self._namespaces: dict[str, dict[str, Object]] = {}
        self._indexers: dict[str, Callable[[Object], Iterable[str]]] = {}
        self._indexes: dict[str, dict[str, dict[str, Object]]] = {}

    def add_index(self, name: str, function: Callable[[Object], Iterable[str]]) -> None:
        index: dict[str, dict[str, Object]] = {}
        for key, obj in self.objects.items():
            for value in function(obj):
                index.setdefault(value, {})[key] = obj
        self._indexers[name], self._indexes[name] = function, index

    def put(self, key: str, obj: Object) -> Object | None:
        """Store `obj`; returns the version it replaces."""
        old = self.objects.get(key)
        self.objects[key] = obj
        namespace = obj["metadata"].get("namespace")
        if namespace:
            self._namespaces.setdefault(namespace, {})[key] = obj
        for name, function in self._indexers.items():
            index = self._indexes[name]
            values = function(obj)
            if old is not None:
                for value in function(old):
                    if value not in values:
                        _drop(index, value, key)
            for value in values:
                index.setdefault(value, {})[key] = obj
        return old

    def pop(self, key: str) -> Object | None:
        old = self.objects.pop(key, None)
        if old is not None:
            namespace = old["metadata"].get("namespace")
            if namespace:
                _drop(self._namespaces, namespace, key)
            for name, function in self._indexers.items():
                for value in function(old):
                    _drop(self._indexes[name], value, key)
        return old

    def list(self, namespace: str | None = None) -> Objects:
        return list((self._namespaces.get(namespace) or {}).values() if namespace else self.objects.values())

    def by_index(self, name: str, value: str) -> Objects:
        found = self._indexes[name].get(value)
        return list(found.values()) if found else []


def _drop(index: dict[str, dict[str, Object]], value: str, key: str) -> None:
    held = index.get(value)
    if held is not None:
        held.pop(key, None)
        if not held:
            del index[value]


class Informer:
    """The informer of one resource, in one namespace or all. `run` is its task; `synced` waits for the first whole list."""

    def __init__(
        self,
        client: Client,
        resource: str | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        transform: Callable[[Object], Object] | None = None,
    ) -> None:
        self.client = client
        self.resource = resolve(resource)
        self.namespace = namespace
        self.store = Store()
        self.resource_version = ""
        self.events = 0  # seen since the start, for metrics
        self._selectors: dict[str, Any] = {"labels": labels, "fields": fields}
        self._transform = transform
        self._handlers: list[tuple[OnAdd | None, OnUpdate | None, OnAdd | None]] = []
        self._synced = asyncio.Event()
        self._backoff = BACKOFF_SECONDS_MIN

    # --- what readers use ---

    def add_handler(self, on_add: OnAdd | None = None, on_update: OnUpdate | None = None, on_delete: OnAdd | None = None) -> None:
        """Synchronous callbacks: on_add(new), on_update(old, new), on_delete(old), where old is what was told last. What is there already is told at once."""
        self._handlers.append((on_add, on_update, on_delete))
        if on_add is not None:
            for obj in self.store.list():
                self._call(on_add, obj)

    def add_index(self, name: str, function: Callable[[Object], Iterable[str]]) -> None:
        self.store.add_index(name, function)

    def get(self, namespace: str | None, name: str) -> Object | None:
        return self.store.objects.get(f"{namespace}/{name}" if namespace else name)

    def by_key(self, key: str) -> Object | None:
        return self.store.objects.get(key)

    def list(self, namespace: str | None = None) -> Objects:
        return self.store.list(namespace)

    def by_index(self, name: str, value: str) -> Objects:
        return self.store.by_index(name, value)

    @property
    def has_synced(self) -> bool:
        return self._synced.is_set()

    async def synced(self) -> None:
        await self._synced.wait()

    # --- the reflector ---

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            started = clock.monotonic()
            try:
                if not self.resource_version:
                    await self._list()
                await self._watch()
                failure = None
            except ApiError as e:
                failure = e
                if e.code == 410:
                    self.resource_version = ""
            except asyncio.CancelledError:
                raise
            except Exception as e:  # a line that is no JSON, an object without metadata: the same as a broken connection
                failure = ApiError(500, "InternalError", repr(e))
            await self._pause(failure, clock.monotonic() - started)

    async def _pause(self, failure: ApiError | None, lasted_seconds: float) -> None:
        if lasted_seconds > BACKOFF_RESET_SECONDS or (failure is None and lasted_seconds > 1):
            self._backoff = BACKOFF_SECONDS_MIN
            if failure is None:
                return
        if failure is not None:
            level = log.debug if failure.code == 410 else log.warning
            level("list or watch failed, trying again", resource=str(self.resource), error=failure.message, backoff_seconds=self._backoff)
        await asyncio.sleep(entropy.jitter(self._backoff, 1.0))
        self._backoff = min(self._backoff * 2, BACKOFF_SECONDS_MAX)

    async def _list(self) -> None:
        fresh: dict[str, Object] = {}
        continue_ = ""
        api_version, kind = self.resource.api_version, self.resource.kind
        while True:
            page = await self.client.list(self.resource, self.namespace, limit=LIST_PAGE, continue_=continue_, **self._selectors)
            kind = kind or page.get("kind", "").removesuffix("List")
            for obj in page["items"]:
                obj.setdefault("apiVersion", api_version)
                obj.setdefault("kind", kind)
                fresh[key_of(obj)] = self._transform(obj) if self._transform else obj
            version = page["metadata"]["resourceVersion"]
            continue_ = page["metadata"].get("continue", "")
            if not continue_:
                break
        self._replace(fresh)
        self.resource_version = version
        self._synced.set()

    def _replace(self, fresh: dict[str, Object]) -> None:
        for key in [k for k in self.store.objects if k not in fresh]:
            self._deleted(key)
        for key, obj in fresh.items():
            old = self.store.objects.get(key)
            if old is None or old["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
                if old is not None and old["metadata"].get("uid") != obj["metadata"].get("uid"):
                    self._deleted(key)  # deleted and made again while we were not looking
                self._stored(key, obj)

    async def _watch(self) -> None:
        timeout = int(entropy.jitter(WATCH_TIMEOUT_SECONDS_MIN, 1.0))
        batches = self.client.watch_batches(self.resource, self.namespace, resource_version=self.resource_version, timeout_seconds=timeout, **self._selectors)
        try:
            async for lines in batches:
                for line in lines:
                    self._event(orjson.loads(line))
        finally:
            await batches.aclose()  # type: ignore[attr-defined]

    def _event(self, event: Object) -> None:
        kind, obj = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiError.from_status(obj)
        version = obj["metadata"]["resourceVersion"]
        if kind != "BOOKMARK":
            self.events += 1
            if self._transform is not None:
                obj = self._transform(obj)
            key = key_of(obj)
            if kind == "DELETED":
                self._deleted(key)
            else:
                self._stored(key, obj)
        self.resource_version = version

    def _stored(self, key: str, obj: Object) -> None:
        old = self.store.put(key, obj)
        for on_add, on_update, _ in self._handlers:
            if old is None:
                if on_add is not None:
                    self._call(on_add, obj)
            elif on_update is not None:
                self._call(on_update, old, obj)

    def _deleted(self, key: str) -> None:
        old = self.store.pop(key)
        if old is None:
            return
        for _, _, on_delete in self._handlers:
            if on_delete is not None:
                self._call(on_delete, old)

    def _call(self, handler: Callable[..., None], *args: Object) -> None:
        try:
            handler(*args)
        except Exception:
            log.exception("informer handler failed", resource=str(self.resource), handler=getattr(handler, "__qualname__", repr(handler)))


class InformerFactory:
    """One shared informer per resource (and per namespace and selectors), however many controllers ask for it."""

    def __init__(
        self, client: Client, *, transforms: dict[str, Callable[[Object], Object]] | None = None, default: Callable[[Object], Object] | None = None
    ) -> None:
        """`transforms` by resource name ("v1/pods"), `default` for all others."""
        self.client = client
        self._transforms = transforms or {}
        self._default = default
        self._informers: dict[tuple[str, str | None, str, str], Informer] = {}
        self._started: set[tuple[str, str | None, str, str]] = set()
        self._supervisor: Supervisor | None = None

    def informer(self, resource: str | Resource, namespace: str | None = None, *, labels: str = "", fields: str = "") -> Informer:
        """The shared informer; asked for after `start`, it is started at once."""
        resource = resolve(resource)
        key = (str(resource), namespace, labels, fields)
        if key not in self._informers:
            self._informers[key] = Informer(
                self.client, resource, namespace, labels=labels, fields=fields, transform=self._transforms.get(str(resource), self._default)
            )
            if self._supervisor is not None:
                self.start(self._supervisor)
        return self._informers[key]

    def find(self, resource: Resource) -> Informer | None:
        """The informer of all objects of `resource`, if somebody has asked for it."""
        return self._informers.get((str(resource), None, "", ""))

    def start(self, supervisor: Supervisor) -> None:
        """Run all informers that do not run yet, as tasks of `supervisor`."""
        self._supervisor = supervisor
        for key, informer in self._informers.items():
            if key not in self._started:
                self._started.add(key)
                supervisor.start(f"informer {key[0]}", informer.run)

    @property
    def informers(self) -> list[Informer]:
        return list(self._informers.values())

    async def synced(self) -> None:
        """Wait until every informer asked for so far holds its first list."""
        await asyncio.gather(*(i.synced() for i in self._informers.values()))
