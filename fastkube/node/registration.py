"""The node in the API: registered, kept up to date, and its lease renewed.

Laws: the lease is renewed each LEASE_RENEW_SECONDS and says that the node lives; the status is written when something in it changed, and
each STATUS_REPORT_SECONDS anyway; conditions and labels of others are left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastkube import KUBERNETES_VERSION
from fastkube.api.errors import ApiError
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.node.config import NodeConfig
from fastkube.node.cri import Cri, CriError
from fastkube.node.machine import Machine
from fastkube.node.statuses import merge_patch, same
from fastkube.runtime import clock, entropy, logs

LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
LEASE_RENEW_SECONDS = 10.0
STATUS_SECONDS = 10.0
STATUS_REPORT_SECONDS = 300.0
RETRY_SECONDS = 1.0
IMAGES_MAX = 50
NAMES_PER_IMAGE_MAX = 5
CONFLICTS_MAX = 5

log = logs.get("registration")

Object = dict[str, Any]
Conditions = Callable[[], list[tuple[str, str, str, str]]]  # (type, status, reason, message)


class Registration:
    """`informer` follows this node's object; `conditions` says how the node is now."""

    def __init__(self, config: NodeConfig, client: Client, cri: Cri, machine: Machine, informer: Informer, conditions: Conditions) -> None:
        self.config = config
        self.client = client
        self.cri = cri
        self.machine = machine
        self.informer = informer
        self.conditions = conditions
        self.changed = asyncio.Event()  # set: look at the status now
        self._lease: Object | None = None
        self._runtime_version = ""
        self._reported_at = -1e18
        self._written: Object | None = None

    def capacity(self) -> dict[str, str]:
        machine = self.machine
        out = {
            "cpu": str(machine.cpus),
            "ephemeral-storage": f"{machine.storage // 1024}Ki",
            "memory": f"{machine.memory // 1024}Ki",
            "pods": str(self.config.max_pods),
        }
        return out | {f"hugepages-{size}": "0" if not total else f"{total >> 20}Mi" for size, total in machine.huge_pages.items()}

    def allocatable(self) -> dict[str, str]:
        """Capacity less what is reserved for the system, the agent and the hard eviction thresholds."""
        machine, config = self.machine, self.config
        out = self.capacity()
        millicores = machine.cpus * 1000 - round(config.reserved("cpu") * 1000)
        out["cpu"] = str(millicores // 1000) if millicores % 1000 == 0 else f"{millicores}m"
        out["memory"] = f"{max(0, machine.memory - int(config.reserved('memory')) - config.eviction_memory_bytes) // 1024}Ki"
        out["ephemeral-storage"] = str(max(0, int(machine.storage * (1 - config.eviction_nodefs_share)) - int(config.reserved("ephemeral-storage"))))
        return out

    # --- the node object ---

    async def register(self) -> None:
        """Make the node, or bring its labels up to date; tries until it works."""
        while True:
            try:
                return await self._register()
            except ApiError as e:
                log.warning("could not register the node, trying again", node=self.config.name, error=e.message)
                await asyncio.sleep(entropy.jitter(RETRY_SECONDS))

    async def _register(self) -> None:
        config = self.config
        labels = self._labels()
        try:
            node = await self.client.get("v1/nodes", config.name)
        except ApiError as e:
            if e.code != 404:
                raise
            meta = {"name": config.name, "labels": labels, "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}
            spec: Object = {}
            if config.register_with_taints:
                spec["taints"] = config.register_with_taints
            if config.provider_id:
                spec["providerID"] = config.provider_id
            await self.client.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": spec, "status": await self._status(None)})
            log.info("node registered", node=config.name)
            return
        have = node["metadata"].get("labels") or {}
        if any(have.get(k) != v for k, v in labels.items()):
            await self.client.patch("v1/nodes", config.name, {"metadata": {"labels": labels}})

    def _labels(self) -> dict[str, str]:
        config, architecture = self.config, self.machine.architecture
        return {
            "beta.kubernetes.io/arch": architecture,
            "beta.kubernetes.io/os": "linux",
            "kubernetes.io/arch": architecture,
            "kubernetes.io/hostname": config.hostname,
            "kubernetes.io/os": "linux",
            **config.node_labels,
        }

    # --- its status ---

    async def report(self) -> None:
        """Task: the status, whenever it changed and from time to time."""
        while True:
            try:
                await self._report()
                pause = STATUS_SECONDS
            except (ApiError, CriError) as e:
                log.warning("could not write the node's status, trying again", error=str(e))
                pause = RETRY_SECONDS
            try:
                async with asyncio.timeout(entropy.jitter(pause, 0.04)):
                    await self.changed.wait()
            except TimeoutError:
                pass
            self.changed.clear()

    async def _report(self) -> None:
        node = self._newest(self.informer.get(None, self.config.name))
        if node is None:
            if self.informer.has_synced:
                await self._register()
            return
        for _ in range(CONFLICTS_MAX):
            wanted = await self._status(node)
            known = node.get("status") or {}
            due = clock.monotonic() - self._reported_at >= STATUS_REPORT_SECONDS
            if not due and same(_without_heartbeats(wanted), _without_heartbeats(known)):
                return
            version = {"resourceVersion": node["metadata"]["resourceVersion"]}
            try:
                patch = {"metadata": version, "status": merge_patch(known, wanted)}
                self._written = await self.client.patch("v1/nodes", self.config.name, patch, subresource="status")
                self._reported_at = clock.monotonic()
                return
            except ApiError as e:
                if e.code != 409:
                    raise
                node = await self.client.get("v1/nodes", self.config.name)

    def _newest(self, node: Object | None) -> Object | None:
        written = self._written
        if node is None or written is None or written["metadata"].get("uid") != node["metadata"].get("uid"):
            return node
        seen, ours = node["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]
        return written if seen.isdecimal() and ours.isdecimal() and int(ours) > int(seen) else node

    async def _status(self, node: Object | None) -> Object:
        known: Object = (node or {}).get("status") or {}
        if not self._runtime_version:
            version = await self.cri.version()
            self._runtime_version = f"{version.runtime_name}://{version.runtime_version}"
        addresses = [{"type": "InternalIP", "address": ip} for ip in self.config.node_ips] + [{"type": "Hostname", "address": self.config.hostname}]
        return {
            **{k: v for k, v in known.items() if k not in ("phase",)},
            "capacity": {**_extended(known.get("capacity")), **self.capacity()},
            "allocatable": {**_extended(known.get("allocatable")), **self.allocatable()},
            "conditions": self._conditions(known.get("conditions") or []),
            "addresses": addresses,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.config.port}},
            "nodeInfo": {
                **self.machine.info,
                "containerRuntimeVersion": self._runtime_version,
                "kubeletVersion": f"v{KUBERNETES_VERSION.lstrip('v')}",
                "kubeProxyVersion": "",
            },
            "images": await self._images(),
        }

    def _conditions(self, known: list[Object]) -> list[Object]:
        stamp = clock.rfc3339()
        by_type = {c["type"]: c for c in known}
        out = []
        for kind, state, reason, message in self.conditions():
            old = by_type.get(kind)
            since = old["lastTransitionTime"] if old and old.get("status") == state and old.get("lastTransitionTime") else stamp
            out.append({"type": kind, "status": state, "lastHeartbeatTime": stamp, "lastTransitionTime": since, "reason": reason, "message": message})
        mine = {c["type"] for c in out}
        return [c for c in known if c["type"] not in mine] + out

    async def _images(self) -> list[Object]:
        images = sorted(await self.cri.list_images(), key=lambda i: (-i.size, i.id))[:IMAGES_MAX]
        return [{"names": [*i.repo_digests, *i.repo_tags][:NAMES_PER_IMAGE_MAX] or [i.id], "sizeBytes": i.size} for i in images]

    # --- the lease ---

    async def renew(self) -> None:
        """Task: the node's lease."""
        while True:
            try:
                await self._renew()
                pause = LEASE_RENEW_SECONDS
            except ApiError as e:
                log.warning("could not renew the node's lease, trying again", error=e.message)
                self._lease = None
                pause = RETRY_SECONDS
            await asyncio.sleep(entropy.jitter(pause, 0.04))

    async def _renew(self) -> None:
        name = self.config.name
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": clock.rfc3339_micro()}
        if self._lease is None:
            try:
                self._lease = await self.client.get("coordination.k8s.io/v1/leases", name, LEASE_NAMESPACE)
            except ApiError as e:
                if e.code != 404:
                    raise
                await self._make_lease(spec)
                return
        lease = {**self._lease, "spec": {**self._lease["spec"], **spec}}
        self._lease = await self.client.update("coordination.k8s.io/v1/leases", lease)

    async def _make_lease(self, spec: Object) -> None:
        name = self.config.name
        node = self.informer.get(None, name)
        meta: Object = {"name": name, "namespace": LEASE_NAMESPACE}
        if node is not None:
            meta["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}]
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
        self._lease = await self.client.create("coordination.k8s.io/v1/leases", lease, LEASE_NAMESPACE)


def _without_heartbeats(status: Object) -> Object:
    conditions = [{k: v for k, v in c.items() if k != "lastHeartbeatTime"} for c in status.get("conditions") or ()]
    return {**status, "conditions": sorted(conditions, key=lambda c: c["type"])}


def _extended(resources: Object | None) -> Object:
    """Extended resources (with a domain) that others advertise on the node."""
    return {k: v for k, v in (resources or {}).items() if "/" in k}
