"""The garbage collector's graph: who owns whom, over all kinds. Pure: it takes what informers saw and says what to look at next.

Laws:
1. A node is an object known by uid. It is virtual while only somebody's ownerReference speaks of it; then its existence must be verified.
2. `observe` and `forget` keep edges exact: a dependent is listed under each owner uid that it names, until its references or itself change.
3. What comes out is work: uids for `delete` (may have to go) and for `orphan` (its dependents are to be let go). Work may be superfluous, never missing:
   the decision is made by `verdict`, on what is known then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastkube.controllers.meta import Object

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class Identity:
    api_version: str
    kind: str
    namespace: str  # "" for what has none
    name: str
    uid: str


@dataclass(slots=True, eq=False)
class Node:
    identity: Identity
    owners: tuple[Object, ...] = ()
    dependents: dict[str, Node] = field(default_factory=dict)  # by uid
    virtual: bool = False
    resource: Any = None  # how to address it, set by the driver
    version: str = ""  # resourceVersion last seen
    deleting: bool = False
    finalizers: tuple[str, ...] = ()

    @property
    def deleting_dependents(self) -> bool:
        """It waits for its dependents to be gone (foreground deletion)."""
        return self.deleting and FOREGROUND in self.finalizers

    @property
    def orphaning(self) -> bool:
        return self.deleting and ORPHAN in self.finalizers

    def blocks(self, owner_uid: str) -> bool:
        """Its owner's foreground deletion waits for it."""
        return any(ref["uid"] == owner_uid and ref.get("blockOwnerDeletion") for ref in self.owners)


class Graph:
    def __init__(self, on_delete: Callable[[str], None], on_orphan: Callable[[str], None]) -> None:
        self.nodes: dict[str, Node] = {}
        self._on_delete = on_delete
        self._on_orphan = on_orphan

    def observe(self, resource: Any, obj: Object) -> None:
        """An informer showed `obj` (new or changed)."""
        meta = obj["metadata"]
        uid = meta["uid"]
        node = self.nodes.get(uid)
        owners = tuple(meta.get("ownerReferences") or ())
        if node is None or node.virtual or node.resource is not resource:
            node = self._make_real(node, resource, obj)
        was_deleting_dependents, was_orphaning = node.deleting_dependents, node.orphaning
        node.version = meta.get("resourceVersion", "")
        node.deleting = "deletionTimestamp" in meta
        node.finalizers = tuple(meta.get("finalizers") or ())
        if owners != node.owners:
            self._set_owners(node, owners)
        if node.orphaning and not was_orphaning:
            self._on_orphan(uid)
        if node.deleting_dependents and not was_deleting_dependents:
            for dependent in node.dependents:
                self._on_delete(dependent)
            self._on_delete(uid)

    def _make_real(self, node: Node | None, resource: Any, obj: Object) -> Node:
        meta = obj["metadata"]
        identity = Identity(obj["apiVersion"], obj["kind"], meta.get("namespace", ""), meta["name"], meta["uid"])
        if node is None:
            node = self.nodes[identity.uid] = Node(identity)
        elif node.virtual and node.identity.namespace != identity.namespace:
            # Somebody named this uid from another namespace: those who did are looked at again.
            for dependent in node.dependents:
                self._on_delete(dependent)
        node.identity, node.virtual, node.resource = identity, False, resource
        return node

    def _set_owners(self, node: Node, owners: tuple[Object, ...]) -> None:
        uid = node.identity.uid
        old, new = {ref["uid"] for ref in node.owners}, {ref["uid"] for ref in owners}
        unblocked = {ref["uid"] for ref in node.owners if ref.get("blockOwnerDeletion")} - {ref["uid"] for ref in owners if ref.get("blockOwnerDeletion")}
        node.owners = owners
        for owner_uid in old - new:
            self._unlink(owner_uid, uid)
        for ref in owners:
            owner = self.nodes.get(ref["uid"])
            if owner is None:
                owner = self.nodes[ref["uid"]] = Node(Identity(ref["apiVersion"], ref["kind"], node.identity.namespace, ref["name"], ref["uid"]), virtual=True)
            if owner.virtual or owner.deleting_dependents or not _same_place(owner, node):
                self._on_delete(owner.identity.uid if owner.virtual else uid)
            owner.dependents[uid] = node
        for owner_uid in unblocked:
            owner = self.nodes.get(owner_uid)
            if owner is not None and owner.deleting_dependents:
                self._on_delete(owner_uid)
        if (old or not new) and old != new:
            self._on_delete(uid)

    def _unlink(self, owner_uid: str, uid: str) -> None:
        owner = self.nodes.get(owner_uid)
        if owner is not None:
            owner.dependents.pop(uid, None)
            if owner.virtual and not owner.dependents:
                del self.nodes[owner_uid]

    def forget(self, uid: str) -> None:
        """The object is gone (an informer said so, or a virtual node was found absent)."""
        node = self.nodes.pop(uid, None)
        if node is None:
            return
        for ref in node.owners:
            owner = self.nodes.get(ref["uid"])
            if owner is not None:
                self._unlink(ref["uid"], uid)
                if owner.deleting_dependents:
                    self._on_delete(ref["uid"])
        if node.dependents:
            # Their references still name it; they keep it as a virtual node until they go or are changed.
            self.nodes[uid] = Node(node.identity, dependents=node.dependents, virtual=True)
            for dependent in list(node.dependents):
                self._on_delete(dependent)


def _same_place(owner: Node, node: Node) -> bool:
    """Owners are in the dependent's namespace or in none."""
    return owner.identity.namespace in ("", node.identity.namespace)


@dataclass(slots=True)
class Verdict:
    """What to do with an object whose owners are solid (there), dangling (gone) or waiting (deleted in the foreground)."""

    action: str  # keep, release (drop references), delete
    drop: list[str] = field(default_factory=list)  # owner uids whose references go
    propagation: str = ""


def verdict(node: Node, solid: list[Object], dangling: list[Object], waiting: list[Object]) -> Verdict:
    """Decide from how its owners stand (k8s.io/kubernetes pkg/controller/garbagecollector attemptToDeleteItem)."""
    if solid:
        gone = [ref["uid"] for ref in [*dangling, *waiting]]
        return Verdict("release", gone) if gone else Verdict("keep")
    if not dangling and not waiting:
        return Verdict("keep")
    if waiting and node.dependents:
        return Verdict("delete", propagation="Foreground")
    if ORPHAN in node.finalizers:
        return Verdict("delete", propagation="Orphan")
    if FOREGROUND in node.finalizers:
        return Verdict("delete", propagation="Foreground")
    return Verdict("delete", propagation="Background")
