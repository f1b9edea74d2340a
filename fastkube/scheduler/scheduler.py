"""The driver: informers feed the snapshot and the queue, decisions are made in bursts, bindings go out many at a time.

A decision is synchronous and counts at once (assumed); its binding runs in a task of its own. When the binding fails, the pod is taken off the
node again and comes back to the queue: no pod is counted twice and none is forgotten. What the API says wins over what was assumed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.events import EventRecorder
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor
from fastkube.scheduler.plugins import reasons
from fastkube.scheduler.podinfo import PodInfo, Templates
from fastkube.scheduler.queue import SchedulingQueue, Waiting
from fastkube.scheduler.snapshot import Failure, Snapshot

BINDINGS_IN_FLIGHT_MAX = 64
BURST_PODS = 32  # decisions between two turns of the event loop
FLUSH_SECONDS = 30.0
GATED_MESSAGE = "Scheduling is blocked due to non-empty scheduling gates"

PORTS_REASON = reasons.REASONS[reasons.PORTS].text
STATIC_REASONS = frozenset(reasons.REASONS[code].text for code in (reasons.UNSCHEDULABLE, reasons.TAINTED, reasons.NODE_AFFINITY))

log = logs.get("scheduler")


@dataclass(slots=True)
class Stats:
    """Counted since the start; /metrics shows them."""

    scheduled: int = 0
    unschedulable: int = 0
    errors: int = 0


def node_change_helps(old: dict[str, Any] | None, new: dict[str, Any]) -> frozenset[str] | None:
    """Which refusals a change of a node may lift; an empty set: none (a heartbeat), None: any."""
    if old is None:
        return None
    before, after = old.get("status") or {}, new.get("status") or {}
    spec_changed = old.get("spec") != new.get("spec") or old["metadata"].get("labels") != new["metadata"].get("labels")
    if before.get("allocatable") != after.get("allocatable"):
        return None
    return STATIC_REASONS if spec_changed else frozenset()


def matters(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a node changed in anything the snapshot holds."""
    before, after = old.get("status") or {}, new.get("status") or {}
    return (
        old.get("spec") != new.get("spec")
        or old["metadata"].get("labels") != new["metadata"].get("labels")
        or before.get("allocatable") != after.get("allocatable")
        or before.get("images") != after.get("images")
    )


class Scheduler:
    """Schedules the pods whose spec.schedulerName is one of `profiles`."""

    def __init__(self, client: Client, profiles: Sequence[str] = ("default-scheduler",)) -> None:
        self.client = client
        self.profiles = frozenset(profiles)
        self.stats = Stats()
        self.snapshot = Snapshot()
        self.queue = SchedulingQueue()
        self.templates = Templates()
        self.events = EventRecorder(client, profiles[0])
        self._assumed: dict[str, str] = {}  # pod key -> uid, decided by us and not yet seen bound
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(BINDINGS_IN_FLIGHT_MAX)
        self._supervisor = Supervisor("scheduler")
        self.nodes = Informer(client, "v1/nodes")
        self.pods = Informer(client, "v1/pods", fields="status.phase!=Succeeded,status.phase!=Failed", transform=self.templates.pod_summary)
        self.nodes.add_handler(on_add=self._node_added, on_update=self._node_updated, on_delete=self._node_deleted)
        self.pods.add_handler(on_add=self._pod_set, on_update=lambda old, new: self._pod_set(new), on_delete=self._pod_deleted)

    # what informers tell

    def _node_added(self, node: dict[str, Any]) -> None:
        self._node_updated(None, node)

    def _node_updated(self, old: dict[str, Any] | None, new: dict[str, Any]) -> None:
        if old is None or matters(old, new):
            self.snapshot.set_node(new)
            helps = node_change_helps(old, new)
            if helps is None or helps:
                self._moved(helps)

    def _node_deleted(self, node: dict[str, Any]) -> None:
        self.snapshot.remove_node(node["metadata"]["name"])

    def _pod_set(self, obj: dict[str, Any]) -> None:
        pod: PodInfo = obj["info"]
        if pod.node:
            self._assumed.pop(pod.key, None)
            self.snapshot.add_pod(pod, pod.node)
            self.queue.remove(pod.key)
            return
        if self._assumed.get(pod.key) == pod.uid:
            return  # its binding is under way
        if self.snapshot.remove_pod(pod.key):  # another pod of the same name has gone
            self._moved(None)
        if pod.scheduler_name in self.profiles and not pod.deleting:
            self.queue.add(pod, clock.monotonic())
            self._wake.set()
        else:
            self.queue.remove(pod.key)

    def _pod_deleted(self, obj: dict[str, Any]) -> None:
        pod: PodInfo = obj["info"]
        self._assumed.pop(pod.key, None)
        self.queue.remove(pod.key)
        if self.snapshot.remove_pod(pod.key):
            helps = {"Too many pods"} | {f"Insufficient {r}" for r in pod.template.requests} | ({PORTS_REASON} if pod.template.host_ports else set())
            self._moved(frozenset(helps))

    def _moved(self, helps: frozenset[str] | None) -> None:
        if self.queue.moved(clock.monotonic(), helps):
            self._wake.set()

    # the loop

    async def run(self) -> None:
        """Schedule until cancelled."""
        async with self._supervisor as supervisor:
            supervisor.start("nodes", self.nodes.run)
            supervisor.start("pods", self.pods.run)
            supervisor.start("events", self.events.run)
            await self.nodes.synced()
            await self.pods.synced()
            await self._loop()

    async def _loop(self) -> None:
        flushed = clock.monotonic()
        while True:
            now = clock.monotonic()
            if now - flushed > FLUSH_SECONDS:
                self.queue.flush(now)
                flushed = now
            self._wake.clear()
            for _ in range(BURST_PODS):
                if self._slots.locked() or (waiting := self.queue.pop(now)) is None:
                    break
                self._schedule(waiting)
            else:
                await asyncio.sleep(0)
                continue
            if self._slots.locked():
                async with self._slots:  # wait for one binding to end
                    continue
            due = self.queue.next_due()
            timeout = FLUSH_SECONDS if due is None else min(max(due - clock.monotonic(), 0.0), FLUSH_SECONDS)
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except TimeoutError:
                pass

    def _schedule(self, waiting: Waiting) -> None:
        pod = waiting.pod
        if pod.gated:
            self.queue.gate(waiting, clock.monotonic())
            self._supervisor.once(f"gated {pod.key}", self._report(pod, "SchedulingGated", GATED_MESSAGE, event=False))
            return
        decision = self.snapshot.decide(pod, entropy.generator().getrandbits(63))
        if isinstance(decision, Failure):
            self.stats.unschedulable += 1
            self.queue.failed(waiting, frozenset(decision.reasons), clock.monotonic())
            self._supervisor.once(f"report {pod.key}", self._report(pod, "Unschedulable", decision.message(pod.never_preempts)))
            return
        self.snapshot.add_pod(pod, decision)
        self._assumed[pod.key] = pod.uid
        self._supervisor.once(f"bind {pod.key}", self._bind(waiting, decision))

    async def _bind(self, waiting: Waiting, node: str) -> None:
        pod = waiting.pod
        namespace, name = pod.key.split("/")
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        async with self._slots:
            try:
                await self.client.create("v1/pods", binding, namespace, name=name, subresource="binding")
            except (TimeoutError, ApiError, OSError) as error:
                self._bind_failed(waiting, node, error)
                return
        self.stats.scheduled += 1
        self.queue.done(waiting)
        self.events.event(self._reference(pod), "Normal", "Scheduled", f"Successfully assigned {pod.key} to {node}")

    def _bind_failed(self, waiting: Waiting, node: str, error: Exception) -> None:
        pod = waiting.pod
        self.stats.errors += 1
        if self._assumed.pop(pod.key, None) is not None:  # still only assumed: nobody has told us where it is
            self.snapshot.remove_pod(pod.key)
        if isinstance(error, ApiError) and error.code in (404, 409):
            # it is gone, or somebody else bound it: its own events say what becomes of it; until then it waits its turn again
            log.info("binding refused", pod=pod.key, node=node, why=error.message)
        else:
            log.warning("binding failed, will be tried again", pod=pod.key, node=node, error=str(error))
        self.queue.failed(waiting, frozenset(), clock.monotonic(), transient=True)
        self._wake.set()

    @staticmethod
    def _reference(pod: PodInfo) -> dict[str, Any]:
        namespace, name = pod.key.split("/")
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "uid": pod.uid, "resourceVersion": pod.resource_version}}

    async def _report(self, pod: PodInfo, reason: str, message: str, event: bool = True) -> None:
        """The PodScheduled condition (only when it says something new) and the FailedScheduling event."""
        if event:
            self.events.event(self._reference(pod), "Warning", "FailedScheduling", message)
        if pod.condition == ("False", reason, message):
            return
        pod.condition = ("False", reason, message)
        namespace, name = pod.key.split("/")
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastProbeTime": None,
            "lastTransitionTime": clock.rfc3339(),
        }
        try:
            await self.client.patch("v1/pods", name, {"status": {"conditions": [condition]}}, namespace, kind="strategic", subresource="status")
        except (TimeoutError, ApiError, OSError) as error:
            pod.condition = None
            log.info("could not report on pod", pod=pod.key, error=str(error))
