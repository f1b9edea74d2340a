"""PodOwners: the one place where pod events meet the controllers that own pods.

Shared by all workload controllers: each pod event looks its controller up once and goes to the one sink that registered for that kind;
orphans go to all (somebody may adopt them). It also keeps the tally of each owner's pods.
"""

from __future__ import annotations

from typing import Protocol

from fastkube.client.informer import Informer
from fastkube.controllers.meta import Object, controller_of, controller_uid, deleting
from fastkube.controllers.podtally import PodTally


class PodSink(Protocol):
    """What a workload controller hears about pods of its kind."""

    def pod_added(self, pod: Object) -> None: ...

    def pod_updated(self, old: Object, new: Object, counted: bool) -> None:
        """`counted`: owner, labels, readiness, activity or termination changed."""
        ...

    def pod_deleted(self, pod: Object) -> None:
        """Gone, or no longer controlled by what `pod` (its last version) says."""
        ...

    def orphan_seen(self, pod: Object) -> None:
        """A pod without controller came up or changed."""
        ...


def _owner_key(pod: Object) -> list[str]:
    ref = controller_of(pod)
    return [ref["uid"] if ref else f"orphans/{pod['metadata']['namespace']}"]


class PodOwners:
    def __init__(self, pods: Informer) -> None:
        self.pods = pods
        self.tally = PodTally()
        self._sinks: dict[str, PodSink] = {}
        pods.add_index("owner", _owner_key)
        pods.add_handler(self._added, self._updated, self._deleted)

    def route(self, kind: str, sink: PodSink) -> None:
        """Tell `sink` of pods controlled by objects of `kind`. Called before the informer runs."""
        self._sinks[kind] = sink

    def of(self, owner_uid: str) -> list[Object]:
        """The pods that the object with that uid controls."""
        return self.pods.by_index("owner", owner_uid)

    def orphans(self, namespace: str) -> list[Object]:
        return self.pods.by_index("owner", f"orphans/{namespace}")

    def _sink(self, pod: Object) -> PodSink | None:
        ref = controller_of(pod)
        return self._sinks.get(ref["kind"]) if ref else None

    def _added(self, pod: Object) -> None:
        self.tally.add(pod)
        sink = self._sink(pod)
        if sink is not None:
            sink.pod_added(pod)
        elif controller_of(pod) is None:
            self._orphan(pod)

    def _updated(self, old: Object, new: Object) -> None:
        counted = self.tally.update(old, new)
        if controller_uid(old) != controller_uid(new):
            lost = self._sink(old)
            if lost is not None:
                lost.pod_deleted(old)
        sink = self._sink(new)
        if sink is not None:
            sink.pod_updated(old, new, counted)
        elif counted and controller_of(new) is None:
            self._orphan(new)

    def _deleted(self, pod: Object) -> None:
        self.tally.delete(pod)
        sink = self._sink(pod)
        if sink is not None:
            sink.pod_deleted(pod)

    def _orphan(self, pod: Object) -> None:
        if not deleting(pod) and pod["metadata"].get("labels"):
            for sink in self._sinks.values():
                sink.orphan_seen(pod)
