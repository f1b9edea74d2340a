"""A Reader over plain dicts: what the pure parts (authorizers, allocators, the quota's ledger) are fed with, change by change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from fastkube.api import resources
from fastkube.api.resources import Resource

Object = dict[str, Any]
Callback = Callable[[Object | None, Object | None], None]


class MemoryReader:
    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.versions: dict[str, int] = {}
        self.callbacks: dict[str, list[Callback]] = {}
        self.commits: dict[str, list[Any]] = {}
        self._uids = itertools.count(1)

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        return self.objects.get(resource.prefix, {}).get((namespace or "" if resource.namespaced else "", name))

    def list(self, resource: Resource, namespace: str | None = None) -> Iterator[Object]:
        for (where, _), obj in sorted(self.objects.get(resource.prefix, {}).items()):
            if not namespace or where == namespace:
                yield obj

    def version(self, resource: Resource) -> int:
        return self.versions.get(resource.prefix, 0)

    def on_change(self, resource: Resource, callback: Callback) -> None:
        self.callbacks.setdefault(resource.prefix, []).append(callback)

    def on_commit(self, resource: Resource, callback: Callable[[str, str, Object | None], None]) -> None:
        self.commits.setdefault(resource.prefix, []).append(callback)

    # -- what a test does ---------------------------------------------------------------------------------------------------------------------

    def put(self, resource: Resource | str, obj: Object) -> Object:
        """Commit `obj`; a new one gets a uid."""
        resource = resources.parse(resource) if isinstance(resource, str) else resource
        meta = obj["metadata"]
        key = (meta.get("namespace", "") if resource.namespaced else "", meta["name"])
        stored = self.objects.setdefault(resource.prefix, {})
        old = stored.get(key)
        meta.setdefault("uid", old["metadata"]["uid"] if old else f"uid-{next(self._uids)}")
        stored[key] = obj
        self._tell(resource, obj, old)
        return obj

    def delete(self, resource: Resource | str, namespace: str, name: str) -> None:
        resource = resources.parse(resource) if isinstance(resource, str) else resource
        old = self.objects.get(resource.prefix, {}).pop((namespace, name), None)
        if old is not None:
            self._tell(resource, None, old)

    def _tell(self, resource: Resource, new: Object | None, old: Object | None) -> None:
        self.versions[resource.prefix] = self.versions.get(resource.prefix, 0) + 1
        meta = (new or old or {})["metadata"]
        for commit in self.commits.get(resource.prefix, ()):
            commit(meta.get("namespace", "") if resource.namespaced else "", meta["name"], new)
        for callback in self.callbacks.get(resource.prefix, ()):
            callback(new, old)
