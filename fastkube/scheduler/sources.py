"""What the API tells: informers feed the snapshot, the queue and the search for victims, and wake the pods that a change may help.

What the API says wins over what was assumed. All handlers are synchronous; `wake` is called when the queue may have something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastkube.api import selectors
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.runtime import clock
from fastkube.runtime.tasks import Supervisor
from fastkube.scheduler import hints
from fastkube.scheduler.podinfo import PodInfo, Templates
from fastkube.scheduler.preemption import Preemption
from fastkube.scheduler.queue import SchedulingQueue
from fastkube.scheduler.snapshot import Snapshot

Object = dict[str, Any]


def _selector_only(obj: Object) -> Object:
    """Of services and controllers only the selector matters."""
    meta = obj["metadata"]
    kept = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion") if k in meta}
    return {"metadata": kept, "spec": {"selector": (obj.get("spec") or {}).get("selector")}}


def _node_summary(obj: Object) -> Object:
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return {
        "metadata": {k: meta[k] for k in ("name", "uid", "resourceVersion", "labels") if k in meta},
        "spec": {k: spec[k] for k in ("taints", "unschedulable") if k in spec},
        "status": {k: status[k] for k in ("allocatable", "images") if k in status},
    }


class Sources:
    def __init__(
        self, client: Client, profiles: frozenset[str], snapshot: Snapshot, queue: SchedulingQueue, preemption: Preemption, wake: Callable[[], None]
    ) -> None:
        self.snapshot, self.queue, self.preemption = snapshot, queue, preemption
        self.assumed: dict[str, str] = {}  # pod key -> uid, decided by us and not yet seen bound
        self.claims_changed: Callable[[], None] = lambda: None
        self._profiles = profiles
        self._wake = wake
        self.templates = Templates()
        self.informers: list[Informer] = []
        volumes, workloads = snapshot.volumes, snapshot.workloads
        self._watch(client, "v1/namespaces", self._namespace)
        self._watch(client, "v1/services", lambda o, gone: workloads.set_service(*self._name(o), None if gone else o["spec"]["selector"]), _selector_only)
        for resource, kind in (
            ("v1/replicationcontrollers", "ReplicationController"),
            ("apps/v1/replicasets", "ReplicaSet"),
            ("apps/v1/statefulsets", "StatefulSet"),
        ):
            self._watch(client, resource, self._controller(kind), _selector_only)
        self._watch(client, "policy/v1/poddisruptionbudgets", self.preemption.budgets.tell)
        self._watch(client, "v1/persistentvolumeclaims", self._storage(volumes.set_claim))
        self._watch(client, "v1/persistentvolumes", self._storage(volumes.set_volume))
        self._watch(client, "storage.k8s.io/v1/storageclasses", self._storage(volumes.set_class))
        self._watch(client, "storage.k8s.io/v1/csinodes", self._storage(volumes.set_csi_node))
        nodes = Informer(client, "v1/nodes", transform=_node_summary)
        nodes.add_handler(on_add=lambda n: self._node(None, n), on_update=self._node, on_delete=self._node_gone)
        pods = Informer(client, "v1/pods", fields="status.phase!=Succeeded,status.phase!=Failed", transform=self.templates.pod_summary)
        pods.add_handler(on_add=self._pod, on_update=lambda old, new: self._pod(new), on_delete=self._pod_gone)
        self.informers += [nodes, pods]

    def _watch(self, client: Client, resource: str, told: Callable[[Object, bool], None], transform: Callable[[Object], Object] | None = None) -> None:
        informer = Informer(client, resource, transform=transform)
        informer.add_handler(on_add=lambda o: told(o, False), on_update=lambda old, new: told(new, False), on_delete=lambda o: told(o, True))
        self.informers.append(informer)

    async def start(self, supervisor: Supervisor) -> None:
        """All informers run, and have their first whole lists: pods last, for what they ask about is there then."""
        for informer in self.informers[:-1]:
            supervisor.start(f"informer {informer.resource.plural}", informer.run)
        for informer in self.informers[:-1]:
            await informer.synced()
        supervisor.start("informer pods", self.informers[-1].run)
        await self.informers[-1].synced()

    def moved(self, plugins: tuple[str, ...] | None = None, hint: hints.Hint | None = None) -> None:
        if self.queue.moved(clock.monotonic(), plugins, hint):
            self._wake()

    # handlers

    @staticmethod
    def _name(obj: Object) -> tuple[str, str]:
        return obj["metadata"]["namespace"], obj["metadata"]["name"]

    def _namespace(self, obj: Object, gone: bool) -> None:
        self.snapshot.population.set_namespace(obj["metadata"]["name"], {} if gone else obj["metadata"].get("labels") or {})
        self.moved(("InterPodAffinity",))

    def _controller(self, kind: str) -> Callable[[Object, bool], None]:
        def told(obj: Object, gone: bool) -> None:
            said = obj["spec"]["selector"]
            parsed = selectors.from_set(said) if kind == "ReplicationController" else selectors.from_object(said)
            self.snapshot.workloads.set_controller(kind, *self._name(obj), None if gone or not said else parsed)

        return told

    def _storage(self, told: Callable[[Object, bool], None]) -> Callable[[Object, bool], None]:
        def tell(obj: Object, gone: bool) -> None:
            told(obj, gone)
            self.moved(hints.VOLUMES)
            self.claims_changed()

        return tell

    def _node(self, old: Object | None, new: Object) -> None:
        if old is None or hints.node_matters(old, new):
            self.snapshot.set_node(new)
            event = hints.node_event(old, new)
            if event is not None:
                self.moved(*event)

    def _node_gone(self, node: Object) -> None:
        self.snapshot.remove_node(node["metadata"]["name"])
        self.moved(("PodTopologySpread", "InterPodAffinity"))

    def _pod(self, obj: Object) -> None:
        pod: PodInfo = obj["info"]
        if pod.node:
            self._bound(pod)
            return
        if self.assumed.get(pod.key) == pod.uid:
            return  # its binding is under way
        if self.snapshot.remove_pod(pod.key):  # another pod of the same name has gone
            self.moved(hints.POD_GOES)
        if pod.scheduler_name in self._profiles and not pod.deleting:
            known = self.snapshot.nominated.get(pod.key)
            if (pod.nominated and known is None) or (known is not None and known[0].uid != pod.uid):
                self.snapshot.nominate(pod, pod.nominated)
            self.queue.add(pod, clock.monotonic())
            self._wake()
        else:
            self.queue.remove(pod.key)
            self.snapshot.forget(pod)

    def _bound(self, pod: PodInfo) -> None:
        assumed = self.assumed.pop(pod.key, None)
        before = self.snapshot.pods.get(pod.key)
        self.snapshot.nominate(pod, "")
        self.snapshot.add_pod(pod, pod.node)
        self.queue.remove(pod.key)
        if before is None or assumed or before[0].label_key != pod.label_key:
            self.moved(hints.POD_COMES, hints.pod_came(self.snapshot.population, pod))

    def _pod_gone(self, obj: Object) -> None:
        pod: PodInfo = obj["info"]
        self.assumed.pop(pod.key, None)
        self.preemption.leaving.discard(pod.key)
        self.queue.remove(pod.key)
        held = pod.key in self.snapshot.nominated
        before = self.snapshot.pods.get(pod.key)
        self.snapshot.remove_pod(pod.key)
        self.snapshot.forget(pod)
        if held:
            self.moved(hints.POD_GOES)
        elif before is not None:
            self.moved(hints.POD_GOES, hints.pod_went(self.snapshot, before[1]))
