"""Addresses and ports of Services: cluster IPs, node ports, health-check node ports.

Laws:
1. No two Services hold the same address or node port. What is held is derived from the stored Services (law of level: rebuilt at start, kept by
   the store's changes), and a write in flight holds what it took from the moment it asks, synchronously: nothing can come between.
2. A failed write gives back all it took, through the rollbacks of its admission attributes; a committed one gives back what the old object held.
3. Without a wish one gets a random free value of the upper band, then of the lower one, which is kept for wishes (KEP-3070, KEP-3668).

The pipeline calls `create` and `update` before the kind's validation, as upstream's service REST storage does. `IPAddresses` keeps the IPAddress
objects (KEP-1880) in step with the Services.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from fastkube.api import errors, resources
from fastkube.api.errors import ApiError, FieldError
from fastkube.runtime import entropy
from fastkube.server.reader import Object, Reader
from fastkube.server.writer import Writer

SERVICES = resources.parse("v1/services")
SERVICE_CIDRS = resources.parse("networking.k8s.io/v1/servicecidrs")
IP_ADDRESSES = resources.parse("networking.k8s.io/v1/ipaddresses")

SERVICE_CIDR_DEFAULT = "10.96.0.0/12"
NODE_PORTS_DEFAULT = (30000, 32767)
IPV6_ADDRESSES_MAX = 2**64  # of a range, as upstream

Rollbacks = list[Callable[[], None]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Full(Exception):
    """Nothing is free."""


class Pool:
    """Integers first..last, each held by at most one owner; the first `band` of them are handed out unasked only when the others are used up."""

    def __init__(self, first: int, last: int, band: int) -> None:
        self.first, self.last = first, last
        self._upper = first + min(band, last - first)
        self._held: set[int] = set()

    def __contains__(self, value: int) -> bool:
        return self.first <= value <= self.last

    def take(self, value: int) -> bool:
        """Hold `value`; False when somebody else does."""
        if value in self._held:
            return False
        self._held.add(value)
        return True

    def release(self, value: int) -> None:
        self._held.discard(value)

    def next(self) -> int:
        """Hold a free value. Raises Full."""
        for first, last in ((self._upper, self.last), (self.first, self._upper - 1)):
            size = last - first + 1
            if size <= 0:
                continue
            start = entropy.generator().randrange(size)
            for step in range(min(size, len(self._held) + 1)):
                value = first + (start + step) % size
                if value not in self._held:
                    self._held.add(value)
                    return value
        raise Full


def address_pool(network: Network) -> Pool:
    """The addresses of a range that Services may have: not the first, and of IPv4 not the last."""
    size = min(network.num_addresses, IPV6_ADDRESSES_MAX)
    first = int(network.network_address)
    band = min(max(16, size // 16), 256)
    return Pool(first + 1, max(first + 1, first + size - (2 if network.version == 4 else 1)), band)


class Services:
    """The allocators of all Services. `families` are those of the configured ranges, the primary first."""

    def __init__(self, reader: Reader, cidrs: Iterable[str] = (SERVICE_CIDR_DEFAULT,), node_ports: tuple[int, int] = NODE_PORTS_DEFAULT) -> None:
        self._reader = reader
        self._configured = [ipaddress.ip_network(c) for c in cidrs]
        self.families = list(dict.fromkeys(f"IPv{n.version}" for n in self._configured))
        self._pools: dict[Network, Pool] = {}
        self._ports = Pool(*node_ports, min(max(16, (node_ports[1] - node_ports[0] + 1) // 32), 128))
        reader.on_change(SERVICE_CIDRS, lambda new, old: self._reload())
        reader.on_change(SERVICES, self._committed)
        self._reload()
        for service in reader.list(SERVICES):
            for port in held_ports(service):
                self._ports.take(port)

    # -- what the pipeline calls ----------------------------------------------------------------------------------------------------------

    def create(self, service: Object, rollbacks: Rollbacks) -> None:
        """Fill in what a new Service is to have. ApiError: 422 when a wish cannot be met, 500 when nothing is free."""
        spec = service["spec"]
        _normalize(spec)
        self._families(spec)
        if needs_address(spec):
            self._allocate_addresses(service, [], rollbacks)
        if _needs_ports(spec):
            self._allocate_ports(service, set(), rollbacks)
        if _needs_health_check(spec):
            self._allocate_health_check(service, None, rollbacks)

    def update(self, service: Object, old: Object, rollbacks: Rollbacks) -> None:
        """Keep what `old` was given and the new one leaves out; take what it newly needs; drop what it no longer may have."""
        spec, before = service["spec"], old["spec"]
        _keep(spec, before)
        _normalize(spec)
        self._families(spec, before)
        if needs_address(spec):
            self._allocate_addresses(service, _addresses(before) if needs_address(before) else [], rollbacks)
        if _needs_ports(spec):
            self._allocate_ports(service, held_ports(old), rollbacks)
        if _needs_health_check(spec):
            self._allocate_health_check(service, before.get("healthCheckNodePort"), rollbacks)

    # -- addresses ------------------------------------------------------------------------------------------------------------------------

    def _families(self, spec: Object, before: Object | None = None) -> None:
        """ipFamilies and ipFamilyPolicy, where the Service leaves them open (upstream's initIPFamilyFields)."""
        if spec.get("type") == "ExternalName":
            return
        headless = spec.get("clusterIP") == "None"
        policy = spec.get("ipFamilyPolicy")
        if not policy:
            if len(spec.get("ipFamilies") or ()) == 2 or len(_addresses(spec)) == 2 or (headless and not spec.get("selector") and before is None):
                policy = "RequireDualStack"
            else:
                policy = "SingleStack"
            spec["ipFamilyPolicy"] = policy
        families = list(spec.get("ipFamilies") or ())
        if not families:
            families = [_family(ip) for ip in _addresses(spec)] or self.families[:1]
        if headless and not spec.get("selector") and policy != "SingleStack" and len(families) == 1:
            families += ["IPv6" if families[0] == "IPv4" else "IPv4"]
        elif policy != "SingleStack" and len(families) == 1 and len(self.families) == 2:
            families += [f for f in self.families if f not in families]
        spec["ipFamilies"] = families

    def _allocate_addresses(self, service: Object, kept: list[str], rollbacks: Rollbacks) -> None:
        spec = service["spec"]
        wished = _addresses(spec)
        given: list[str] = []
        for i, family in enumerate(spec["ipFamilies"][: 2 if spec.get("ipFamilyPolicy") != "SingleStack" else 1]):
            if i < len(wished):
                if wished[i] not in kept:
                    self._take_address(service, i, wished[i], wished, rollbacks)
                given.append(wished[i])
            elif i == 0 or family in self.families:
                given.append(self._next_address(service, family, rollbacks))
        spec["clusterIP"], spec["clusterIPs"] = given[0], given

    def _take_address(self, service: Object, index: int, text: str, wished: list[str], rollbacks: Rollbacks) -> None:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return  # validation says what is wrong with it
        value, problem = int(address), ""
        holding = [pool for network, pool in self._pools.items() if address.version == network.version and value in pool]
        if not holding:
            ranges = ", ".join(str(n) for n in self._pools if n.version == address.version)
            problem = (
                f"the provided IP ({text}) is not in the valid range. The range of valid IPs is {ranges}" if ranges else f"no ServiceCIDR for {_family(text)}"
            )
        elif not self._take_everywhere(value, holding, rollbacks):
            problem = "provided IP is already allocated"
        if problem:
            raise _invalid(service, errors.invalid_value(f"spec.clusterIPs[{index}]", wished, f"failed to allocate IP {text}: {problem}"))

    @staticmethod
    def _take_everywhere(value: int, pools: list[Pool], rollbacks: Rollbacks) -> bool:
        """Hold `value` in all pools (ranges may overlap) or in none."""
        taken = [pool for pool in pools if pool.take(value)]
        if len(taken) < len(pools):
            for pool in taken:
                pool.release(value)
            return False
        rollbacks.extend(functools.partial(pool.release, value) for pool in taken)
        return True

    def _next_address(self, service: Object, family: str, rollbacks: Rollbacks) -> str:
        for network, pool in self._pools.items():
            if f"IPv{network.version}" != family:
                continue
            try:
                value = pool.next()
            except Full:
                continue
            rollbacks.append(functools.partial(pool.release, value))
            self._take_everywhere(value, [p for p in self._pools.values() if p is not pool and value in p], rollbacks)
            return str(ipaddress.ip_address(value) if network.version == 4 else ipaddress.IPv6Address(value))
        if family not in {f"IPv{n.version}" for n in self._pools}:
            raise _invalid(service, errors.invalid_value("spec.ipFamilies[0]", family, "not configured on this cluster"))
        raise errors.internal("failed to allocate a serviceIP: range is full")

    def _reload(self) -> None:
        """Pools for the ranges of the ServiceCIDR objects and the configured ones; those that stay keep what they hold."""
        wanted = {n: None for n in self._configured}
        for obj in self._reader.list(SERVICE_CIDRS):
            if "deletionTimestamp" not in obj["metadata"]:
                wanted |= {ipaddress.ip_network(c): None for c in obj["spec"].get("cidrs") or ()}
        if list(wanted) == list(self._pools):
            return
        fresh = [n for n in wanted if n not in self._pools]
        self._pools = {n: self._pools.get(n) or address_pool(n) for n in wanted}
        for network in fresh:
            for service in self._reader.list(SERVICES):
                for text in _addresses(service["spec"]):
                    if ipaddress.ip_address(text).version == network.version:
                        self._hold(self._pools[network], text)

    @staticmethod
    def _hold(pool: Pool, text: str) -> None:
        value = int(ipaddress.ip_address(text))
        if value in pool:
            pool.take(value)

    # -- ports ----------------------------------------------------------------------------------------------------------------------------

    def _allocate_ports(self, service: Object, kept: set[int], rollbacks: Rollbacks) -> None:
        """One node port per port number of the Service: its protocols share it."""
        spec = service["spec"]
        ports = spec.get("ports") or ()
        automatic = spec.get("type") == "NodePort" or spec.get("allocateLoadBalancerNodePorts") is not False
        mine: dict[int, int] = {}  # port -> node port
        taken = set(kept)
        for i, port in enumerate(ports):
            if not automatic and not port.get("nodePort"):
                continue
            number = port.get("port", 0)
            wished = port.get("nodePort") or mine.get(number) or next((p["nodePort"] for p in ports[i:] if p.get("port") == number and p.get("nodePort")), 0)
            if wished and wished not in taken:
                self._take_port(service, f"spec.ports[{i}].nodePort", wished, rollbacks)
            if not wished:
                wished = self._next_port(rollbacks)
            port["nodePort"] = wished
            taken.add(wished)
            mine.setdefault(number, wished)

    def _allocate_health_check(self, service: Object, kept: int | None, rollbacks: Rollbacks) -> None:
        spec = service["spec"]
        wished = spec.get("healthCheckNodePort")
        if not wished:
            spec["healthCheckNodePort"] = self._next_port(rollbacks)
        elif wished != kept:
            self._take_port(service, "spec.healthCheckNodePort", wished, rollbacks)

    def _take_port(self, service: Object, field: str, value: Any, rollbacks: Rollbacks) -> None:
        if not isinstance(value, int) or not 0 < value < 65536:
            return  # validation says what is wrong with it
        if value not in self._ports:
            first, last = self._ports.first, self._ports.last
            raise _invalid(service, errors.invalid_value(field, value, f"provided port is not in the valid range. The range of valid ports is {first}-{last}"))
        if not self._ports.take(value):
            raise _invalid(service, errors.invalid_value(field, value, "provided port is already allocated"))
        rollbacks.append(functools.partial(self._ports.release, value))

    def _next_port(self, rollbacks: Rollbacks) -> int:
        try:
            value = self._ports.next()
        except Full:
            raise errors.internal("failed to allocate a nodePort: range is full") from None
        rollbacks.append(functools.partial(self._ports.release, value))
        return value

    # -- the store's changes --------------------------------------------------------------------------------------------------------------

    def _committed(self, new: Object | None, old: Object | None) -> None:
        had = set(_addresses(old["spec"])) if old else set()
        has = set(_addresses(new["spec"])) if new else set()
        had_ports, has_ports = held_ports(old) if old else set(), held_ports(new) if new else set()
        if had != has:
            for pool in self._pools.values():
                for text in had - has:
                    pool.release(int(ipaddress.ip_address(text)))
                for text in has:
                    self._hold(pool, text)
        for port in had_ports - has_ports:
            self._ports.release(port)
        for port in has_ports:
            self._ports.take(port)


class IPAddresses:
    """Makes an IPAddress object for each cluster IP and removes it with its Service; `await run()` is a task body."""

    RETRY_SECONDS = 1.0

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader, self._writer = reader, writer
        self._dirty: set[str] = set()
        self._owners: dict[str, tuple[str, str]] = {}  # address -> (namespace, name) of its Service
        self._wake = asyncio.Event()
        reader.on_change(SERVICES, self._changed)
        for service in reader.list(SERVICES):
            self._changed(service, None)
        self._dirty |= {obj["metadata"]["name"] for obj in reader.list(IP_ADDRESSES) if obj["metadata"]["name"] not in self._owners and _is_ours(obj)}

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            failed = set()
            for text in dirty:
                try:
                    await self._reconcile(text)
                except ApiError:
                    failed.add(text)
            if failed:
                await asyncio.sleep(self.RETRY_SECONDS)
                self._dirty |= failed
                self._wake.set()

    def _changed(self, new: Object | None, old: Object | None) -> None:
        had = set(_addresses(old["spec"])) if old else set()
        has = set(_addresses(new["spec"])) if new else set()
        if had == has:
            return
        for text in had - has:
            self._owners.pop(text, None)
        if new:
            for text in has:
                self._owners[text] = (new["metadata"]["namespace"], new["metadata"]["name"])
        self._dirty |= had ^ has
        self._wake.set()

    async def _reconcile(self, text: str) -> None:
        owner, stored = self._owners.get(text), self._reader.get(IP_ADDRESSES, None, text)
        if stored is not None and (owner is None or _parent(stored) != owner):
            await self._writer.delete(IP_ADDRESSES, None, text)
            stored = None
        if owner is not None and stored is None:
            labels = {"ipaddress.kubernetes.io/ip-family": _family(text), "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
            parent = {"group": "", "resource": "services", "namespace": owner[0], "name": owner[1]}
            await self._writer.create(
                IP_ADDRESSES,
                {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": text, "labels": labels}, "spec": {"parentRef": parent}},
            )


def _is_ours(obj: Object) -> bool:
    return (obj["metadata"].get("labels") or {}).get("ipaddress.kubernetes.io/managed-by") == "ipallocator.k8s.io"


def _parent(obj: Object) -> tuple[str, str]:
    parent = obj["spec"].get("parentRef") or {}
    return parent.get("namespace", ""), parent.get("name", "")


def needs_address(spec: Object) -> bool:
    return spec.get("type", "ClusterIP") in ("ClusterIP", "NodePort", "LoadBalancer") and spec.get("clusterIP") != "None"


def _needs_ports(spec: Object) -> bool:
    return spec.get("type") in ("NodePort", "LoadBalancer")


def _needs_health_check(spec: Object) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _addresses(spec: Object) -> list[str]:
    """The cluster IPs a spec names, "None" aside."""
    return [ip for ip in spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else []) if ip and ip != "None"]


def held_ports(service: Object) -> set[int]:
    spec = service["spec"]
    ports = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
    return ports | ({spec["healthCheckNodePort"]} if spec.get("healthCheckNodePort") else set())


def _family(text: str) -> str:
    return "IPv6" if ":" in text else "IPv4"


def _normalize(spec: Object) -> None:
    """clusterIP and clusterIPs say the same; one alone speaks for both."""
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("type") == "ExternalName" and not spec.get("clusterIP"):
        spec.pop("clusterIPs", None)


def _keep(spec: Object, before: Object) -> None:
    """Values that were allocated and that an update leaves out stay (upstream's patchAllocatedValues)."""
    if needs_address(spec) and needs_address(before) and before.get("clusterIP"):
        if not spec.get("clusterIP"):
            spec["clusterIP"] = before["clusterIP"]
            spec.setdefault("clusterIPs", list(before.get("clusterIPs") or [before["clusterIP"]]))
    elif spec.get("type") == "ExternalName" and before.get("type") != "ExternalName" and spec.get("clusterIP") == before.get("clusterIP"):
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(field, None)
    if _needs_ports(spec) and _needs_ports(before):
        stored = {(p.get("protocol", "TCP"), p.get("port")): p["nodePort"] for p in before.get("ports") or () if p.get("nodePort")}
        wished = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
        for port in spec.get("ports") or ():
            known = stored.get((port.get("protocol", "TCP"), port.get("port")))
            if not port.get("nodePort") and known and known not in wished:
                port["nodePort"] = known
    elif _needs_ports(before) and not _needs_ports(spec):
        held = {p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in held:
                port.pop("nodePort", None)
    if _needs_health_check(spec) and _needs_health_check(before) and not spec.get("healthCheckNodePort") and before.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = before["healthCheckNodePort"]
    elif not _needs_health_check(spec) and _needs_health_check(before):
        spec.pop("healthCheckNodePort", None)


def _invalid(service: Object, error: FieldError) -> ApiError:
    return errors.invalid("Service", "", service["metadata"].get("name") or "", [error])
