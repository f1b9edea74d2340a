"""namespace-controller: a namespace that is being deleted is emptied, of custom resources too, then finalized.

Pods go first (nothing a pod depends on vanishes under it), then everything else that discovery shows. What remains is told in the namespace's
conditions, in upstream's words. The namespace is looked at again when its last pod is gone, and in growing intervals while finalizers hold
something back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.client import discovery
from fastkube.controllers.meta import Object, deleting, with_condition
from fastkube.controllers.runtime import Controller
from fastkube.runtime import clock

NAMESPACES = "v1/namespaces"
FINALIZER = "kubernetes"
RETRY_SECONDS_MIN = 0.1
RETRY_SECONDS_MAX = 15.0
COUNT_MAX = 500  # a page: how many remaining objects are looked at for their finalizers
SKIPPED = frozenset(("events.k8s.io/events",))  # the same objects are there as v1/events


@dataclass(slots=True)
class Remains:
    """What an attempt left behind."""

    kinds: Counter[str] = field(default_factory=Counter)  # "pods." -> how many
    finalizers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.kinds and not self.failures


class NamespaceController(Controller):
    name = "namespace-controller"
    workers = 10

    def setup(self) -> None:
        self._tries: Counter[str] = Counter()
        self.namespaces = self.informer(NAMESPACES)
        self.namespaces.add_handler(self._changed, lambda old, new: self._changed(new), self._gone)
        self.pods = self.informer("v1/pods")
        self.pods.add_handler(on_delete=self._pod_deleted)

    def _changed(self, namespace: Object) -> None:
        if deleting(namespace):
            self.enqueue(namespace)

    def _gone(self, namespace: Object) -> None:
        self._tries.pop(namespace["metadata"]["name"], None)

    def _pod_deleted(self, pod: Object) -> None:
        name = pod["metadata"]["namespace"]
        namespace = self.namespaces.get(None, name)
        if namespace is not None and deleting(namespace) and not self.pods.list(name):
            self.queue.add(name)

    async def reconcile(self, key: str) -> float | None:
        namespace = self.namespaces.get(None, key)
        if namespace is None or not deleting(namespace):
            return None
        if FINALIZER not in (namespace.get("spec") or {}).get("finalizers", ()):
            return None  # done; what is left are other people's finalizers
        try:
            served = await discovery.served(self.client)
        except ApiError as e:
            await self._report(namespace, Remains(failures=[e.message]), [e.message])
            raise
        remains = await self._empty(key, [r for r in served.resources if r.namespaced])
        namespace = await self._report(namespace, remains, served.stale)
        if not remains.empty or served.stale:
            self._tries[key] += 1
            return min(RETRY_SECONDS_MIN * 2 ** min(self._tries[key], 20), RETRY_SECONDS_MAX)
        await self._finalize(namespace)
        return None

    async def _empty(self, name: str, resources: list[Resource]) -> Remains:
        remains = Remains()
        wanted = [r for r in resources if {"list", "delete"} <= set(r.verbs) and f"{r.group}/{r.plural}" not in SKIPPED]
        pods = [r for r in wanted if not r.group and r.plural == "pods"]
        await asyncio.gather(*(self._empty_of(name, r, remains) for r in pods))
        if remains.kinds:
            return remains
        await asyncio.gather(*(self._empty_of(name, r, remains) for r in wanted if r not in pods))
        return remains

    async def _empty_of(self, name: str, resource: Resource, remains: Remains) -> None:
        try:
            if not (await self.client.list(resource, name, limit=1))["items"]:
                return
            if "deletecollection" in resource.verbs:
                await self.client.delete_collection(resource, name, propagation="Background")
            else:
                await self._delete_each(name, resource)
            page = await self.client.list(resource, name, limit=COUNT_MAX)
        except ApiError as e:
            if e.code not in (404, 405):  # a custom resource whose definition has just gone
                remains.failures.append(e.message)
            return
        left = page["items"]
        if left:
            remains.kinds[f"{resource.plural}.{resource.group}"] = len(left) + (page["metadata"].get("remainingItemCount") or 0)
            for obj in left:
                remains.finalizers.update(obj["metadata"].get("finalizers") or ())

    async def _delete_each(self, name: str, resource: Resource) -> None:
        for obj in (await self.client.list(resource, name))["items"]:
            try:
                await self.client.delete(resource, obj["metadata"]["name"], name, propagation="Background")
            except ApiError as e:
                if e.code != 404:
                    raise

    async def _report(self, namespace: Object, remains: Remains, undiscovered: list[str]) -> Object:
        """Write the conditions if they differ; the namespace as it is then."""
        status = namespace.get("status") or {}
        conditions = list(status.get("conditions") or ())
        for wanted in conditions_of(remains, undiscovered):
            had = next((c for c in conditions if c["type"] == wanted["type"]), None)
            if had is None or any(had.get(k) != wanted[k] for k in ("status", "reason", "message")):
                conditions = with_condition(conditions, wanted)
        interesting = [c for c in conditions if c["status"] == "True"]
        if conditions == status.get("conditions") or (not interesting and not status.get("conditions")):
            return namespace
        obj = {**namespace, "status": {**status, "phase": "Terminating", "conditions": conditions}}
        return await self.client.update(NAMESPACES, obj, subresource="status")

    async def _finalize(self, namespace: Object) -> None:
        spec = namespace.get("spec") or {}
        obj = {**namespace, "spec": {**spec, "finalizers": [f for f in spec.get("finalizers") or () if f != FINALIZER]}}
        await self.client.update(NAMESPACES, obj, subresource="finalize")
        self._tries.pop(namespace["metadata"]["name"], None)


def conditions_of(remains: Remains, undiscovered: list[str]) -> list[Object]:
    """The five conditions of a namespace that is being deleted. Pure but for the time."""
    now = clock.rfc3339()
    kinds = ", ".join(f"{kind} has {n} resource instances" for kind, n in sorted(remains.kinds.items()))
    finalizers = ", ".join(f"{f} in {n} resource instances" for f, n in sorted(remains.finalizers.items()))
    failed = "; ".join(sorted(set(remains.failures)))
    rows = [
        ("NamespaceDeletionDiscoveryFailure", undiscovered, "DiscoveryFailed", f"Discovery failed for some groups, {len(undiscovered)} failing: {', '.join(undiscovered)}",
         "ResourcesDiscovered", "All resources successfully discovered"),
        ("NamespaceDeletionGroupVersionParsingFailure", "", "", "", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ("NamespaceDeletionContentFailure", failed, "ContentDeletionFailed", f"Failed to delete all resource types, {len(remains.failures)} remaining: {failed}",
         "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ("NamespaceContentRemaining", kinds, "SomeResourcesRemain", f"Some resources are remaining: {kinds}", "ContentRemoved", "All content successfully removed"),
        ("NamespaceFinalizersRemaining", finalizers, "SomeFinalizersRemain", f"Some content in the namespace has finalizers remaining: {finalizers}",
         "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    ]  # fmt: skip
    return [
        {
            "type": type,
            "status": "True" if bad else "False",
            "lastTransitionTime": now,
            "reason": bad_reason if bad else reason,
            "message": bad_text if bad else text,
        }
        for type, bad, bad_reason, bad_text, reason, text in rows
    ]
