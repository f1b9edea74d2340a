"""The cluster's zone: names and records of Services and their endpoints (Kubernetes DNS-Based Service Discovery, schema 1.1.0); pure data.

Laws:
- a Service's records depend on that Service and its EndpointSlices only; setting them again replaces exactly them;
- a name exists when it has records or a name below it exists (else NXDOMAIN); a name that exists without records of the type asked
  for gives an empty answer;
- comparisons ignore case: names are kept in lower case;
- what is asked outside the zone is not answered here (None): the forwarder's business.

    SERVICE.NS.svc.ZONE                       A, AAAA: cluster IPs, or all ready endpoints of a headless service; CNAME for ExternalName
    _PORT._PROTO.SERVICE.NS.svc.ZONE          SRV, named ports only
    HOSTNAME.SERVICE.NS.svc.ZONE              A, AAAA of a headless service's endpoint; its address with dashes where it has no hostname
    A-B-C-D.NS.pod.ZONE                       A
    dns-version.ZONE                          TXT
    D.C.B.A.in-addr.arpa, ...ip6.arpa         PTR
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, NamedTuple

SCHEMA_VERSION = "1.1.0"
TTL_SECONDS = 30
NEGATIVE_TTL_SECONDS = 5
ALIASES_MAX = 8

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV, ANY = 1, 2, 5, 6, 12, 16, 28, 33, 255
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3

Key = tuple[str, str]  # namespace, name of a Service
Data = Any  # A, AAAA: text of an address; CNAME, PTR, NS, TXT: text; SRV: (priority, weight, port, target); SOA: none
Rrset = dict[int, tuple[Data, ...]]  # type -> data
Names = dict[str, Rrset]


class Record(NamedTuple):
    name: str
    type: int
    data: Data


class Answer(NamedTuple):
    """`chase`: a CNAME target outside the zone whose records the forwarder may add."""

    rcode: int
    records: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    chase: str = ""


def records_of(service: dict[str, Any], slices: Iterable[dict[str, Any]], domain: str) -> Names:
    """All names of one Service and their records."""
    meta, spec = service["metadata"], service["spec"]
    name = f"{meta['name']}.{meta['namespace']}.svc.{domain}".lower()
    if spec.get("type") == "ExternalName":
        target = (spec.get("externalName") or "").rstrip(".").lower()
        return {name: {CNAME: (target,)}} if target else {}
    if spec.get("clusterIP") in (None, ""):
        return {}
    if spec["clusterIP"] == "None":
        return _headless(name, spec, slices)
    out = _Builder()
    for ip in spec.get("clusterIPs") or [spec["clusterIP"]]:
        out.address(name, ip)
        out.add(reverse_name(ip), PTR, name)
    for port in spec.get("ports") or ():
        if port.get("name"):
            out.add(srv_name(port["name"], port.get("protocol", "TCP"), name), SRV, (0, 100, port["port"], name))
    return out.names


def _headless(name: str, spec: dict[str, Any], slices: Iterable[dict[str, Any]]) -> Names:
    out = _Builder()
    unready_too = spec.get("publishNotReadyAddresses")
    for slice_ in sorted(slices, key=lambda s: s["metadata"]["name"]):
        for endpoint in slice_.get("endpoints") or ():
            if not unready_too and (endpoint.get("conditions") or {}).get("ready") is False:
                continue
            for ip in endpoint.get("addresses") or ():
                host = f"{endpoint.get('hostname') or dashed(ip)}.{name}".lower()
                out.address(name, ip)
                out.address(host, ip)
                out.add(reverse_name(ip), PTR, host)
                for port in slice_.get("ports") or ():
                    if port.get("name") and port.get("port"):
                        out.add(srv_name(port["name"], port.get("protocol", "TCP"), name), SRV, (0, 100, port["port"], host))
    return out.names


class _Builder:
    """Collects records, each once, in order."""

    def __init__(self) -> None:
        self._names: dict[str, dict[int, dict[Data, None]]] = {}

    def add(self, name: str, type_: int, data: Data) -> None:
        self._names.setdefault(name, {}).setdefault(type_, {})[data] = None

    def address(self, name: str, ip: str) -> None:
        self.add(name, AAAA if ":" in ip else A, ip)

    @property
    def names(self) -> Names:
        return {name: {type_: tuple(data) for type_, data in rrset.items()} for name, rrset in self._names.items()}


def dashed(ip: str) -> str:
    return ip.replace(".", "-").replace(":", "-").strip("-") if ip != "::" else "0"


def srv_name(port: str, protocol: str, service: str) -> str:
    return f"_{port}._{protocol}.{service}".lower()


def reverse_name(ip: str) -> str:
    """The PTR name of an address, without the closing dot."""
    if ":" in ip:
        return ipaddress.ip_address(ip).reverse_pointer
    return ".".join(ip.split(".")[::-1]) + ".in-addr.arpa"


class Zone:
    """All records by name. `version` grows with every change."""

    def __init__(self, domain: str = "cluster.local", reverse_cidrs: Iterable[str] = ()) -> None:
        self.domain = domain.lower().strip(".")
        self.version = 0
        self.names: dict[str, dict[Key, Rrset]] = {}  # a reverse name may have several owners
        self.below: dict[str, int] = {}  # how many names exist below a name
        self._of: dict[Key, Names] = {}
        # Reverse names of these are ours to deny; others are asked upstream.
        self._reverse = [ipaddress.ip_network(cidr) for cidr in reverse_cidrs]
        self.set(("", ""), self._own())

    def _own(self) -> Names:
        return {
            self.domain: {NS: (f"ns.dns.{self.domain}",), SOA: (None,)},
            f"dns-version.{self.domain}": {TXT: (SCHEMA_VERSION,)},
            f"svc.{self.domain}": {},
            f"pod.{self.domain}": {},
        }

    def set(self, key: Key, names: Names) -> None:
        """Replace the records of `key` (empty: it is gone)."""
        old = self._of.get(key, {})
        if old == names:
            return
        self.version += 1
        for name in old.keys() - names.keys():
            owners = self.names[name]
            del owners[key]
            if not owners:
                del self.names[name]
                self._count(name, -1)
        for name, rrset in names.items():
            if name not in self.names:
                self.names[name] = {}
                self._count(name, 1)
            self.names[name][key] = rrset
        if names:
            self._of[key] = names
        else:
            self._of.pop(key, None)

    def _count(self, name: str, change: int) -> None:
        while "." in name:
            name = name.partition(".")[2]
            count = self.below.get(name, 0) + change
            if count:
                self.below[name] = count
            else:
                del self.below[name]

    def rrset(self, name: str, type_: int) -> tuple[Data, ...]:
        owners = self.names.get(name)
        if not owners:
            return ()
        if len(owners) == 1:
            return next(iter(owners.values())).get(type_, ())
        return tuple(dict.fromkeys(data for _, rrset in sorted(owners.items()) for data in rrset.get(type_, ())))

    def answer(self, name: str, type_: int) -> Answer | None:
        """The answer for a name in lower case without its closing dot; None when it is not ours to answer."""
        return self._answer_inside(name, type_) if self._is_ours(name) else None

    def _is_ours(self, name: str) -> bool:
        if name == self.domain or name.endswith("." + self.domain):
            return True
        return name.endswith((".in-addr.arpa", ".ip6.arpa")) and (name in self.names or self._denies(name))

    def _answer_inside(self, name: str, type_: int) -> Answer:
        if name not in self.names:
            address = self._pod_address(name)
            if address:
                family = AAAA if ":" in address else A
                return Answer(NOERROR, (Record(name, family, address),) if type_ in (family, ANY) else ())
            return Answer(NOERROR if name in self.below else NXDOMAIN)
        if type_ not in (CNAME, ANY) and self.rrset(name, CNAME):
            return self._follow(name, type_)
        types = (A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT) if type_ == ANY else (type_,)
        records = tuple(Record(name, t, data) for t in types for data in self.rrset(name, t))
        targets = dict.fromkeys(r.data[3] for r in records if r.type == SRV)
        additional = tuple(Record(target, t, data) for target in targets for t in (A, AAAA) for data in self.rrset(target, t))
        return Answer(NOERROR, records, additional)

    def _follow(self, name: str, type_: int) -> Answer:
        """A CNAME (of an ExternalName service) and what it leads to, through at most ALIASES_MAX further ones; circles end there."""
        records: list[Record] = []
        while len(records) < ALIASES_MAX:
            target = self.rrset(name, CNAME)[0]
            records.append(Record(name, CNAME, target))
            if not self._is_ours(target):
                return Answer(NOERROR, tuple(records), chase=target)
            if not self.rrset(target, CNAME):
                found = self._answer_inside(target, type_)
                return Answer(found.rcode, (*records, *found.records))
            name = target
        return Answer(NOERROR, tuple(records))

    def _pod_address(self, name: str) -> str:
        """The address in A-B-C-D.NS.pod.ZONE; empty when it is none."""
        if not name.endswith(f".pod.{self.domain}"):
            return ""
        labels = name.removesuffix(f".pod.{self.domain}").split(".")
        if len(labels) != 2:
            return ""
        for separator in (".", ":"):
            try:
                return str(ipaddress.ip_address(labels[0].replace("-", separator)))
            except ValueError:
                continue
        return ""

    def _denies(self, name: str) -> bool:
        """Whether the reverse name is of an address in one of the cluster's ranges."""
        if name.endswith(".in-addr.arpa"):
            parts = name.removesuffix(".in-addr.arpa").split(".")[::-1]
            if len(parts) != 4:
                return False
            text = ".".join(parts)
        else:
            nibbles = name.removesuffix(".ip6.arpa").split(".")[::-1]
            if len(nibbles) != 32 or any(len(n) != 1 for n in nibbles):
                return False
            text = ":".join("".join(nibbles[i : i + 4]) for i in range(0, 32, 4))
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._reverse)
