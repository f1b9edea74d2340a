"""node-lifecycle-controller: notices nodes that fall silent, says so in their conditions, and taints them.

A node's heartbeat is its Lease's renewTime (or its status's heartbeat). A heartbeat costs a note of the time; one timer per node asks, when the
grace is over since the last note, whether there was another. So 5,000 quiet nodes cost nothing between heartbeats, and a dead one is seen on
time, not at the next poll. NoExecute taints, which evict pods, are handed out per zone at the rates of taints.zone_rates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.controllers import taints
from fastkube.controllers.meta import Object, condition, deleting, is_ready, is_terminal, uid
from fastkube.controllers.runtime import Controller
from fastkube.controllers.taints import Rates
from fastkube.runtime import clock, logs

NODES = "v1/nodes"
LEASE_NAMESPACE = "kube-node-lease"
ZONE_LABELS = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone")
CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
EVICTION_PERIOD_SECONDS = 0.1
CLOCK_SKEW_SECONDS = 0.001

log = logs.get("node-lifecycle")


class NodeLifecycleController(Controller):
    name = "node-lifecycle-controller"
    account = "node-controller"
    component = "node-controller"

    def setup(self) -> None:
        self._heard: dict[str, float] = {}  # node -> monotonic time of its last sign of life
        self._evicting: dict[str, None] = {}  # nodes whose turn to be tainted NoExecute has not come, in order
        self._evicted: set[str] = set()  # nodes that may carry NoExecute taints
        self._next_eviction: dict[str, float] = {}  # zone -> monotonic time
        self._wake = asyncio.Event()
        self.nodes = self.informer(NODES)
        self.nodes.add_handler(self._node_added, self._node_updated, self._node_deleted)
        self.leases = self.informer("coordination.k8s.io/v1/leases", LEASE_NAMESPACE)
        self.leases.add_handler(self._lease_seen, self._lease_updated)
        self.pods = self.informer("v1/pods")
        self.pods.add_index("node", pods_by_node)

    # --- events ---

    def _node_added(self, node: Object) -> None:
        name = node["metadata"]["name"]
        self._heard.setdefault(name, clock.monotonic())
        if any(t.get("effect") == "NoExecute" and t["key"] in (taints.NOT_READY, taints.UNREACHABLE) for t in node["spec"].get("taints") or ()):
            self._evicted.add(name)
        if self.nodes.has_synced:
            self.recorder.event(_reference(node), "Normal", "RegisteredNode", f"Node {name} event: Registered Node {name} in Controller")
        self.queue.add(name)

    def _node_updated(self, old: Object, new: Object) -> None:
        name = new["metadata"]["name"]
        if _heartbeat(old) != _heartbeat(new):
            self._heard[name] = clock.monotonic()
        changed = taints.wanted(old, False) != taints.wanted(new, False) or old["spec"].get("taints") != new["spec"].get("taints")
        if changed or taints.ready_status(old) != taints.ready_status(new):
            self.queue.add(name)

    def _node_deleted(self, node: Object) -> None:
        name = node["metadata"]["name"]
        self._heard.pop(name, None)
        self._evicting.pop(name, None)
        self._evicted.discard(name)
        self.recorder.event(_reference(node), "Normal", "RemovingNode", f"Node {name} event: Removing Node {name} from Controller")

    def _lease_seen(self, lease: Object) -> None:
        name = lease["metadata"]["name"]
        if name in self._heard:
            self._heard[name] = clock.monotonic()

    def _lease_updated(self, old: Object, new: Object) -> None:
        if old.get("spec", {}).get("renewTime") != new.get("spec", {}).get("renewTime"):
            self._lease_seen(new)

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        node = self.nodes.get(None, key)
        if node is None or self.behind(node):
            return None
        left = self._seconds_left(node)
        if (left <= 0 and taints.ready_status(node) != "Unknown") or (left <= 0 and condition(node, "Ready") is None):
            node = await self._mark_unknown(node)
        await self._taint(node)
        if taints.ready_status(node) != "True":
            await self._mark_pods_unready(key)
        return max(left, 0) + CLOCK_SKEW_SECONDS if left > 0 else None

    def _seconds_left(self, node: Object) -> float:
        """Until the node counts as silent; a node that never reported gets longer."""
        heard = self._heard.setdefault(node["metadata"]["name"], clock.monotonic())
        grace = self.options.node_monitor_grace_seconds if condition(node, "Ready") else self.options.node_startup_grace_seconds
        return heard + grace - clock.monotonic()

    async def _mark_unknown(self, node: Object) -> Object:
        now = clock.rfc3339()
        conditions = []
        for type in CONDITIONS:
            had = condition(node, type)
            if had is None:
                conditions.append(
                    {"type": type, "status": "Unknown", "reason": "NodeStatusNeverUpdated", "message": "Kubelet never posted node status.",
                     "lastHeartbeatTime": node["metadata"].get("creationTimestamp"), "lastTransitionTime": now}
                )  # fmt: skip
            elif had["status"] != "Unknown":
                conditions.append(
                    {**had, "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status.", "lastTransitionTime": now}
                )
        name = node["metadata"]["name"]
        answer = await self.client.patch(
            NODES, name, {"metadata": {"uid": uid(node)}, "status": {"conditions": conditions}}, kind="strategic", subresource="status"
        )
        self.wrote(answer)
        log.warning("node fell silent", node=name)
        self.recorder.event(_reference(node), "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        return answer

    async def _taint(self, node: Object) -> None:
        name = node["metadata"]["name"]
        if taints.ready_status(node) == "True":
            self._evicting.pop(name, None)
            self._evicted.discard(name)
        elif name not in self._evicted and condition(node, "Ready") is not None:
            self._evicting.setdefault(name)
            self._wake.set()
        current = node["spec"].get("taints") or []
        merged = taints.merge(current, taints.wanted(node, name in self._evicted), clock.rfc3339())
        if merged != current:
            patch = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": merged or None}}
            self.wrote(await self.client.patch(NODES, name, patch, kind="merge"))

    async def _mark_pods_unready(self, name: str) -> None:
        """The pods' own word is stale: Services must not send to them."""
        for pod in self.pods.by_index("node", name):
            if not is_ready(pod) or is_terminal(pod):
                continue
            meta = pod["metadata"]
            ready = {"type": "Ready", "status": "False", "lastTransitionTime": clock.rfc3339()}
            try:
                await self.client.patch(
                    "v1/pods",
                    meta["name"],
                    {"metadata": {"uid": uid(pod)}, "status": {"conditions": [ready]}},
                    meta["namespace"],
                    kind="strategic",
                    subresource="status",
                )
                self.recorder.event(pod, "Warning", "NodeNotReady", "Node is not ready")
            except ApiError as e:
                if e.code not in (404, 409):
                    raise

    # --- evictions, zone by zone ---

    def loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {"evictions": self._evict_for_ever}

    async def _evict_for_ever(self) -> None:
        while True:
            if not self._evicting:
                self._wake.clear()
                await self._wake.wait()
            self.evict()
            if self._evicting:
                await asyncio.sleep(EVICTION_PERIOD_SECONDS)

    def evict(self) -> None:
        """Let as many waiting nodes be tainted NoExecute as their zones' rates allow by now."""
        now = clock.monotonic()
        options = self.options
        rates = taints.zone_rates(
            self._zones(),
            Rates(options.node_eviction_rate, options.secondary_node_eviction_rate, options.unhealthy_zone_threshold, options.large_cluster_size_threshold),
        )
        for name in list(self._evicting):
            node = self.nodes.get(None, name)
            zone = _zone(node) if node is not None else ""
            rate = rates.get(zone, 0.0)
            if node is None:
                del self._evicting[name]
            elif rate > 0 and self._next_eviction.get(zone, 0.0) <= now:
                self._next_eviction[zone] = max(self._next_eviction.get(zone, 0.0), now) + 1 / rate
                del self._evicting[name]
                self._evicted.add(name)
                self.queue.add(name)

    def _zones(self) -> dict[str, tuple[int, int]]:
        zones: dict[str, tuple[int, int]] = {}
        for node in self.nodes.list():
            ready, unready = zones.get(_zone(node), (0, 0))
            ok = taints.ready_status(node) == "True"
            zones[_zone(node)] = (ready + ok, unready + (not ok))
        return zones


class TaintEvictionController(Controller):
    """Deletes pods from nodes with NoExecute taints that they do not tolerate (any longer)."""

    name = "taint-eviction-controller"
    account = "node-controller"
    component = "taint-eviction-controller"
    workers = 8

    def setup(self) -> None:
        self._scheduled: set[str] = set()
        self.nodes = self.informer(NODES)
        self.nodes.add_handler(self._node_added, self._node_updated)
        self.pods = self.informer("v1/pods")
        self.pods.add_index("node", pods_by_node)
        self.pods.add_handler(self._pod_added, self._pod_updated, self._pod_deleted)

    def _pod_added(self, pod: Object) -> None:
        node = self.nodes.get(None, pod["spec"].get("nodeName", "")) if pod["spec"].get("nodeName") else None
        if node is not None and _no_execute(node):
            self.enqueue(pod)

    def _pod_updated(self, old: Object, new: Object) -> None:
        if old["spec"].get("nodeName") != new["spec"].get("nodeName") or old["spec"].get("tolerations") != new["spec"].get("tolerations"):
            self._pod_added(new)

    def _pod_deleted(self, pod: Object) -> None:
        self._scheduled.discard(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}")

    def _node_added(self, node: Object) -> None:
        if _no_execute(node):
            self._enqueue_pods(node)

    def _node_updated(self, old: Object, new: Object) -> None:
        if _no_execute(old) != _no_execute(new):
            self._enqueue_pods(new)

    def _enqueue_pods(self, node: Object) -> None:
        for pod in self.pods.by_index("node", node["metadata"]["name"]):
            self.enqueue(pod)

    async def reconcile(self, key: str) -> float | None:
        pod = self.pods.by_key(key)
        node = self.nodes.get(None, pod["spec"].get("nodeName") or "") if pod is not None else None
        if pod is None or deleting(pod) or node is None:
            self._scheduled.discard(key)
            return None
        now = clock.now()
        at = taints.evict_at(pod, _no_execute(node), now)
        if at is None:
            if key in self._scheduled:
                self._scheduled.discard(key)
                self.recorder.event(pod, "Normal", "TaintManagerEviction", f"Cancelling deletion of Pod {key}")
            return None
        if at > now:
            self._scheduled.add(key)
            return at - now
        self._scheduled.discard(key)
        await self._evict(key, pod)
        return None

    async def _evict(self, key: str, pod: Object) -> None:
        meta = pod["metadata"]
        self.recorder.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {key}")
        target = {
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": clock.rfc3339(),
        }  # fmt: skip
        try:
            await self.client.patch(
                "v1/pods",
                meta["name"],
                {"metadata": {"uid": uid(pod)}, "status": {"conditions": [target]}},
                meta["namespace"],
                kind="strategic",
                subresource="status",
            )
            await self.client.delete("v1/pods", meta["name"], meta["namespace"], uid=uid(pod))
        except ApiError as e:
            if e.code != 404:
                raise


def pods_by_node(pod: Object) -> list[str]:
    """Index function: the node a pod is bound to."""
    node = pod["spec"].get("nodeName")
    return [node] if node else []


def _no_execute(node: Object) -> list[Object]:
    return [t for t in node["spec"].get("taints") or () if t.get("effect") == "NoExecute"]


def _heartbeat(node: Object) -> Any:
    ready = condition(node, "Ready")
    return (ready.get("lastHeartbeatTime"), ready["status"]) if ready else None


def _zone(node: Object) -> str:
    labels = node["metadata"].get("labels") or {}
    return ":".join(labels.get(name, "") for name in ZONE_LABELS)


def _reference(node: Object) -> Object:
    """Events about nodes carry the name as uid, as the kubelet writes them; `kubectl describe node` looks for either."""
    name = node["metadata"]["name"]
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid(node) or name}
