"""The IPVS driver: one virtual server in the kernel per address and port of a service, programmed over generic netlink.

Laws:
- the virtual servers of this network namespace are ours, but for those by firewall mark and on addresses in `--ipvs-exclude-cidrs`: those
  are left alone;
- `replace` reads what the kernel holds and changes only what differs: connections live through a restart of the proxy;
- a backend that goes takes no new connections (weight 0) and is removed when its last connection has ended, at the latest after
  DRAIN_SECONDS_MAX; UDP has no end to wait for, so there it is removed at once;
- cluster, external and load balancer addresses are bound to the dummy device, so that the kernel takes packets to them as its own
  (and answers ping).

What IPVS does not do (masquerading, refusing, allowed sources) is done by a small nftables table (`ipvs_rules`).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastkube.proxy.config import Config
from fastkube.proxy.diff import Change
from fastkube.proxy.ipvs_kernel import Backend, Kernel, Server, Step, Virtual, missing
from fastkube.proxy.ipvs_rules import IpvsLayout
from fastkube.proxy.model import ANY_ADDRESS, Frontend, Target, family_of
from fastkube.proxy.nftables import Nft, NftablesDriver
from fastkube.runtime import clock, logs

__all__ = ["IpvsDriver", "missing", "steps", "wanted"]

DRAIN_SECONDS_MAX = 900.0
DRAIN_CHECK_SECONDS = 5.0

log = logs.get("proxy.ipvs")


def steps(have: dict[Server, Virtual], want: dict[Server, Virtual]) -> Iterator[Step]:
    """From the virtual servers that are there to those that should be; pure. A backend that is not wanted gets weight 0 (UDP: goes at once)."""
    for server, virtual in want.items():
        old = have.get(server)
        if old is None:
            yield Step("add", server, virtual)
        elif (old.scheduler, old.affinity) != (virtual.scheduler, virtual.affinity):
            yield Step("set", server, virtual)
        weights = old.weights if old else {}
        for backend in virtual.weights:
            if backend not in weights:
                yield Step("add", server, virtual, backend, 1)
            elif weights[backend] != 1:
                yield Step("set", server, virtual, backend, 1)
        for backend, weight in weights.items():
            if backend not in virtual.weights:
                if server.protocol == "udp":
                    yield Step("del", server, virtual, backend)
                elif weight:
                    yield Step("set", server, virtual, backend, 0)
    for server, virtual in have.items():
        if server not in want:
            yield Step("del", server, virtual)


def wanted(live: dict[Frontend, Target], node_addresses: Iterable[str], scheduler: str) -> dict[Server, Virtual]:
    """The virtual servers that serve `live`; pure."""
    addresses = {family: [a for a in node_addresses if family_of(a) == family] for family in ANY_ADDRESS}
    out: dict[Server, Virtual] = {}
    for frontend, target in live.items():
        backends = target.backends if target.outside is None else target.outside
        virtual = Virtual(scheduler, target.affinity, {(b.ip, b.port): 1 for b in backends})
        if frontend.is_node_port:
            for ip in addresses[family_of(frontend.ip)]:
                out.setdefault(frontend._replace(ip=ip), virtual)
        else:
            out[frontend] = virtual
    return out


class IpvsDriver:
    """Programs Services through IPVS and the nftables table beside it."""

    mode = "ipvs"

    def __init__(self, config: Config, nft: Nft | None = None) -> None:
        self.scheduler = config.ipvs_scheduler
        self.node_port_cidrs = config.node_port_cidrs
        self.exclude = [ipaddress.ip_network(cidr) for cidr in config.ipvs_exclude_cidrs]
        families = ["IPv4"] + ["IPv6"] * any(":" in cidr for cidr in (*config.service_cidrs, *config.cluster_cidrs))
        self.rules = NftablesDriver([IpvsLayout(f, config.cluster_cidrs, config.service_cidrs, config.node_port_cidrs) for f in families], nft)
        self.live: dict[Frontend, Target] = {}
        self.have: dict[Server, Virtual] = {}
        self.bound: set[str] = set()
        self.node_addresses: set[str] = set()
        self.draining: dict[tuple[Server, Backend], float] = {}  # -> since when
        self.kernel: Kernel | None = None
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "ipvs")  # pyroute2's sockets stay in the thread that made them

    async def replace(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        self.live = {c.frontend: c.new for c in changes if c.new}
        async with self._lock:
            # Marks first, so that no virtual server is there without them.
            await self.rules.replace(changes)
            await self._in_thread(self._program_all)

    async def change(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        for change in changes:
            if change.new:
                self.live[change.frontend] = change.new
            else:
                self.live.pop(change.frontend, None)
        async with self._lock:
            await self.rules.change(changes)
            await self._in_thread(self._program, [change.frontend for change in changes])

    async def drain(self) -> None:
        """Task body: remove backends whose last connection has ended."""
        while True:
            await asyncio.sleep(DRAIN_CHECK_SECONDS)
            if self.draining:
                async with self._lock:
                    await self._in_thread(self._drain)

    async def watch(self, lost: Callable[[], None]) -> None:
        await self.rules.watch(lost)

    async def cleanup(self) -> None:
        await self.rules.cleanup()
        await self._in_thread(self._remove_all)

    async def _in_thread(self, function: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _program_all(self) -> None:
        """From whatever the kernel holds to what should be."""
        if self.kernel:
            self.kernel.close()
        self.kernel = Kernel()
        self.kernel.prepare()
        self.node_addresses = self.kernel.node_addresses()
        self.bound = self.kernel.bound()
        self.have = {server: virtual for server, virtual in self.kernel.servers().items() if not self._excluded(server.ip)}
        want = wanted(self.live, self._taking_node_ports(), self.scheduler)
        self._turn(self.have, want, {frontend.ip for frontend in self.live if not frontend.is_node_port})
        now = clock.monotonic()
        self.draining = {(server, b): now for server, virtual in self.have.items() for b, weight in virtual.weights.items() if not weight}

    def _program(self, frontends: list[Frontend]) -> None:
        """Bring the virtual servers of these frontends up to date; all of them when the node's addresses have changed."""
        if self.kernel is None or self.kernel.node_addresses() != self.node_addresses:
            self._program_all()
            return
        servers = [
            f._replace(ip=ip) for f in frontends for ip in (self._taking_node_ports() if f.is_node_port else (f.ip,)) if family_of(ip) == family_of(f.ip)
        ]
        want = wanted({f: self.live[f] for f in frontends if f in self.live}, self._taking_node_ports(), self.scheduler)
        have = {server: self.have[server] for server in servers if server in self.have}
        touched = {frontend.ip for frontend in frontends if not frontend.is_node_port}
        still = {frontend.ip for frontend in self.live} if touched else set()
        self._turn(have, want, self.bound - touched | touched & still)

    def _turn(self, have: dict[Server, Virtual], want: dict[Server, Virtual], addresses: set[str]) -> None:
        assert self.kernel
        self.kernel.bind(sorted(addresses - self.bound))
        todo = list(steps(have, want))
        self.kernel.apply(todo)
        for step in todo:
            self._note(step)
        self.kernel.unbind(self.bound - addresses)
        self.bound = addresses

    def _note(self, step: Step) -> None:
        """Take over what the kernel holds after `step`."""
        if step.backend is None:
            if step.verb == "del":
                self.have.pop(step.server, None)
                for gone in [k for k in self.draining if k[0] == step.server]:
                    del self.draining[gone]
            else:
                old = self.have.get(step.server)
                self.have[step.server] = step.virtual._replace(weights=dict(old.weights) if old else {})
            return
        weights = self.have[step.server].weights
        if step.verb == "del":
            weights.pop(step.backend, None)
        else:
            weights[step.backend] = step.weight
        if step.verb == "set" and not step.weight:
            self.draining[step.server, step.backend] = clock.monotonic()
        else:
            self.draining.pop((step.server, step.backend), None)

    def _drain(self) -> None:
        assert self.kernel
        now = clock.monotonic()
        for server in {server for server, _ in self.draining}:
            connections = {backend: count for backend, _, count in self.kernel.backends(server)}
            for backend, since in [(b, t) for (s, b), t in self.draining.items() if s == server]:
                if not connections.get(backend) or now - since > DRAIN_SECONDS_MAX:
                    step = Step("del", server, self.have[server], backend)
                    self.kernel.apply([step])
                    self._note(step)

    def _excluded(self, ip: str) -> bool:
        return any(ipaddress.ip_address(ip) in network for network in self.exclude)

    def _taking_node_ports(self) -> list[str]:
        networks = [ipaddress.ip_network(cidr) for cidr in self.node_port_cidrs]
        return sorted(a for a in self.node_addresses if not networks or any(ipaddress.ip_address(a) in n for n in networks))

    def _remove_all(self) -> None:
        kernel = Kernel()
        try:
            if kernel.device is None:
                return
            kernel.apply(Step("del", server, virtual) for server, virtual in kernel.servers().items() if not self._excluded(server.ip))
            kernel.remove_device()
        finally:
            kernel.close()
