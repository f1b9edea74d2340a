"""garbage-collector-controller: what nobody owns any more goes; foreground and orphan deletions are carried out.

It watches every kind that can be listed, watched and deleted, custom ones as they come and go (discovery is asked again when a
CustomResourceDefinition or APIService changes). Informers that other controllers use are shared; those of its own keep metadata only. Deletions
are guarded by uid and resourceVersion, so a decision on outdated references is refused by the server and made again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.client import discovery
from fastkube.client.informer import Informer
from fastkube.controllers.gcgraph import FOREGROUND, ORPHAN, Graph, Identity, Node, verdict
from fastkube.controllers.meta import Object
from fastkube.controllers.runtime import Controller
from fastkube.runtime import logs
from fastkube.runtime.tasks import Supervisor

ABSENT_OWNERS_MAX = 10_000
SYNC_RETRY_SECONDS = 5.0
IGNORED = frozenset(("events", "events.events.k8s.io"))
TRIGGERS = ("apiextensions.k8s.io/v1/customresourcedefinitions", "apiregistration.k8s.io/v1/apiservices")
_META = ("name", "namespace", "uid", "resourceVersion", "ownerReferences", "deletionTimestamp", "finalizers")

log = logs.get("garbage-collector")


def only_identity(obj: Object) -> Object:
    """What the graph needs of an object."""
    meta = obj["metadata"]
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": {k: meta[k] for k in _META if k in meta}}


class GarbageCollector(Controller):
    name = "garbage-collector-controller"
    account = "generic-garbage-collector"
    component = "garbage-collector-controller"
    workers = 20

    def setup(self) -> None:
        self.graph = Graph(lambda uid: self.queue.add(f"delete {uid}"), lambda uid: self.queue.add(f"orphan {uid}"))
        self._monitored: dict[Resource, Informer] = {}
        self._by_kind: dict[tuple[str, str], Resource] = {}  # (apiVersion, kind) -> resource, every served version
        self._absent: OrderedDict[str, None] = OrderedDict()
        self._own: dict[Resource, asyncio.Task[None]] = {}
        self._stale = asyncio.Event()
        self._stale.set()
        self._synced = asyncio.Event()
        for trigger in TRIGGERS:
            self.informer(trigger).add_handler(self._served_changed, lambda old, new: self._served_changed(new), self._served_changed)

    def _served_changed(self, _: Object) -> None:
        self._stale.set()

    # --- what is monitored ---

    def loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {"monitors": self._monitor}

    async def _monitor(self) -> None:
        async with Supervisor("garbage-collector monitors") as supervisor:
            self._monitored.clear()
            self._own.clear()
            while True:
                await self._stale.wait()
                self._stale.clear()
                try:
                    served = await discovery.served(self.client)
                except ApiError as e:
                    log.warning("discovery failed, trying again", error=e.message)
                    served = discovery.Served(stale=["all"])
                self._adjust(supervisor, served)
                for informer in list(self._monitored.values()):
                    await self._wait_synced(informer)
                self._synced.set()
                if served.stale:
                    await asyncio.sleep(SYNC_RETRY_SECONDS)
                    self._stale.set()

    async def _wait_synced(self, informer: Informer) -> None:
        try:
            async with asyncio.timeout(SYNC_RETRY_SECONDS):  # not wait_for: Python 3.11's loses a cancellation that meets the result
                await informer.synced()
        except TimeoutError:
            log.warning("kind cannot be listed, going on without it", resource=str(informer.resource))

    def _adjust(self, supervisor: Supervisor, served: discovery.Served) -> None:
        """Start monitors of new kinds, stop those of kinds that are no longer served."""
        self._by_kind.update(served.kinds)
        wanted = [r for r in served.resources if {"list", "watch", "delete"} <= set(r.verbs) and f"{r.plural}.{r.group}".rstrip(".") not in IGNORED]
        for resource in wanted:
            if resource not in self._monitored:
                self._start(supervisor, resource)
        if served.stale:
            return  # what is missing may only be unreachable
        for resource in [r for r in self._monitored if r not in wanted]:
            informer = self._monitored.pop(resource)
            task = self._own.pop(resource, None)
            if task is not None:
                task.cancel()
            for obj in informer.list():
                self.graph.forget(obj["metadata"]["uid"])

    def _start(self, supervisor: Supervisor, resource: Resource) -> None:
        informer = self.context.informers.find(resource)
        if informer is None:
            informer = Informer(self.context.informers.client, resource, transform=only_identity)
            self._own[resource] = supervisor.start(f"informer {resource}", informer.run)
        self._monitored[resource] = informer
        informer.add_handler(
            lambda obj: self.graph.observe(resource, obj),
            lambda old, new: self.graph.observe(resource, new),
            self._gone,
        )

    def _gone(self, obj: Object) -> None:
        self._remember_absent(obj["metadata"]["uid"])
        self.graph.forget(obj["metadata"]["uid"])

    def _remember_absent(self, memo: str) -> None:
        self._absent[memo] = None
        if len(self._absent) > ABSENT_OWNERS_MAX:
            self._absent.popitem(last=False)

    # --- work ---

    async def reconcile(self, key: str) -> float | None:
        await self._synced.wait()
        verb, _, uid = key.partition(" ")
        node = self.graph.nodes.get(uid)
        if node is None:
            return None
        return await (self._attempt_delete(node) if verb == "delete" else self._attempt_orphan(node))

    async def _attempt_delete(self, node: Node) -> float | None:
        if node.virtual:
            if await self._is_absent(node.identity, node):
                self._forget_absent(node)
            return None
        if node.deleting_dependents:
            return await self._finish_foreground(node)
        if node.deleting or not node.owners:
            return None
        solid, dangling, waiting = await self._classify(node)
        decision = verdict(node, solid, dangling, waiting)
        if decision.action == "release":
            await self._patch_owners(node, [ref for ref in node.owners if ref["uid"] not in decision.drop])
        elif decision.action == "delete":
            if waiting and node.dependents and any(d.deleting_dependents for d in node.dependents.values()):
                # A circle of foreground deletions would wait for ever: this one blocks nobody any more.
                await self._patch_owners(node, [{**ref, "blockOwnerDeletion": False} for ref in node.owners])
            await self._delete(node, decision.propagation)
        return None

    async def _classify(self, node: Node) -> tuple[list[Object], list[Object], list[Object]]:
        solid: list[Object] = []
        dangling: list[Object] = []
        waiting: list[Object] = []
        for ref in node.owners:
            owner = self.graph.nodes.get(ref["uid"])
            if owner is not None and not owner.virtual and self._in_reach(owner.identity, node):
                (waiting if owner.deleting_dependents else solid).append(ref)
                continue
            identity = Identity(ref["apiVersion"], ref["kind"], node.identity.namespace, ref["name"], ref["uid"])
            (dangling if await self._is_absent(identity, node) else solid).append(ref)
        return solid, dangling, waiting

    @staticmethod
    def _in_reach(owner: Identity, node: Node) -> bool:
        return owner.namespace in ("", node.identity.namespace)

    async def _is_absent(self, owner: Identity, node: Node) -> bool:
        """Ask the server whether the object of that uid is there; what was once absent stays so (uids are never used again)."""
        memo = f"{owner.namespace}/{owner.uid}"
        if owner.uid in self._absent or memo in self._absent:
            return True
        resource = self._by_kind.get((owner.api_version, owner.kind))
        if resource is None:
            raise ApiError(404, "NotFound", f'no kind "{owner.kind}" is served in version "{owner.api_version}"')
        if resource.namespaced and not owner.namespace:
            self._tell_invalid(node, owner)
            return False  # a cluster-wide object cannot be owned by one in a namespace: nobody knows which, so nothing is deleted
        try:
            found = await self.client.get(resource, owner.name, owner.namespace if resource.namespaced else None)
            if found["metadata"].get("uid") == owner.uid:
                return False
        except ApiError as e:
            if e.code != 404:
                raise
        known = self.graph.nodes.get(owner.uid)
        if known is not None and not known.virtual:
            self._tell_invalid(node, owner)  # it is there, but in another namespace
        self._remember_absent(memo)
        return True

    def _tell_invalid(self, node: Node, owner: Identity) -> None:
        me = node.identity
        if node.virtual:
            return
        where = f'does not exist in namespace "{me.namespace}"' if me.namespace else "is namespaced, the dependent is not"
        about = {"apiVersion": me.api_version, "kind": me.kind, "namespace": me.namespace, "name": me.name, "uid": me.uid}
        text = f"ownerRef [{owner.api_version}/{owner.kind}, namespace: {me.namespace}, name: {owner.name}, uid: {owner.uid}] {where}"
        self.recorder.event(about, "Warning", "OwnerRefInvalidNamespace", text)

    def _forget_absent(self, node: Node) -> None:
        for dependent in node.dependents:
            self.queue.add(f"delete {dependent}")

    async def _finish_foreground(self, node: Node) -> float | None:
        blocking = [d for d in node.dependents.values() if d.blocks(node.identity.uid)]
        if not blocking:
            await self._drop_finalizer(node, FOREGROUND)
        for dependent in blocking:
            if not dependent.deleting_dependents:
                self.queue.add(f"delete {dependent.identity.uid}")
        return None

    async def _attempt_orphan(self, node: Node) -> float | None:
        if not node.orphaning:
            return None
        uid = node.identity.uid
        results = await asyncio.gather(*(self._let_go(d, uid) for d in list(node.dependents.values())), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._drop_finalizer(node, ORPHAN)
        return None

    async def _let_go(self, dependent: Node, owner_uid: str) -> None:
        await self._patch_owners(dependent, [ref for ref in dependent.owners if ref["uid"] != owner_uid])

    # --- writes ---

    def _where(self, node: Node) -> tuple[Resource, str, str | None]:
        return node.resource, node.identity.name, node.identity.namespace or None

    async def _delete(self, node: Node, propagation: str) -> None:
        resource, name, namespace = self._where(node)
        uid = node.identity.uid
        try:
            try:
                await self.client.delete(resource, name, namespace, propagation=propagation, uid=uid, resource_version=node.version)
            except ApiError as e:
                if e.code != 409:
                    raise
                fresh = (await self.client.get(resource, name, namespace))["metadata"]
                if fresh["uid"] != uid or tuple(fresh.get("ownerReferences") or ()) != node.owners:
                    raise  # its event will tell
                await self.client.delete(resource, name, namespace, propagation=propagation, uid=uid, resource_version=fresh["resourceVersion"])
        except ApiError as e:
            if e.code != 404:
                raise

    async def _patch_owners(self, node: Node, owners: list[Object]) -> None:
        meta: dict[str, Any] = {"uid": node.identity.uid, "resourceVersion": node.version, "ownerReferences": owners or None}
        await self._patch(node, {"metadata": meta})

    async def _drop_finalizer(self, node: Node, finalizer: str) -> None:
        left = [f for f in node.finalizers if f != finalizer]
        await self._patch(node, {"metadata": {"uid": node.identity.uid, "resourceVersion": node.version, "finalizers": left or None}})

    async def _patch(self, node: Node, patch: Object) -> None:
        resource, name, namespace = self._where(node)
        try:
            await self.client.patch(resource, name, patch, namespace, kind="merge")
        except ApiError as e:
            if e.code != 404:
                raise
