"""daemonset-controller: one pod on each node that fits.

Pods are bound by the scheduler: each carries an affinity to the name of its node. `plan` is pure: from nodes and pods to what to create and
delete; the driver carries it out behind expectations, then updates pods as the strategy says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.informer import key_of
from fastkube.controllers import history, nodematch
from fastkube.controllers.history import HASH_LABEL, History
from fastkube.controllers.meta import (
    Object,
    controller_of,
    controller_uid,
    deleting,
    is_available,
    is_ready,
    is_terminal,
    matcher,
    owner_reference,
    phase,
    ready_since,
    resolve_int_or_percent,
    seconds,
    uid,
)
from fastkube.controllers.runtime import BURST_MAX, Controller, Expectations, Pace, slow_start
from fastkube.runtime import clock

SETS = "apps/v1/daemonsets"
GENERATION_LABEL = "pod-template-generation"
FAILED_POD_SECONDS_MIN, FAILED_POD_SECONDS_MAX = 1.0, 900.0
STATUS_INTERVAL_SECONDS, STATUS_BURST = 0.1, 10

_TOLERATIONS = [
    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/disk-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/pid-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"},
]
_HOST_NETWORK_TOLERATION = {"key": "node.kubernetes.io/network-unavailable", "operator": "Exists", "effect": "NoSchedule"}


# --- pure ---


def with_tolerations(spec: Object) -> Object:
    """The pod spec with what daemons tolerate besides."""
    wanted = [*_TOLERATIONS, *([_HOST_NETWORK_TOLERATION] if spec.get("hostNetwork") else [])]
    own = list(spec.get("tolerations") or ())
    return {**spec, "tolerations": [*own, *(t for t in wanted if t not in own)]}


def node_of(pod: Object) -> str:
    """The node a pod is bound to, or that its affinity names."""
    spec = pod.get("spec") or {}
    if spec.get("nodeName"):
        return spec["nodeName"]
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for match in term.get("matchFields") or ():
            if match["key"] == "metadata.name" and match["operator"] == "In" and len(match.get("values") or ()) == 1:
                return match["values"][0]
    return ""


def pinned(spec: Object, node: str) -> Object:
    """The pod spec with a required affinity to one node in place of its own required one (which the node has passed)."""
    affinity = spec.get("affinity") or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    here = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}
    return {**spec, "affinity": {**affinity, "nodeAffinity": {**node_affinity, "requiredDuringSchedulingIgnoredDuringExecution": here}}}


def should_run(spec: Object, node: Object) -> tuple[bool, bool]:
    """(a new pod should be there, one that is there may stay). `spec` with daemon tolerations."""
    wanted = spec.get("nodeName")
    if (wanted and wanted != node["metadata"]["name"]) or not nodematch.fits_selector(spec, node):
        return False, False
    if nodematch.untolerated(spec, node, ("NoExecute",)):
        return False, False
    return nodematch.untolerated(spec, node, ("NoSchedule",)) is None, True


@dataclass(slots=True)
class Plan:
    create: list[str] = field(default_factory=list)  # node names
    delete: list[Object] = field(default_factory=list)  # pods
    failed: list[Object] = field(default_factory=list)  # pods that ended, to be replaced with back-off


def by_node(pods: list[Object]) -> dict[str, list[Object]]:
    out: dict[str, list[Object]] = {}
    for pod in pods:
        out.setdefault(node_of(pod), []).append(pod)
    return out


def plan(spec: Object, nodes: list[Object], pods: list[Object], update_hash: str, surge: int) -> Plan:
    """What to make and remove so that each fitting node has one pod (two while one is surged)."""
    out = Plan()
    placed = by_node(pods)
    for node in nodes:
        name = node["metadata"]["name"]
        here = placed.pop(name, [])
        wanted, may_stay = should_run(spec, node)
        live = [p for p in here if not deleting(p)]
        if wanted and not here:
            out.create.append(name)
        elif not may_stay:
            out.delete += live
        else:
            ended = [p for p in live if is_terminal(p)]
            out.failed += ended
            running = sorted((p for p in live if not is_terminal(p)), key=lambda p: (seconds(p["metadata"].get("creationTimestamp")), p["metadata"]["name"]))
            out.delete += _surplus(running, update_hash, surge)
    for gone in placed.values():  # nodes that are no more: pod GC takes theirs, but what is not bound would wait for ever
        out.delete += [p for p in gone if not deleting(p) and not p["spec"].get("nodeName")]
    return out


def _surplus(running: list[Object], update_hash: str, surge: int) -> list[Object]:
    if not surge:
        return running[1:]
    new = [p for p in running if hash_of(p) == update_hash]
    old = [p for p in running if hash_of(p) != update_hash]
    return new[1:] + old[1:]


def hash_of(pod: Object) -> str:
    return (pod["metadata"].get("labels") or {}).get(HASH_LABEL, "")


def rolling_steps(
    spec: Object, nodes: list[Object], pods: list[Object], update_hash: str, max_unavailable: int, max_surge: int, min_ready: int, now: float
) -> tuple[list[str], list[Object]]:
    """(nodes on which to surge a new pod, old pods to delete) in a rolling update now."""
    placed = by_node(pods)
    available = lambda some: any(is_available(p, min_ready, now) for p in some)  # noqa: E731
    surge_now: list[str] = []  # nodes whose old pod is of no use: a new one may come at once
    surge_next: list[str] = []
    replaceable: list[Object] = []  # old pods that serve nobody, or are replaced already
    candidates: list[Object] = []
    unavailable = surging = 0
    for node in nodes:
        name = node["metadata"]["name"]
        if not should_run(spec, node)[0]:
            continue
        live = [p for p in placed.get(name, ()) if not is_terminal(p) and not deleting(p)]
        old = [p for p in live if hash_of(p) != update_hash]
        new = [p for p in live if hash_of(p) == update_hash]
        if not max_surge:
            unavailable += not available(live)
            (candidates if available(live) else replaceable).extend(old[:1])
        elif old and new:
            surging += not available(new)
            replaceable += old if available(new) else []
        elif old:
            (surge_next if available(old) else surge_now).append(name)
    if max_surge:
        return surge_now + surge_next[: max(max_surge - surging, 0)], replaceable
    return [], replaceable + candidates[: max(max_unavailable - unavailable, 0)]


# --- driver ---


class DaemonSetController(Controller):
    name = "daemonset-controller"
    account = "daemon-set-controller"
    workers = 2

    def setup(self) -> None:
        self.expectations = Expectations()
        self.pace = Pace(STATUS_INTERVAL_SECONDS, STATUS_BURST)
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}  # (set key, node) -> (failed pods, earliest next deletion)
        self.sets = self.informer(SETS)
        self.sets.add_handler(self.enqueue, lambda old, new: self.enqueue(new), self._set_deleted)
        self.revisions = self.informer(history.REVISIONS)
        self.revisions.add_index("owner", lambda r: [controller_uid(r)])
        self.nodes = self.informer("v1/nodes")
        self.nodes.add_handler(self._node_changed, self._node_updated, self._node_changed)
        self.informer("v1/pods")
        self.owners = self.context.pod_owners()
        self.owners.route("DaemonSet", self)

    # --- events ---

    def _set_deleted(self, ds: Object) -> None:
        key = key_of(ds)
        self.expectations.forget(key)
        self.pace.forget(key)
        self._failures = {k: v for k, v in self._failures.items() if k[0] != key}

    def _node_changed(self, node: Object) -> None:
        if self.nodes.has_synced:
            for ds in self.sets.list():
                self.enqueue(ds)

    def _node_updated(self, old: Object, new: Object) -> None:
        if old["metadata"].get("labels") == new["metadata"].get("labels") and (old.get("spec") or {}).get("taints") == (new.get("spec") or {}).get("taints"):
            return
        for ds in self.sets.list():
            spec = with_tolerations(ds["spec"]["template"]["spec"])
            if should_run(spec, old) != should_run(spec, new):
                self.enqueue(ds)

    def _owner_key(self, pod: Object) -> str | None:
        ref = controller_of(pod)
        owner = self.sets.get(pod["metadata"]["namespace"], ref["name"]) if ref else None
        return key_of(owner) if owner is not None and ref is not None and uid(owner) == ref["uid"] else None

    def pod_added(self, pod: Object) -> None:
        key = self._owner_key(pod)
        if key:
            if deleting(pod):
                self.expectations.deleted(key, pod["metadata"]["name"])
            else:
                self.expectations.created(key)
            self.queue.add(key)

    def pod_updated(self, old: Object, new: Object, counted: bool) -> None:
        key = self._owner_key(new)
        if key:
            if deleting(new) and not deleting(old):
                self.expectations.deleted(key, new["metadata"]["name"])
            if counted or phase(old) != phase(new) or node_of(old) != node_of(new):
                self.queue.add_after(key, self.pace.wait(key))

    def pod_deleted(self, pod: Object) -> None:
        key = self._owner_key(pod)
        if key:
            self.expectations.deleted(key, pod["metadata"]["name"])
            self.queue.add(key)

    def orphan_seen(self, pod: Object) -> None:
        for ds in self.sets.list(pod["metadata"]["namespace"]):
            if matcher(ds["spec"].get("selector"))(pod["metadata"]["labels"]):
                self.enqueue(ds)

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        ds = self.sets.by_key(key)
        if ds is None or self.behind(ds):
            return None
        selector = ds["spec"].get("selector") or {}
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            self.recorder.event(ds, "Warning", "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
            return None
        await self._adopt(ds)
        collisions = (ds.get("status") or {}).get("collisionCount") or 0
        past = await history.sync(self.client, ds, "DaemonSet", self.revisions.by_index("owner", uid(ds)), HASH_LABEL, collisions)
        update_hash = history.label_of(past.update)
        again: float | None = None
        failure: Exception | None = None
        if not deleting(ds) and self.expectations.satisfied(key):
            failure, again = await self._manage(key, ds, update_hash)
            if failure is None and self.expectations.satisfied(key):
                failure = await self._roll(key, ds, update_hash)
            await self._truncate(ds, past)
        wait = await self._write_status(key, ds, update_hash, past.collisions)
        if failure is not None:
            raise failure
        return min((w for w in (again, wait) if w is not None), default=None)

    async def _adopt(self, ds: Object) -> None:
        matches = matcher(ds["spec"].get("selector"))
        for pod in self.owners.orphans(ds["metadata"]["namespace"]):
            if not deleting(ds) and not deleting(pod) and matches(pod["metadata"].get("labels") or {}):
                patch = {"metadata": {"uid": uid(pod), "ownerReferences": [owner_reference(ds, "apps/v1", "DaemonSet")]}}
                await self.client.patch("v1/pods", pod["metadata"]["name"], patch, pod["metadata"]["namespace"], kind="strategic")
        for pod in self.owners.of(uid(ds)):
            if not matches(pod["metadata"].get("labels") or {}) and not deleting(pod):
                patch = {"metadata": {"uid": uid(pod), "ownerReferences": [{"$patch": "delete", "uid": uid(ds)}]}}
                await self.client.patch("v1/pods", pod["metadata"]["name"], patch, pod["metadata"]["namespace"], kind="strategic")

    async def _manage(self, key: str, ds: Object, update_hash: str) -> tuple[Exception | None, float | None]:
        _, surge = _limits(ds, len(self.nodes.list()))
        todo = plan(with_tolerations(ds["spec"]["template"]["spec"]), self.nodes.list(), self.owners.of(uid(ds)), update_hash, surge)
        again: float | None = None
        doomed = list(todo.delete)
        for pod in todo.failed:
            wait = self._failed_wait(key, node_of(pod))
            if wait > 0:
                again = wait if again is None else min(again, wait)
                continue
            text = f"Found failed daemon pod {key_of(pod)} on node {node_of(pod)}, will try to kill it"
            if phase(pod) == "Succeeded":
                self.recorder.event(ds, "Normal", "SucceededDaemonPod", text.replace("failed", "succeeded").replace("kill", "delete"))
            else:
                self.recorder.event(ds, "Warning", "FailedDaemonPod", text)
            doomed.append(pod)
        return await self._act(key, ds, todo.create[:BURST_MAX], doomed[:BURST_MAX], update_hash), again

    def _failed_wait(self, key: str, node: str) -> float:
        """Back-off of replacing pods that end on a node: seconds left; each time it is over, it doubles."""
        count, due = self._failures.get((key, node), (0, 0.0))
        now = clock.monotonic()
        if due > now:
            return due - now
        self._failures[key, node] = (count + 1, now + min(FAILED_POD_SECONDS_MIN * 2**count, FAILED_POD_SECONDS_MAX))
        return 0.0

    async def _roll(self, key: str, ds: Object, update_hash: str) -> Exception | None:
        if (ds["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") != "RollingUpdate":
            return None
        spec = with_tolerations(ds["spec"]["template"]["spec"])
        nodes = self.nodes.list()
        wanted = sum(should_run(spec, n)[0] for n in nodes)
        unavailable, surge = _limits(ds, wanted)
        create, delete = rolling_steps(
            spec, nodes, self.owners.of(uid(ds)), update_hash, unavailable, surge, ds["spec"].get("minReadySeconds") or 0, clock.now()
        )
        return await self._act(key, ds, create, delete, update_hash)

    async def _act(self, key: str, ds: Object, create_on: list[str], delete: list[Object], update_hash: str) -> Exception | None:
        meta, template = ds["metadata"], ds["spec"]["template"]
        spec = with_tolerations(template["spec"])
        template_meta = template.get("metadata") or {}
        labels = {**(template_meta.get("labels") or {}), HASH_LABEL: update_hash, GENERATION_LABEL: str(meta.get("generation", 1))}
        self.expectations.expect_creations(key, len(create_on))
        self.expectations.expect_deletions(key, [p["metadata"]["name"] for p in delete])

        async def create(i: int) -> None:
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "generateName": f"{meta['name']}-",
                    **{k: v for k, v in template_meta.items() if k in ("annotations", "finalizers") and v},
                    "labels": labels,
                    "ownerReferences": [owner_reference(ds, "apps/v1", "DaemonSet")],
                },
                "spec": pinned(spec, create_on[i]),
            }
            try:
                made = await self.client.create("v1/pods", pod, meta["namespace"])
            except ApiError as e:
                self.expectations.created(key)
                self.recorder.event(ds, "Warning", "FailedCreate", f"Error creating: {e.message}")
                raise
            self.recorder.event(ds, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")

        async def remove(pod: Object) -> None:
            name = pod["metadata"]["name"]
            try:
                await self.client.delete("v1/pods", name, meta["namespace"], uid=uid(pod))
            except ApiError as e:
                self.expectations.deleted(key, name)
                if e.code == 404:
                    return
                self.recorder.event(ds, "Warning", "FailedDelete", f"Error deleting: {e.message}")
                raise
            self.recorder.event(ds, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")

        tried, failure = await slow_start(len(create_on), create)
        self.expectations.created(key, len(create_on) - tried)
        results = await asyncio.gather(*(remove(p) for p in delete), return_exceptions=True)
        return failure or next((r for r in results if isinstance(r, Exception)), None)

    async def _truncate(self, ds: Object, past: History) -> None:
        in_use = {hash_of(p) for p in self.owners.of(uid(ds))}
        limit = ds["spec"].get("revisionHistoryLimit")
        await history.truncate(self.client, past, in_use, 10 if limit is None else limit)

    # --- status ---

    async def _write_status(self, key: str, ds: Object, update_hash: str, collisions: int) -> float | None:
        status, again = self._status(ds, update_hash)
        old = ds.get("status") or {}
        if collisions:
            status["collisionCount"] = collisions
        if old.get("conditions"):
            status["conditions"] = old["conditions"]
        if {k: v for k, v in status.items() if v} == {k: v for k, v in old.items() if v} and "desiredNumberScheduled" in old:
            return again
        if self.behind(ds):
            return again
        wait = self.pace.wait(key)
        if wait > 0 and old.get("observedGeneration") == status["observedGeneration"]:
            return wait
        self.pace.spend(key)
        self.wrote(await self.client.update(SETS, {**ds, "status": status}, subresource="status"))
        return again

    def _status(self, ds: Object, update_hash: str) -> tuple[Object, float | None]:
        spec, min_ready, now = with_tolerations(ds["spec"]["template"]["spec"]), ds["spec"].get("minReadySeconds") or 0, clock.now()
        placed = by_node(self.owners.of(uid(ds)))
        desired = current = misscheduled = ready = updated = available = 0
        waits: list[float] = []
        for node in self.nodes.list():
            wanted, _ = should_run(spec, node)
            here = [p for p in placed.get(node["metadata"]["name"], ()) if not is_terminal(p)]
            desired += wanted
            current += bool(wanted and here)
            misscheduled += bool(here and not wanted)
            if wanted and here:
                newest = sorted(here, key=lambda p: (hash_of(p) == update_hash, is_ready(p)))[-1]
                ready += any(is_ready(p) for p in here)
                updated += hash_of(newest) == update_hash
                available += any(is_available(p, min_ready, now) for p in here)
                waits += [since + min_ready - now for p in here if (since := ready_since(p)) is not None and since + min_ready > now]
        status = {
            "currentNumberScheduled": current, "numberMisscheduled": misscheduled, "desiredNumberScheduled": desired, "numberReady": ready,
            "observedGeneration": ds["metadata"].get("generation", 1), "updatedNumberScheduled": updated, "numberAvailable": available,
            "numberUnavailable": desired - available,
        }  # fmt: skip
        required = ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady")
        return {k: v for k, v in status.items() if v or k in required}, (min(waits) + 0.001 if waits else None)


def _limits(ds: Object, count: int) -> tuple[int, int]:
    """(maxUnavailable, maxSurge) in pods; the first is at least one when there is no surge."""
    rolling: dict[str, Any] = (ds["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    surge = resolve_int_or_percent(rolling.get("maxSurge", 0), count, round_up=True)
    unavailable = resolve_int_or_percent(rolling.get("maxUnavailable", 1), count, round_up=True)
    return (max(unavailable, 1) if not surge else unavailable), surge
