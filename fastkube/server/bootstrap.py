"""What a cluster holds before anybody asks: namespaces, default roles, priority classes, flow schemas, the service `kubernetes`.

Reconciled at every start: what is missing is made; roles and bindings keep what was added to them but get back what they need (unless annotated
rbac.authorization.kubernetes.io/autoupdate=false), as upstream's post-start hooks do. Idempotent: a second start writes nothing.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib.resources
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastkube.api import resources
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.runtime import clock
from fastkube.server import flowdefaults
from fastkube.server.allocators import SERVICE_CIDR_DEFAULT
from fastkube.server.authz.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, ROLE_BINDINGS, ROLES, aggregated
from fastkube.server.authz.rules import uncovered
from fastkube.server.config import StartError
from fastkube.server.reader import Object, Reader
from fastkube.server.writer import Writer

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
CONFLICT_RETRIES_MAX = 5

# (wanted, stored) -> what to write, or None when the stored one will do
Reconcile = Callable[[Object, Object], Object | None]


@dataclass(slots=True)
class Config:
    advertise_address: str = "127.0.0.1"
    secure_port: int = 6443
    service_cidr: str = SERVICE_CIDR_DEFAULT
    client_ca: Path | None = None
    front_proxy_ca: Path | None = None

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.advertise_address)
        except ValueError as e:
            raise StartError(f'--advertise-address: "{self.advertise_address}" is no IP address') from e

    @property
    def service_ip(self) -> str:
        """The first address of the service range: the service `kubernetes`."""
        network = ipaddress.ip_network(self.service_cidr)
        return str(network.network_address + 1)


async def run(config: Config, reader: Reader, writer: Writer) -> None:
    """Bring everything about. Namespaces first: they must be there for what lies in them."""
    await _all(_ensure(reader, writer, "v1/namespaces", {"metadata": {"name": n}}, _keep) for n in NAMESPACES)
    await _all(
        [
            *(_ensure(reader, writer, resource, obj, _reconcile_rbac) for resource, obj in rbac_objects()),
            *(_ensure(reader, writer, "scheduling.k8s.io/v1/priorityclasses", c, _keep) for c in priority_classes()),
            *(_ensure(reader, writer, "flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", p, _keep) for p in flowdefaults.priority_levels()),
            *(_ensure(reader, writer, "flowcontrol.apiserver.k8s.io/v1/flowschemas", f, _keep) for f in flowdefaults.flow_schemas()),
            _service_cidr(config, reader, writer),
            _ensure(reader, writer, "v1/services", _service(config), _keep),
            *_published(config, reader, writer),
            _ensure(reader, writer, "v1/configmaps", _authentication(config), _replace("data")),
        ]
    )


async def _all(work: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


async def _ensure(reader: Reader, writer: Writer, resource: Resource | str, wanted: Object, reconcile: Reconcile) -> None:
    """Make `wanted` or bring the stored object up to it; other API servers may be doing the same."""
    if isinstance(resource, str):
        resource = resources.parse(resource)
    wanted = {"apiVersion": resource.api_version, "kind": resource.kind, **wanted}
    meta = wanted["metadata"]
    for _ in range(CONFLICT_RETRIES_MAX):
        stored = reader.get(resource, meta.get("namespace"), meta["name"])
        try:
            if stored is None:
                await writer.create(resource, copy.deepcopy(wanted))
            else:
                changed = reconcile(wanted, stored)
                if changed is not None:
                    await writer.update(resource, changed)
            return
        except ApiError as e:
            if e.reason not in ("AlreadyExists", "Conflict"):
                raise
    raise RuntimeError(f"{resource} {meta['name']} keeps changing")


def _keep(wanted: Object, stored: Object) -> Object | None:
    return None


def _replace(*fields: str) -> Reconcile:
    def reconcile(wanted: Object, stored: Object) -> Object | None:
        if all(_covers(stored.get(f), wanted.get(f)) for f in fields):
            return None
        return {**copy.deepcopy(stored), **{f: copy.deepcopy(wanted.get(f)) for f in fields}}

    return reconcile


def _covers(stored: Any, wanted: Any) -> bool:
    """Whether `stored` says what `wanted` says; it may say more (defaults)."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        return all(_covers(stored.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list) and isinstance(stored, list):
        return len(wanted) == len(stored) and all(_covers(s, w) for s, w in zip(stored, wanted, strict=True))
    return stored == wanted


# -- RBAC -----------------------------------------------------------------------------------------------------------------------------------


@functools.cache
def rbac_objects() -> tuple[tuple[Resource, Object], ...]:
    """Upstream's default roles and bindings, aggregated ones filled in, and the few that our own parts need."""
    kinds = {"ClusterRole": CLUSTER_ROLES, "ClusterRoleBinding": CLUSTER_ROLE_BINDINGS, "Role": ROLES, "RoleBinding": ROLE_BINDINGS}
    rows = orjson.loads((importlib.resources.files("fastkube.server.data") / "rbac.json").read_bytes()) + _own_rbac()
    cluster_roles = [r for r in rows if r["kind"] == "ClusterRole"]
    for role in cluster_roles:
        if role.get("aggregationRule"):
            role["rules"] = aggregated(role, cluster_roles)
    return tuple((kinds[row["kind"]], row) for row in rows)


def _own_rbac() -> list[Object]:
    """The DNS server's roles (as CoreDNS's manifest has it, and to publish its own Service) and what lets the API server speak to node agents."""
    lists = {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]}
    slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    version, annotations = f"{GROUP}/v1", {AUTOUPDATE: "true"}
    return [
        {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "system:coredns", "annotations": dict(annotations)}, "rules": [lists, slices]},
        {
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": "system:coredns", "annotations": dict(annotations)},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        },
        {
            "apiVersion": version, "kind": "Role", "metadata": {"name": "fastkube:dns-publisher", "namespace": "kube-system", "annotations": dict(annotations)},
            "rules": [
                {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create", "update"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "create", "update"]},
            ],
        },
        {
            "apiVersion": version, "kind": "RoleBinding", "metadata": {"name": "fastkube:dns-publisher", "namespace": "kube-system", "annotations": dict(annotations)},
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "fastkube:dns-publisher"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        },
        {
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": "fastkube:apiserver-kubelet-client", "annotations": dict(annotations)},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "system:kubelet-api-admin"},
            "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "kube-apiserver-kubelet-client"}],
        },
    ]  # fmt: skip


def _reconcile_rbac(wanted: Object, stored: Object) -> Object | None:
    """Rules, subjects, labels and annotations that are missing are added (upstream's reconciliation: extra ones stay)."""
    if (stored["metadata"].get("annotations") or {}).get(AUTOUPDATE) == "false":
        return None
    changed = copy.deepcopy(stored)
    for field in ("labels", "annotations"):
        missing = {k: v for k, v in (wanted["metadata"].get(field) or {}).items() if k not in (stored["metadata"].get(field) or {})}
        if missing:
            changed["metadata"][field] = {**(stored["metadata"].get(field) or {}), **missing}
    if not wanted.get("aggregationRule"):
        rules = uncovered(stored.get("rules") or [], wanted.get("rules") or [])
        if rules:
            changed["rules"] = [*(stored.get("rules") or []), *rules]
    elif not stored.get("aggregationRule"):
        changed["aggregationRule"] = wanted["aggregationRule"]
    subjects = [s for s in wanted.get("subjects") or () if not any(_covers(have, s) for have in stored.get("subjects") or ())]
    if subjects:
        changed["subjects"] = [*(stored.get("subjects") or ()), *subjects]
    return changed if changed != stored else None


# -- the rest -------------------------------------------------------------------------------------------------------------------------------


def priority_classes() -> list[Object]:
    return [
        {
            "metadata": {"name": "system-node-critical"},
            "value": 2000001000,
            "description": "Used for system critical pods that must not be moved from their current node.",
        },
        {
            "metadata": {"name": "system-cluster-critical"},
            "value": 2000000000,
            "description": "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        },
    ]


async def _service_cidr(config: Config, reader: Reader, writer: Writer) -> None:
    resource = resources.parse("networking.k8s.io/v1/servicecidrs")
    await _ensure(reader, writer, resource, {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [config.service_cidr]}}, _keep)
    stored = reader.get(resource, None, "kubernetes")
    if stored is None or (stored.get("status") or {}).get("conditions"):
        return
    ready = {"type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": clock.rfc3339()}
    try:
        await writer.update(resource, {**copy.deepcopy(stored), "status": {"conditions": [ready]}}, "status")
    except ApiError as e:
        if e.reason != "Conflict":  # another API server was faster
            raise


def _published(config: Config, reader: Reader, writer: Writer) -> list[Awaitable[None]]:
    """Where the service `kubernetes` leads: nowhere, as upstream, when pods could not reach it (a loopback address, a port not yet known)."""
    if ipaddress.ip_address(config.advertise_address).is_loopback or not config.secure_port:
        return []
    return [
        _ensure(reader, writer, "v1/endpoints", _endpoints(config), _replace("subsets")),
        _ensure(reader, writer, "discovery.k8s.io/v1/endpointslices", _endpoint_slice(config), _replace("endpoints", "ports")),
    ]


def _service(config: Config) -> Object:
    return {
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": config.service_ip,
            "clusterIPs": [config.service_ip],
            "ipFamilyPolicy": "SingleStack",
            "ipFamilies": ["IPv6" if ":" in config.service_ip else "IPv4"],
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.secure_port or 6443}],
        },
    }


def _endpoints(config: Config) -> Object:
    return {
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": config.advertise_address}], "ports": [{"name": "https", "port": config.secure_port, "protocol": "TCP"}]}],
    }


def _endpoint_slice(config: Config) -> Object:
    return {
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv6" if ":" in config.advertise_address else "IPv4",
        "endpoints": [{"addresses": [config.advertise_address], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": config.secure_port, "protocol": "TCP"}],
    }


def _authentication(config: Config) -> Object:
    """How extension API servers are to verify clients and the front proxy."""
    data: dict[str, str] = {}
    if config.client_ca:
        data["client-ca-file"] = config.client_ca.read_text()
    if config.front_proxy_ca:
        data |= {
            "requestheader-allowed-names": '["front-proxy-client"]',
            "requestheader-client-ca-file": config.front_proxy_ca.read_text(),
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-uid-headers": '["X-Remote-Uid"]',
            "requestheader-username-headers": '["X-Remote-User"]',
        }
    return {"metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"}, "data": data}
