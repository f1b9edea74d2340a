"""How Services lie in nftables: flat maps, so that a change is a change of elements and a packet costs the same with 10 or 10,000 services.

The first packet of a connection looks its destination up in the verdict map `services` (or `node-services`, keyed without address, for
node ports) and goes to a *lane*: the chain for frontends with N backends. The lane draws a slot below N and finds the backend in the
map `endpoints` under destination and slot. So a frontend is one element in `services` and N in `endpoints`, and chains exist per N, not
per service. The slot travels from rule to map in the packet's priority (only first packets of connections come here, before any queue);
the mark is needed for masquerading. What else there is:

- `no-endpoints`: refuse or drop, before anything is translated (a filter chain: NAT chains cannot refuse);
- `services-inside`, `services-outside`: externalTrafficPolicy Local; pods and this node take the first, everybody else the second;
- `sources`, `services-guarded`: loadBalancerSourceRanges;
- `local-endpoints`: this node's, for connections whose source address is kept;
- session affinity: a lane `...-for-SECONDS` keeps `affinity` (client and destination -> backend id, entries time out). `picks` (or
  `local-picks`) turns a slot into an id, `backends` an id into an address; an id whose backend is gone is not found there, and the client
  is given a new one;
- `hairpin`: a pod that meets itself must see another source address, or it would answer itself directly.

Pure: from targets to elements, from lanes to text. Keys are tuples, one item per field.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from fastkube.proxy.model import Backend, Frontend, Target, family_of

TABLE = "fastkube-proxy"
LAYOUT_VERSION = 1  # in the table as the name of an empty chain: a table of another version is replaced as a whole
MASQUERADE_MARK = 0x4000  # upstream's bit; other programs of a node know it
HASH_SEED = 0xFA57  # fixed: the same choice after a restart
AFFINITY_CLIENTS_MAX = 1 << 18  # per family; past it clients still get a backend, but not the same again


class Lane(NamedTuple):
    """The chain for frontends of one shape.

    kind: `cluster` (masquerade what comes from outside the pod network), `external` (masquerade all), `direct` (keep the source;
    backends of this node only), or `local-policy`, `guarded` (which look into a second map), `refuse`, `discard`.
    """

    kind: str
    node: bool = False  # keyed without destination address
    width: int = 0  # how many backends
    affinity: int = 0

    @property
    def name(self) -> str:
        name = f"{'node-' if self.node else ''}{self.kind}"
        if self.width:
            name += f"-{self.width}"
        return f"{name}-for-{self.affinity}" if self.affinity else name


class Address(NamedTuple):
    ip: str
    port: int


class Id(int):
    """A number that travels in the packet's priority: nft writes it as a class id, MAJOR:MINOR in hex."""

    def __str__(self) -> str:
        return f"{self >> 16:x}:{self & 0xFFFF:x}"


ElementKey = tuple[str, tuple[str | int, ...]]  # map, key
Value = Lane | Address | Id | None  # verdict, backend, backend id, or nothing (a set)
Elements = dict[ElementKey, Value]

REFUSE, DROP = Lane("refuse"), Lane("discard")


def backend_id(address: Address) -> Id:
    """The same after a restart, so that clients stay with their backend through it."""
    return Id(zlib.crc32(f"{address.ip} {address.port}".encode()))


def lanes_of(found: Elements) -> set[Lane]:
    return {value for value in found.values() if isinstance(value, Lane)}


class Layout:
    """The table's text for one address family. `cluster_cidrs`: the pod network; `service_cidrs`: what must never leave the machine;
    `node_port_cidrs`: the node's addresses that take node ports (empty: all but loopback)."""

    standing: tuple[Lane, ...] = (REFUSE, DROP, Lane("guarded"), Lane("local-policy"), Lane("local-policy", True))  # lanes that are always there

    def __init__(self, family: str, cluster_cidrs: Iterable[str] = (), service_cidrs: Iterable[str] = (), node_port_cidrs: Iterable[str] = ()) -> None:
        self.family = family
        self.nft = "ip" if family == "IPv4" else "ip6"
        self.address = "ipv4_addr" if family == "IPv4" else "ipv6_addr"
        self.cluster_cidrs = [c for c in cluster_cidrs if family_of(c) == family]
        self.service_cidrs = [c for c in service_cidrs if family_of(c) == family]
        self.node_port_cidrs = [c for c in node_port_cidrs if family_of(c) == family]

    def covers(self, frontend: Frontend) -> bool:
        return family_of(frontend.ip) == self.family

    def elements(self, frontend: Frontend, target: Target) -> Elements:
        """All elements of one frontend; disjoint from those of any other, but for `hairpin`'s."""
        node = frontend.is_node_port
        prefix = "node-" if node else ""
        key: tuple[str | int, ...] = (frontend.protocol, frontend.port) if node else (frontend.ip, frontend.protocol, frontend.port)
        out: Elements = {}
        if not target.backends:
            out[f"{prefix}no-endpoints", key] = DROP if target.drop else REFUSE
            return out
        every = Lane("external" if target.external else "cluster", node, len(target.backends), target.affinity)
        self._balance(out, prefix, key, every, target.backends)
        verdict = every
        if target.outside is not None:
            verdict = Lane("local-policy", node)
            out[f"{prefix}services-inside", key] = Lane("cluster", node, len(target.backends), target.affinity)
            direct = Lane("direct", node, len(target.outside), target.affinity)
            out[f"{prefix}services-outside", key] = direct if target.outside else DROP
            self._balance(out, f"{prefix}local-", key, direct, target.outside)
        if target.sources and not node:
            out["services-guarded", key] = verdict
            for cidr in target.sources:
                out["sources", (str(ipaddress.ip_network(cidr, strict=False)), *key)] = None
            verdict = Lane("guarded")
        out[f"{prefix}services", key] = verdict
        return out

    def _balance(self, out: Elements, prefix: str, key: tuple[str | int, ...], lane: Lane, backends: tuple[Backend, ...]) -> None:
        for slot, backend in enumerate(backends):
            address = Address(backend.ip, backend.port)
            if backend.local:
                out["hairpin", (backend.ip, backend.ip)] = None
            if lane.affinity and self.remembers:
                id_ = backend_id(address)
                out[f"{prefix}picks", (*key, Id(slot))] = id_
                out["node-backends" if lane.node else "backends", (*key, id_)] = address
            else:
                out[f"{prefix}endpoints", (*key, Id(slot))] = address

    def field(self, node: bool) -> str:
        return "meta l4proto . th dport" if node else f"{self.nft} daddr . meta l4proto . th dport"

    def base(self) -> dict[str, str]:
        """What is always there: `map NAME`, `set NAME`, `chain NAME` -> its body. Sets and maps come first."""
        out: dict[str, str] = {}
        # `type`, not `typeof`: nft 1.0.6 cannot read some of its own `typeof`s back.
        service = f"{self.address} . inet_proto . inet_service"
        for prefix, type_ in (("", service), ("node-", "inet_proto . inet_service")):
            for name in ("services", "no-endpoints", "services-inside", "services-outside"):
                out[f"map {prefix}{name}"] = f"type {type_} : verdict;"
            out[f"map {prefix}affinity"] = f"type {self.address} . {type_} : classid; flags dynamic,timeout; size {AFFINITY_CLIENTS_MAX};"
            for name in ("endpoints", "local-endpoints", "backends"):
                out[f"map {prefix}{name}"] = f"type {type_} . classid : {self.address} . inet_service;"
            for name in ("picks", "local-picks"):
                out[f"map {prefix}{name}"] = f"type {type_} . classid : classid;"
        out["map services-guarded"] = f"type {service} : verdict;"
        out["set sources"] = f"type {self.address} . {service}; flags interval;"
        out["set hairpin"] = f"type {self.address} . {self.address};"
        for lane in self.standing:
            out[f"chain {lane.name}"] = self.lane_body(lane)
        out |= {f"chain {name}": body for name, body in self._hooks().items()}
        out[f"chain {self.version}"] = ""
        return out

    def _hooks(self) -> dict[str, str]:
        at_node = self.at_node
        empty = f"ct state new {self.field(False)} vmap @no-endpoints; ct state new {at_node}{self.field(True)} vmap @node-no-endpoints;"
        find = f"{self.field(False)} vmap @services; {at_node}{self.field(True)} vmap @node-services;"
        # After translation no packet is left for the service range but those that no service wants.
        stray = f"{self.nft} daddr {{ {', '.join(self.service_cidrs)} }} ct state new goto refuse;" if self.service_cidrs else ""
        return {
            "filter-prerouting": f"type filter hook prerouting priority dstnat - 10; {empty}",
            "filter-output": f"type filter hook output priority -110; {empty}",
            "nat-prerouting": f"type nat hook prerouting priority dstnat; {find}",
            "nat-output": f"type nat hook output priority -100; {find}",
            "stray-forward": f"type filter hook forward priority 0; {stray}",
            "stray-output": f"type filter hook output priority 0; {stray}",
            "nat-postrouting": (
                f"type nat hook postrouting priority srcnat; ct status dnat {self.nft} saddr . {self.nft} daddr @hairpin masquerade; "
                f"meta mark & {MASQUERADE_MARK:#x} == {MASQUERADE_MARK:#x} meta mark set meta mark xor {MASQUERADE_MARK:#x} masquerade fully-random;"
            ),
        }

    @property
    def remembers(self) -> bool:
        """Whether affinity is kept by client. nft 1.0.6 has not registers enough for two IPv6 addresses, a port and a value: there the
        client's address decides, which lasts as long as the number of backends does."""
        return self.family == "IPv4"

    @property
    def at_node(self) -> str:
        """Matches packets to those of the node's addresses that take node ports."""
        if self.node_port_cidrs:
            return f"fib daddr type local {self.nft} daddr {{ {', '.join(self.node_port_cidrs)} }} "
        return f"fib daddr type local {self.nft} daddr != {'127.0.0.0/8' if self.family == 'IPv4' else '::1'} "

    @property
    def version(self) -> str:
        """Name of the empty chain that says which layout a table has."""
        return f"layout-{LAYOUT_VERSION}"

    def lane_body(self, lane: Lane) -> str:
        key = self.field(lane.node)
        prefix = "node-" if lane.node else ""
        pods = f"{{ {', '.join(self.cluster_cidrs)} }}" if self.cluster_cidrs else ""
        mark = f"meta mark set meta mark or {MASQUERADE_MARK:#x};"
        if lane.kind == "refuse":
            unreachable = "icmp port-unreachable" if self.family == "IPv4" else "icmpv6 port-unreachable"
            return f"meta l4proto tcp reject with tcp reset; reject with {unreachable};"
        if lane.kind == "discard":
            return "drop;"
        if lane.kind == "guarded":
            return f"{self.nft} saddr . {key} @sources {key} vmap @services-guarded; drop;"
        if lane.kind == "local-policy":
            inside = f"{key} vmap @{prefix}services-inside;"
            return (f"{self.nft} saddr {pods} {inside} " if pods else "") + f"fib saddr type local {inside} {key} vmap @{prefix}services-outside;"
        body = ""
        if lane.kind == "external":
            body = mark
        elif lane.kind == "cluster":
            body = f"{self.nft} saddr != {pods} {mark}" if pods else ""
        local = f"{prefix}local-" if lane.kind == "direct" else prefix
        draw = f"meta priority set numgen random mod {lane.width}"
        if lane.affinity and not self.remembers:
            draw = f"meta priority set jhash {self.nft} saddr mod {lane.width} seed {HASH_SEED:#x}"
        if not lane.affinity or not self.remembers:
            return f"{body} {draw} dnat {self.nft} to {key} . meta priority map @{local}endpoints;"
        client = f"{self.nft} saddr . {key}"
        keep = f"@{prefix}affinity {{ {client} timeout {lane.affinity}s : meta priority }}"
        go = f"dnat {self.nft} to {key} . meta priority map @{prefix}backends;"
        pick = f"{draw} meta priority set {key} . meta priority map @{local}picks"
        return (
            f"{body} meta priority set {client} map @{prefix}affinity update {keep} {go} "
            f"{pick} delete @{prefix}affinity {{ {client} : meta priority }} update {keep} {go} "
            f"{pick} {go}"  # the map of clients is full
        )
