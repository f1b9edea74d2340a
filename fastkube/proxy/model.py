"""What the kernel should do with packets to Services, from Service, EndpointSlice and Node objects: pure data, no packets.

A `Frontend` is what clients connect to, a `Target` says where its connections go. Laws:
- only endpoints that are ready take traffic; when none is, those that still serve while they terminate (KEP-1669);
- with `internalTrafficPolicy: Local` a cluster IP leads to this node's endpoints only, with `externalTrafficPolicy: Local` so do
  the ways in from outside, while pods and the node itself still reach every endpoint through them;
- topology hints narrow the choice only when every ready endpoint has one and one of them is for us (KEP-2433, KEP-3015);
- a service without endpoints refuses; one that has endpoints, but none this policy allows here, drops;
- headless and ExternalName services, and those of another proxy, have no frontends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
AFFINITY_SECONDS_DEFAULT = 10800

ANY_ADDRESS = {"IPv4": "0.0.0.0", "IPv6": "::"}

Key = tuple[str, str]  # namespace, name of a Service


class Backend(NamedTuple):
    """One endpoint's address; `local`: it is (or may be) a pod of this node, so it may meet itself through the service."""

    ip: str
    port: int
    local: bool = True


class Frontend(NamedTuple):
    """An address that clients connect to. `ip` 0.0.0.0 or :: stands for every address of the node (NodePort)."""

    ip: str
    protocol: str  # tcp, udp, sctp
    port: int

    @property
    def is_node_port(self) -> bool:
        return self.ip in ("0.0.0.0", "::")


class Target(NamedTuple):
    """Where a frontend's connections go."""

    backends: tuple[Backend, ...]
    drop: bool = False  # what an empty `backends` means: False: refuse, True: drop in silence
    outside: tuple[Backend, ...] | None = None  # connections from outside the cluster, where they differ (externalTrafficPolicy: Local)
    external: bool = False  # a way in from outside: the source address is masqueraded unless `outside` is set
    affinity: int = 0  # seconds a client stays with its backend; 0: none
    sources: tuple[str, ...] = ()  # CIDRs that may connect; empty: all


Rules = dict[Frontend, Target]


class Health(NamedTuple):
    """A health-check node port: load balancers ask it whether this node has endpoints."""

    port: int
    local_endpoints: int


class Endpoint(NamedTuple):
    backend: Backend
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str]
    nodes: frozenset[str]


class Model:
    """The objects as last seen. Setters note which services they touch; `changes` works out the rules of those only."""

    def __init__(self, node: str, zone: str = "") -> None:
        self.node = node
        self.zone = zone
        self.services: dict[Key, dict[str, Any]] = {}
        self.slices: dict[Key, dict[str, dict[str, Any]]] = {}
        self.dirty: set[Key] = set()

    def set_service(self, service: dict[str, Any]) -> None:
        key = key_of(service)
        self.services[key] = service
        self.dirty.add(key)

    def delete_service(self, service: dict[str, Any]) -> None:
        key = key_of(service)
        if self.services.pop(key, None) is not None:
            self.dirty.add(key)

    def set_slice(self, slice_: dict[str, Any]) -> None:
        key = _service_of(slice_)
        if key:
            self.slices.setdefault(key, {})[slice_["metadata"]["name"]] = slice_
            self.dirty.add(key)

    def delete_slice(self, slice_: dict[str, Any]) -> None:
        key = _service_of(slice_)
        slices = self.slices.get(key) if key else None
        if key and slices and slices.pop(slice_["metadata"]["name"], None) is not None:
            if not slices:
                del self.slices[key]
            self.dirty.add(key)

    def set_zone(self, zone: str) -> None:
        if zone != self.zone:
            self.zone = zone
            self.dirty.update(self.services)

    def changes(self) -> dict[Key, Rules]:
        """Rules of every service touched since the last call; a service that is gone has none."""
        dirty, self.dirty = self.dirty, set()
        return {key: self.rules(key) for key in sorted(dirty)}

    def rules(self, key: Key) -> Rules:
        service = self.services.get(key)
        return rules_of(service, list(self.slices.get(key, {}).values()), self.node, self.zone) if service else {}

    def health(self) -> dict[Key, Health]:
        """Health-check node ports of all services that ask for one."""
        out = {}
        for key, service in self.services.items():
            port = service["spec"].get("healthCheckNodePort")
            if port and service["spec"].get("externalTrafficPolicy") == "Local" and is_proxied(service):
                addresses = {
                    e.backend.ip for slice_ in self.slices.get(key, {}).values() for e in endpoints_of(slice_, 0, self.node) if e.ready and e.backend.local
                }
                out[key] = Health(port, len(addresses))
        return out


def key_of(obj: dict[str, Any]) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _service_of(slice_: dict[str, Any]) -> Key | None:
    labels = slice_["metadata"].get("labels") or {}
    name = labels.get(SERVICE_NAME_LABEL)
    return (slice_["metadata"].get("namespace", ""), name) if name and HEADLESS_LABEL not in labels else None


def is_proxied(service: dict[str, Any]) -> bool:
    labels, spec = service["metadata"].get("labels") or {}, service["spec"]
    return PROXY_NAME_LABEL not in labels and spec.get("clusterIP") not in (None, "", "None") and spec.get("type") != "ExternalName"


def rules_of(service: dict[str, Any], slices: Iterable[dict[str, Any]], node: str, zone: str) -> Rules:
    """The rules of one service given its EndpointSlices, as node `node` in zone `zone` must apply them."""
    if not is_proxied(service):
        return {}
    spec, status = service["spec"], service.get("status") or {}
    slices = sorted(slices, key=lambda s: s["metadata"]["name"])
    cluster_ips = spec.get("clusterIPs") or [spec["clusterIP"]]
    balancers = [i["ip"] for i in (status.get("loadBalancer") or {}).get("ingress") or [] if i.get("ip") and i.get("ipMode", "VIP") == "VIP"]
    if spec.get("type") != "LoadBalancer":
        balancers = []
    seconds = 0
    if spec.get("sessionAffinity") == "ClientIP":
        seconds = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds") or AFFINITY_SECONDS_DEFAULT
    sources = tuple(s.strip() for s in spec.get("loadBalancerSourceRanges") or ())
    rules: Rules = {}
    for port in spec.get("ports") or ():
        protocol = port.get("protocol", "TCP")
        for family in ("IPv4", "IPv6"):
            mine = [ip for ip in cluster_ips if family_of(ip) == family]
            if not mine:
                continue
            choice = choose(slices, port.get("name") or "", protocol, family, node, zone)
            inside = choice.target(spec.get("internalTrafficPolicy") == "Local", seconds)
            outer = choice.outer_target(spec.get("externalTrafficPolicy") == "Local", seconds)
            for ip in mine:
                rules[Frontend(ip, protocol.lower(), port["port"])] = inside
            for ip in spec.get("externalIPs") or ():
                if family_of(ip) == family:
                    rules.setdefault(Frontend(ip, protocol.lower(), port["port"]), outer)
            for ip in balancers:
                if family_of(ip) == family:
                    allowed = tuple(s for s in sources if family_of(s) == family)
                    rules.setdefault(Frontend(ip, protocol.lower(), port["port"]), outer._replace(sources=allowed))
            if port.get("nodePort"):
                rules[Frontend(ANY_ADDRESS[family], protocol.lower(), port["nodePort"])] = outer
    return rules


class Choice(NamedTuple):
    """The endpoints of one service port that may take traffic, by policy."""

    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]

    def target(self, local_only: bool, affinity: int) -> Target:
        if local_only:
            return Target(self.local, drop=not self.local and bool(self.cluster), affinity=affinity)
        return Target(self.cluster, affinity=affinity)

    def outer_target(self, local_only: bool, affinity: int) -> Target:
        # Pods and the node itself reach all endpoints through any address of the service.
        return Target(self.cluster, outside=self.local if local_only else None, external=True, affinity=affinity)


def choose(slices: Iterable[dict[str, Any]], name: str, protocol: str, family: str, node: str, zone: str) -> Choice:
    """The endpoints of the service port `name`/`protocol` that take traffic, each address once, sorted."""
    all_: dict[Backend, Endpoint] = {}
    for slice_ in slices:
        if slice_.get("addressType", "IPv4") != family:
            continue
        for port in slice_.get("ports") or ():
            if (port.get("name") or "") == name and port.get("protocol", "TCP") == protocol and port.get("port"):
                for e in endpoints_of(slice_, port["port"], node):
                    known = all_.get(e.backend)
                    if known is None or (e.ready, e.serving) > (known.ready, known.serving):
                        all_[e.backend] = e
    endpoints = [all_[b] for b in sorted(all_)]
    ready = [e for e in endpoints if e.ready]
    lingering = [e for e in endpoints if e.serving and e.terminating]
    cluster = hinted(ready, node, zone) or lingering
    local = [e for e in ready if e.backend.local] or [e for e in lingering if e.backend.local]
    return Choice(tuple(e.backend for e in cluster), tuple(e.backend for e in local))


def hinted(ready: list[Endpoint], node: str, zone: str) -> list[Endpoint]:
    """Those of `ready` that topology hints keep for this node."""
    mine = [e for e in ready if node in e.nodes] if all(e.nodes for e in ready) else []
    if not mine and all(e.zones for e in ready):
        mine = [e for e in ready if zone in e.zones]
    return mine or ready


def endpoints_of(slice_: dict[str, Any], port: int, node: str) -> Iterable[Endpoint]:
    for endpoint in slice_.get("endpoints") or ():
        addresses = endpoint.get("addresses")
        if not addresses:
            continue
        conditions = endpoint.get("conditions") or {}
        ready = conditions.get("ready") is not False
        serving = conditions.get("serving")
        hints = endpoint.get("hints") or {}
        yield Endpoint(
            Backend(addresses[0], port, endpoint.get("nodeName") == node),
            ready,
            ready if serving is None else serving,
            bool(conditions.get("terminating")),
            frozenset(z["name"] for z in hints.get("forZones") or ()),
            frozenset(n["name"] for n in hints.get("forNodes") or ()),
        )


def family_of(ip: str) -> str:
    return "IPv6" if ":" in ip else "IPv4"
