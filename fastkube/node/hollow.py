"""Hollow nodes: nodes that are objects only. No root, no containers; for load tests and for trying things out (as upstream's kubemark).

What they do as real ones do: register, renew their Leases, refresh their status, run the pods bound to them (Running and Ready, with an address
of their own, by one status patch each), and end pods that are deleted. What they do not: anything inside a pod. So containers run
for ever, unless the pod says otherwise by annotation:

    fastkube.dev/hollow-exit-after: "5"    seconds after which its containers exit (restartPolicy Always: are restarted once)
    fastkube.dev/hollow-exit-code: "1"     with which code [default: 0]

One informer watches the pods of all nodes; workers, bounded in number, write. Node addresses are loopback ones: what an API server might
try to reach there (logs, exec) fails at once and never leaves the machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson

from fastkube import KUBERNETES_VERSION
from fastkube.api.errors import ApiError
from fastkube.client import kubeconfig
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor

NODES_MAX = 10_000
LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
STATUS_SECONDS = 300.0
WRITERS_MAX = 32  # requests under way
REGISTERERS_MAX = 16
RETRIES_MAX = 5
EXIT_AFTER = "fastkube.dev/hollow-exit-after"
EXIT_CODE = "fastkube.dev/hollow-exit-code"
FIRST_POD_NETWORK = int(ipaddress.ip_address("10.244.0.0"))
MORE_POD_NETWORKS = int(ipaddress.ip_address("10.128.0.0"))  # past 256 nodes
FIRST_NODE_ADDRESS = int(ipaddress.ip_address("127.64.0.1"))

Object = dict[str, Any]

log = logs.get("hollow")

_MERGE = {"Content-Type": "application/merge-patch+json"}
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Config:
    kubeconfig: str
    nodes: int = 1
    name_prefix: str = "hollow-"
    cpu: str = "4"
    memory: str = "32Gi"
    pods: int = 110


# --- pure: what is written ---


def pod_network(i: int) -> str:
    """The pod range of the i-th node, a /24."""
    start = FIRST_POD_NETWORK + i * 256 if i < 256 else MORE_POD_NETWORKS + (i - 256) * 256
    return f"{ipaddress.ip_address(start)}/24"


def node_address(i: int) -> str:
    return str(ipaddress.ip_address(FIRST_NODE_ADDRESS + i))


def node_conditions(now: str, since: str) -> list[Object]:
    rows = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    return [
        {"type": type_, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": since}
        for type_, status, reason, message in rows
    ]


def node_object(config: Config, i: int, now: str) -> Object:
    name, cidr = f"{config.name_prefix}{i}", pod_network(i)
    capacity = {"cpu": config.cpu, "memory": config.memory, "pods": str(config.pods), "ephemeral-storage": "100Gi"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "fastkube.dev/hollow": "true"},
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": node_conditions(now, now),
            "addresses": [{"type": "InternalIP", "address": node_address(i)}, {"type": "Hostname", "address": name}],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "hollow", "osImage": "hollow", "containerRuntimeVersion": "hollow://1",
                "kubeletVersion": f"v{KUBERNETES_VERSION.removeprefix('v')}", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    }  # fmt: skip


def slim(pod: Object) -> Object:
    """What is read of a pod; the rest is not kept."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    annotations = meta.get("annotations") or {}
    kept = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion", "deletionTimestamp") if k in meta}
    kept["annotations"] = {k: annotations[k] for k in (EXIT_AFTER, EXIT_CODE) if k in annotations}
    brief = {k: [(c["name"], c.get("image", ""), c.get("restartPolicy")) for c in spec.get(k) or ()] for k in ("containers", "initContainers")}
    return {
        "metadata": kept,
        "spec": {
            **brief,
            "nodeName": spec.get("nodeName", ""),
            "restartPolicy": spec.get("restartPolicy", "Always"),
            "readinessGates": [gate["conditionType"] for gate in spec.get("readinessGates") or ()],
        },
        "status": {k: status[k] for k in ("phase", "podIP", "startTime", "conditions") if k in status},
    }


def pod_status(pod: Object, node_ip: str, ip: str, now: str, exit_code: int | None = None) -> Object:
    """The status of a slim pod whose containers run, or have exited with `exit_code`. Everything a merge patch replaces is there whole."""
    spec, old = pod["spec"], pod["status"]
    start = old.get("startTime") or now
    policy = spec["restartPolicy"]
    over = exit_code is not None and (policy == "Never" or (policy == "OnFailure" and exit_code == 0))
    ended = exit_code is not None
    restarts = 1 if ended and not over else 0
    phase = "Running" if not over else "Succeeded" if exit_code == 0 else "Failed"
    uid = pod["metadata"]["uid"]
    exited = _terminated(uid, exit_code or 0, start, now)
    containers = [
        _container(
            uid,
            name,
            image,
            {"terminated": exited} if over else {"running": {"startedAt": now if restarts else start}},
            not over,
            restarts,
            exited if restarts else None,
        )
        for name, image, _ in spec["containers"]
    ]
    inits = [
        _container(uid, name, image, {"running": {"startedAt": start}}, True, 0)
        if restart == "Always" and not over
        else _container(uid, name, image, {"terminated": _terminated(uid, 0, start, start)}, True, 0)
        for name, image, restart in spec["initContainers"]
    ]
    status = {
        "phase": phase,
        "conditions": _conditions(pod, over, now),
        "hostIP": node_ip, "hostIPs": [{"ip": node_ip}],
        "podIP": ip, "podIPs": [{"ip": ip}],
        "startTime": start,
        "containerStatuses": containers,
    }  # fmt: skip
    if inits:
        status["initContainerStatuses"] = inits
    return status


def _terminated(uid: str, code: int, start: str, now: str) -> Object:
    reason = "Completed" if code == 0 else "Error"
    return {"exitCode": code, "reason": reason, "startedAt": start, "finishedAt": now, "containerID": f"hollow://{uid}"}


def _container(uid: str, name: str, image: str, state: Object, ready: bool, restarts: int, last: Object | None = None) -> Object:
    return {
        "name": name, "image": image, "imageID": f"hollow://{image}", "containerID": f"hollow://{uid}/{name}", "restartCount": restarts,
        "state": state, "lastState": {"terminated": last} if last else {}, "ready": ready, "started": "running" in state,
    }  # fmt: skip


def _conditions(pod: Object, over: bool, now: str) -> list[Object]:
    old = {c["type"]: c for c in pod["status"].get("conditions") or ()}
    gated = all(old.get(gate, {}).get("status") == "True" for gate in pod["spec"]["readinessGates"])
    rows = {"PodReadyToStartContainers": not over, "Initialized": True, "Ready": not over and gated, "ContainersReady": not over, "PodScheduled": True}
    out = []
    for type_, holds in rows.items():
        status = "True" if holds else "False"
        row = {"type": type_, "status": status, "lastProbeTime": None, "lastTransitionTime": now}
        if old.get(type_, {}).get("status") == status:
            row["lastTransitionTime"] = old[type_].get("lastTransitionTime", now)
        if over and not holds:
            row["reason"] = "PodCompleted"
        elif not holds:
            row["reason"] = "ReadinessGatesNotReady"
        out.append(row)
    return out + [condition for type_, condition in old.items() if type_ not in rows]


def needs_start(pod: Object) -> bool:
    status = pod["status"]
    if status.get("phase", "Pending") == "Pending":
        return True
    if status["phase"] != "Running" or not pod["spec"]["readinessGates"]:
        return False
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    gated = all(conditions.get(gate) == "True" for gate in pod["spec"]["readinessGates"])
    return (conditions.get("Ready") == "True") != gated


# --- the driver ---


class Node:
    """One hollow node: its Lease, and the addresses its pods have."""

    __slots__ = ("address", "addresses", "free", "lease", "name", "ready_since", "uid")

    def __init__(self, name: str, address: str, cidr: str, uid: str = "") -> None:
        self.name, self.address, self.uid = name, address, uid
        network = ipaddress.ip_network(cidr)
        self.free = deque(range(int(network.network_address) + 2, int(network.broadcast_address)))
        self.addresses: dict[str, int] = {}  # pod uid -> address
        self.lease: Object = {}
        self.ready_since = ""

    def take(self, uid: str, known: str = "") -> str:
        """The pod's address: the one it has, else the one free for longest."""
        if uid not in self.addresses:
            number = int(ipaddress.ip_address(known)) if known else 0
            if number in self.free:
                self.free.remove(number)
            elif not number or not self.free:
                number = self.free.popleft() if self.free else 0
            if not number:
                return ""
            self.addresses[uid] = number
        return str(ipaddress.ip_address(self.addresses[uid]))

    def release(self, uid: str) -> None:
        number = self.addresses.pop(uid, None)
        if number is not None:
            self.free.append(number)


class Hollow:
    """All nodes of this process and their pods."""

    def __init__(self, client: Client, config: Config) -> None:
        self.client, self.config = client, config
        self.nodes: dict[str, Node] = {}
        self.pods = Informer(client, "v1/pods", fields="spec.nodeName!=", transform=slim)
        self.pods.add_handler(self._seen, lambda _, pod: self._seen(pod), self._gone)
        self._queue: deque[tuple[str, Object]] = deque()  # (what to do, pod); each once, so bounded by the pods there are
        self._pending: set[tuple[str, str]] = set()  # (what to do, pod uid) queued or under way
        self._wake = asyncio.Event()
        self._exiting: dict[str, asyncio.TimerHandle] = {}
        self._ended: set[str] = set()  # uids whose containers have exited

    async def register(self) -> None:
        """Make the Node objects and Leases; those that are there already are taken over."""
        limit = asyncio.Semaphore(REGISTERERS_MAX)

        async def one(i: int) -> None:
            async with limit:
                await self._register(i)

        await asyncio.gather(*(one(i) for i in range(self.config.nodes)))
        log.info("nodes registered", nodes=len(self.nodes))

    async def _register(self, i: int) -> None:
        wanted = node_object(self.config, i, clock.rfc3339())
        name = wanted["metadata"]["name"]
        while True:
            try:
                try:
                    found = await self.client.create("v1/nodes", wanted)
                except ApiError as e:
                    if e.code != 409:
                        raise
                    found = await self.client.get("v1/nodes", name)
                if not any(c["type"] == "Ready" and c["status"] == "True" for c in (found.get("status") or {}).get("conditions") or ()):
                    await self.client.patch("v1/nodes", name, {"status": wanted["status"]}, subresource="status")
                node = Node(name, node_address(i), found["spec"].get("podCIDR") or pod_network(i), found["metadata"]["uid"])
                node.ready_since = clock.rfc3339()
                await self._renew(node)
                self.nodes[name] = node
                return
            except ApiError as e:
                log.warning("cannot register yet", node=name, error=e.message)
                await asyncio.sleep(entropy.jitter(1.0, 1.0))

    async def renew(self) -> None:
        """Task body: renew every Lease once in RENEW_SECONDS, evenly spread, and refresh every status once in STATUS_SECONDS."""
        refreshed = {name: clock.monotonic() - STATUS_SECONDS * i / len(self.nodes) for i, name in enumerate(self.nodes)}
        while True:
            started = clock.monotonic()
            for i, node in enumerate(self.nodes.values()):
                await asyncio.sleep(max(0.0, started + RENEW_SECONDS * i / len(self.nodes) - clock.monotonic()))
                try:
                    await self._renew(node)
                    if clock.monotonic() - refreshed[node.name] >= STATUS_SECONDS:
                        refreshed[node.name] = clock.monotonic()
                        conditions = node_conditions(clock.rfc3339(), node.ready_since)
                        await self._patch(f"/api/v1/nodes/{node.name}/status", {"status": {"conditions": conditions}})
                except ApiError as e:
                    log.warning("heartbeat failed", node=node.name, error=e.message)
                    node.lease = {}
            await asyncio.sleep(max(0.0, started + RENEW_SECONDS - clock.monotonic()))

    async def _renew(self, node: Node) -> None:
        resource, namespace = "coordination.k8s.io/v1/leases", "kube-node-lease"
        if not node.lease:
            spec = {"holderIdentity": node.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": clock.rfc3339_micro()}
            owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}  # so that it goes with the node
            meta = {"name": node.name, "namespace": namespace, "ownerReferences": [owner]}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
            try:
                node.lease = await self.client.create(resource, lease)
                return
            except ApiError as e:
                if e.code != 409:
                    raise
                node.lease = await self.client.get(resource, node.name, namespace)
        node.lease["spec"]["renewTime"] = clock.rfc3339_micro()
        node.lease["spec"]["holderIdentity"] = node.name
        node.lease = await self.client.update(resource, node.lease)

    # pods

    def _seen(self, pod: Object) -> None:
        node = self.nodes.get(pod["spec"]["nodeName"])
        if node is None:
            return
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            self._do("delete", pod)
        elif uid not in self._ended:
            if pod["status"].get("podIP"):
                node.take(uid, pod["status"]["podIP"])
            if needs_start(pod):
                self._do("start", pod)
            elif pod["status"].get("phase") == "Running":
                self._plan_exit(pod)

    def _gone(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        self._ended.discard(uid)
        timer = self._exiting.pop(uid, None)
        if timer:
            timer.cancel()
        node = self.nodes.get(pod["spec"]["nodeName"])
        if node:
            node.release(uid)

    def _plan_exit(self, pod: Object) -> None:
        text, uid = pod["metadata"]["annotations"].get(EXIT_AFTER), pod["metadata"]["uid"]
        if not text or uid in self._exiting:
            return
        try:
            seconds = float(text.removesuffix("s"))
            started = clock.parse(pod["status"]["startTime"])
        except (ValueError, KeyError):
            log.warning("no number of seconds", annotation=EXIT_AFTER, value=text, pod=pod["metadata"]["name"])
            seconds, started = float("inf"), 0.0
        if seconds < 1e9:
            delay = max(0.0, started + seconds - clock.now())
            self._exiting[uid] = asyncio.get_running_loop().call_later(delay, self._exit, pod)

    def _exit(self, pod: Object) -> None:
        self._ended.add(pod["metadata"]["uid"])
        self._do("exit", pod)

    def _do(self, what: str, pod: Object) -> None:
        item = (what, pod["metadata"]["uid"])
        if item not in self._pending:
            self._pending.add(item)
            self._queue.append((what, pod))
            self._wake.set()

    async def work(self) -> None:
        """Task body of one writer."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            what, pod = self._queue.popleft()
            for _ in range(RETRIES_MAX):
                try:
                    await self._write(what, pod)
                    break
                except ApiError as e:
                    if e.code in (404, 409):  # gone, or another pod of the same name by now
                        break
                    log.warning("write failed", what=what, pod=pod["metadata"]["name"], error=e.message)
                    await asyncio.sleep(entropy.jitter(0.5, 1.0))
            self._pending.discard((what, pod["metadata"]["uid"]))

    async def _write(self, what: str, pod: Object) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if what == "delete":
            body = orjson.dumps({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})
            status, _, data = await self.client.raw("DELETE", path, body, _JSON)
            _check(status, data)
            return
        node = self.nodes[pod["spec"]["nodeName"]]
        ip = node.take(meta["uid"], pod["status"].get("podIP", ""))
        if not ip:
            log.warning("no address left", node=node.name, pod=meta["name"])
            return
        code = int(meta["annotations"].get(EXIT_CODE, "0")) if what == "exit" else None
        status_object = pod_status(pod, node.address, ip, clock.rfc3339(), code)
        await self._patch(f"{path}/status", {"metadata": {"uid": meta["uid"]}, "status": status_object})

    async def _patch(self, path: str, patch: Object) -> None:
        status, _, data = await self.client.raw("PATCH", path, orjson.dumps(patch), _MERGE)
        _check(status, data)


def _check(status: int, data: bytes) -> None:
    """Raise what a failed answer says; answers that tell nothing new are not even decoded."""
    if status >= 400:
        try:
            raise ApiError.from_status(orjson.loads(data), status)
        except orjson.JSONDecodeError:
            raise ApiError(status, "", data[:200].decode(errors="replace")) from None


async def run(config: Config, stop: asyncio.Event) -> None:
    """Be those nodes until `stop` is set. The Node objects stay, as those of real nodes do."""
    async with kubeconfig.load(config.kubeconfig, user_agent="fastkube-hollow") as client, Supervisor("hollow") as supervisor:
        if not config.nodes:
            await stop.wait()
            return
        hollow = Hollow(client, config)
        registration = asyncio.ensure_future(hollow.register())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait([registration, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await registration
            supervisor.start("pods", hollow.pods.run)
            supervisor.start("heartbeats", hollow.renew)
            for i in range(WRITERS_MAX):
                supervisor.start(f"writer {i}", hollow.work)
            await stop.wait()
        registration.cancel()
        stopped.cancel()
