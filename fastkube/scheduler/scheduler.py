"""The driver: decisions are made in bursts, bindings go out many at a time, refusals are told, victims are asked to leave.

A decision is synchronous and counts at once (assumed); its binding runs in a task of its own. When the binding fails, the pod is taken off the
node again and comes back to the queue: no pod is counted twice and none is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.events import EventRecorder
from fastkube.client.rest import Client
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor
from fastkube.scheduler import hints
from fastkube.scheduler.plugins import volumes
from fastkube.scheduler.podinfo import PodInfo
from fastkube.scheduler.preemption import Candidate, Preemption
from fastkube.scheduler.profile import DEFAULT, Profile
from fastkube.scheduler.queue import SchedulingQueue, Waiting
from fastkube.scheduler.snapshot import Failure, Snapshot
from fastkube.scheduler.sources import Sources

BINDINGS_IN_FLIGHT_MAX = 64
BURST_PODS = 32  # decisions between two turns of the event loop
FLUSH_SECONDS = 30.0
VOLUMES_BIND_SECONDS_MAX = 600.0
GATED_MESSAGE = "Scheduling is blocked due to non-empty scheduling gates"

log = logs.get("scheduler")


@dataclass(slots=True)
class Stats:
    """Counted since the start; /metrics shows them."""

    scheduled: int = 0
    unschedulable: int = 0
    errors: int = 0
    preempted: int = 0


class Scheduler:
    """Schedules the pods whose spec.schedulerName is that of one of `profiles`."""

    def __init__(self, client: Client, profiles: Sequence[Profile] = (DEFAULT,), backoff_seconds: float = 1.0, backoff_seconds_max: float = 10.0) -> None:
        self.client = client
        self.profiles = {p.scheduler_name: p for p in profiles}
        self.stats = Stats()
        self.snapshot = Snapshot()
        self.queue = SchedulingQueue(backoff_seconds, backoff_seconds_max)
        self.preemption = Preemption(self.snapshot)
        self.events = {name: EventRecorder(client, name) for name in self.profiles}
        self._wake = asyncio.Event()
        self._claims = asyncio.Event()
        self.sources = Sources(client, frozenset(self.profiles), self.snapshot, self.queue, self.preemption, self._wake.set)
        self.sources.claims_changed = self._claims.set
        self._slots = asyncio.Semaphore(BINDINGS_IN_FLIGHT_MAX)
        self._supervisor = Supervisor("scheduler")

    async def run(self) -> None:
        """Schedule until cancelled."""
        async with self._supervisor as supervisor:
            for name, events in self.events.items():
                supervisor.start(f"events {name}", events.run)
            await self.sources.start(supervisor)
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

    # one decision

    def _schedule(self, waiting: Waiting) -> None:
        pod = waiting.pod
        if pod.gated:
            self.queue.gate(waiting, clock.monotonic())
            self._supervisor.once(f"gated {pod.key}", self._report(pod, "SchedulingGated", GATED_MESSAGE, event=False))
            return
        profile = self.profiles[pod.scheduler_name]
        seed = entropy.generator().getrandbits(63)
        decision = self.snapshot.decide(pod, seed, profile)
        if isinstance(decision, Failure):
            self._refused(waiting, decision, seed, profile)
            return
        late = self.snapshot.volumes.to_bind(pod, self.snapshot.nodes[self.snapshot.rows[decision]] or {}) if pod.template.claims else []
        nominated = self.snapshot.nominated.get(pod.key)
        self.snapshot.nominate(pod, "")
        self.snapshot.add_pod(pod, decision)
        if nominated is not None and nominated[1] != decision:
            self.sources.moved(hints.POD_GOES)  # the room held there is free
        self.sources.assumed[pod.key] = pod.uid
        self._supervisor.once(f"bind {pod.key}", self._bind(waiting, decision, late))

    def _refused(self, waiting: Waiting, failure: Failure, seed: int, profile: Profile) -> None:
        pod = waiting.pod
        self.stats.unschedulable += 1
        candidate = None
        if profile.preemption and not pod.never_preempts:
            candidate = self.preemption.find(pod, failure, seed, profile)
        nominated = None
        if candidate is not None:
            nominated = candidate.node
            self._nominate(pod, candidate)
        elif pod.key in self.snapshot.nominated and failure.preemption is None:
            nominated = ""  # its node is of no use any more
            self.snapshot.nominate(pod, "")
            self.sources.moved(hints.POD_GOES)
        self.queue.failed(waiting, failure.plugins, clock.monotonic())
        if candidate is not None and not candidate.victims:  # a nominated pod of lower priority was all that stood in the way
            self.sources.moved()
        self._supervisor.once(f"report {pod.key}", self._report(pod, "Unschedulable", failure.message(pod.never_preempts), nominated=nominated))

    # preemption

    def _nominate(self, pod: PodInfo, candidate: Candidate) -> None:
        """The room of the victims is `pod`'s from here on; pods of lower priority that were nominated there look for another place."""
        for other, node in list(self.snapshot.nominated.values()):
            if node == candidate.node and other.priority < pod.priority:
                self.snapshot.nominate(other, "")
                self._supervisor.once(f"unnominate {other.key}", self._patch_status(other, {"nominatedNodeName": None}))
        self.snapshot.nominate(pod, candidate.node)
        for victim in candidate.victims:
            if not victim.deleting and victim.key not in self.preemption.leaving:
                self.preemption.leaving.add(victim.key)
                self._supervisor.once(f"preempt {victim.key}", self._preempt(victim, pod, candidate.node))

    async def _preempt(self, victim: PodInfo, pod: PodInfo, node: str) -> None:
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": f"{pod.scheduler_name}: preempting to accommodate a higher priority pod",
            "lastTransitionTime": clock.rfc3339(),
        }
        async with self._slots:
            await self._patch_status(victim, {"conditions": [condition]})
            try:
                await self.client.delete("v1/pods", victim.name, victim.namespace, uid=victim.uid)
            except (TimeoutError, ApiError, OSError) as error:
                self.preemption.leaving.discard(victim.key)
                log.info("could not preempt", victim=victim.key, pod=pod.key, error=str(error))
                return
        self.stats.preempted += 1
        self.events[pod.scheduler_name].event(self._reference(victim), "Normal", "Preempted", f"Preempted by pod {pod.uid} on node {node}")

    # binding

    async def _bind(self, waiting: Waiting, node: str, late: list[tuple[dict[str, Any], str]]) -> None:
        pod = waiting.pod
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            if late:
                await self._bind_volumes(node, late)
            async with self._slots:
                await self.client.create("v1/pods", binding, pod.namespace, name=pod.name, subresource="binding")
        except (TimeoutError, ApiError, OSError) as error:
            self._bind_failed(waiting, node, error, late)
            return
        self.stats.scheduled += 1
        self.queue.done(waiting)
        self.events[pod.scheduler_name].event(self._reference(pod), "Normal", "Scheduled", f"Successfully assigned {pod.key} to {node}")

    async def _bind_volumes(self, node: str, late: list[tuple[dict[str, Any], str]]) -> None:
        """Say which volume or node each claim gets, then wait until all claims are bound. Raises ApiError, TimeoutError."""
        for claim, name in late:
            meta = claim["metadata"]
            if name:
                owner = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **{k: meta[k] for k in ("namespace", "name", "uid", "resourceVersion")}}
                patch = {"metadata": {"annotations": {volumes.BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": owner}}
                await self.client.patch("v1/persistentvolumes", name, patch)
            else:
                patch = {"metadata": {"annotations": {volumes.SELECTED_NODE: node}}}
                await self.client.patch("v1/persistentvolumeclaims", meta["name"], patch, meta["namespace"])
        keys = [f"{c['metadata']['namespace']}/{c['metadata']['name']}" for c, _ in late]
        async with asyncio.timeout(VOLUMES_BIND_SECONDS_MAX):
            while True:
                claims = [self.snapshot.volumes.claims.get(key) for key in keys]
                if any(c is None for c in claims):
                    raise ApiError(404, "NotFound", "a claim was deleted while it was being bound")
                if all(c is not None and volumes.is_bound(c) for c in claims):
                    return
                self._claims.clear()
                await self._claims.wait()

    def _bind_failed(self, waiting: Waiting, node: str, error: Exception, late: list[tuple[dict[str, Any], str]]) -> None:
        pod = waiting.pod
        self.stats.errors += 1
        for _, name in late:
            self.snapshot.volumes.assumed.pop(name, None)
        if self.sources.assumed.pop(pod.key, None) is not None:  # still only assumed: nobody has told us where it is
            self.snapshot.remove_pod(pod.key)
        if isinstance(error, ApiError) and error.code in (404, 409):
            # it is gone, or somebody else bound it: its own events say what becomes of it; until then it waits its turn again
            log.info("binding refused", pod=pod.key, node=node, why=error.message)
        else:
            log.warning("binding failed, will be tried again", pod=pod.key, node=node, error=str(error))
        self.queue.failed(waiting, frozenset(), clock.monotonic(), transient=True)
        self._wake.set()

    # telling

    @staticmethod
    def _reference(pod: PodInfo) -> dict[str, Any]:
        meta = {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "resourceVersion": pod.resource_version}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}

    async def _report(self, pod: PodInfo, reason: str, message: str, event: bool = True, nominated: str | None = None) -> None:
        """The PodScheduled condition and nominatedNodeName (only when they say something new) and the FailedScheduling event."""
        if event:
            self.events[pod.scheduler_name].event(self._reference(pod), "Warning", "FailedScheduling", message)
        status: dict[str, Any] = {}
        if nominated is not None and nominated != pod.nominated:
            pod.nominated = nominated
            status["nominatedNodeName"] = nominated or None
        if pod.condition != ("False", reason, message):
            pod.condition = ("False", reason, message)
            now = clock.rfc3339()
            condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message, "lastProbeTime": None, "lastTransitionTime": now}
            status["conditions"] = [condition]
        if status and not await self._patch_status(pod, status):
            pod.condition = None

    async def _patch_status(self, pod: PodInfo, status: dict[str, Any]) -> bool:
        try:
            await self.client.patch("v1/pods", pod.name, {"status": status}, pod.namespace, kind="strategic", subresource="status")
            return True
        except (TimeoutError, ApiError, OSError) as error:
            log.info("could not write a pod's status", pod=pod.key, error=str(error))
            return False
