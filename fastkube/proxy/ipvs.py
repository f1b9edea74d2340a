"""The IPVS driver: one virtual server in the kernel per address and port of a service, programmed over generic netlink (pyroute2).

Laws:
- virtual servers on addresses of the device `kube-ipvs0`, and on the node's own addresses for node ports, are ours; others are left alone;
- `replace` reads what the kernel holds and changes only what differs: connections live through a restart of the proxy;
- a backend that goes takes no new connections (weight 0) and is removed when its last connection has ended, at the latest after
  DRAIN_SECONDS_MAX; UDP has no end to wait for, so there it is removed at once;
- cluster, external and load balancer addresses are bound to the dummy device, so that the kernel takes packets to them as its own
  (and answers ping).

What IPVS does not do (masquerading, refusing, allowed sources) is done by a small nftables table (`ipvs_rules`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPVS, IPRoute, IPVSDest, IPVSService
from pyroute2.netlink.exceptions import NetlinkError

from fastkube.proxy.config import Config
from fastkube.proxy.diff import Change
from fastkube.proxy.ipvs_rules import IpvsLayout
from fastkube.proxy.model import ANY_ADDRESS, Frontend, Target, family_of
from fastkube.proxy.nftables import Nft, NftablesDriver
from fastkube.runtime import clock, logs

DEVICE = "kube-ipvs0"
DRAIN_SECONDS_MAX = 900.0
DRAIN_CHECK_SECONDS = 5.0
PERSISTENT = 0x1  # IP_VS_SVC_F_PERSISTENT
FORWARD_NAT = 0
SYSCTLS = {"conntrack": 1, "conn_reuse_mode": 0, "expire_nodest_conn": 1, "expire_quiescent_template": 1}
MODULES = ("ip_vs", "nf_conntrack", "dummy")

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

log = logs.get("proxy.ipvs")

Server = Frontend  # a virtual server's key: a frontend with a real address
Backend = tuple[str, int]


class Virtual(NamedTuple):
    """A virtual server. `weights`: backend -> weight, 0 while it drains."""

    scheduler: str
    affinity: int
    weights: dict[Backend, int]


class Step(NamedTuple):
    """One netlink request. `verb`: add, set, del of a virtual server, or of its `backend` where there is one."""

    verb: str
    server: Server
    virtual: Virtual
    backend: Backend | None = None
    weight: int = 0


def missing() -> str:
    """What keeps IPVS from working here, in words; empty when nothing does. Loads the kernel's modules where that is allowed."""
    for module in MODULES:
        with contextlib.suppress(OSError):
            subprocess.run(["modprobe", "-q", module], check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with IPVS():
            pass
    except NetlinkError as e:
        return f"the kernel has no ip_vs ({e})"
    except OSError as e:
        return f"IPVS cannot be reached ({e})"
    return ""


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


class Kernel:
    """IPVS and the dummy device of this network namespace. Methods block: netlink."""

    def __init__(self) -> None:
        self.ipvs = IPVS()
        self.ip = IPRoute()

    def close(self) -> None:
        self.ipvs.close()
        self.ip.close()

    def prepare(self) -> None:
        for name, value in SYSCTLS.items():
            _sysctl(f"net/ipv4/vs/{name}", value)
        _sysctl("net/ipv4/ip_forward", 1)
        if not self.ip.link_lookup(ifname=DEVICE):
            self.ip.link("add", ifname=DEVICE, kind="dummy")

    @property
    def device(self) -> int | None:
        found = self.ip.link_lookup(ifname=DEVICE)
        return found[0] if found else None

    def bound(self) -> set[str]:
        """The addresses on the dummy device."""
        device = self.device
        if device is None:
            return set()
        return {a.get_attr("IFA_ADDRESS") for a in self.ip.get_addr(index=device) if not a.get_attr("IFA_ADDRESS").startswith("fe80:")}

    def bind(self, address: str) -> None:
        with contextlib.suppress(FileExistsError), _kernel_errors():
            self.ip.addr("add", index=self.device, address=address, prefixlen=128 if ":" in address else 32)

    def unbind(self, address: str) -> None:
        with contextlib.suppress(OSError), _kernel_errors():
            self.ip.addr("del", index=self.device, address=address, prefixlen=128 if ":" in address else 32)

    def node_addresses(self) -> set[str]:
        """The node's own addresses: not loopback, not link-local, not the services'."""
        device = self.device
        out = set()
        for a in self.ip.get_addr():
            address = a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS")
            if a["index"] != device and not address.startswith(("127.", "fe80:")) and address != "::1":
                out.add(address)
        return out

    def servers(self) -> dict[Server, Virtual]:
        """All virtual servers the kernel holds, ours or not. Attributes are read raw: pyroute2's objects do not survive a round trip."""
        out: dict[Server, Virtual] = {}
        for message in self.ipvs.service("dump"):
            service = message.get_attr("IPVS_CMD_ATTR_SERVICE")
            protocol = PROTOCOL_NAMES.get(service.get_attr("IPVS_SVC_ATTR_PROTOCOL") or 0)
            if protocol is None:  # by firewall mark: not ours
                continue
            server = Server(service.get_attr("IPVS_SVC_ATTR_ADDR"), protocol, service.get_attr("IPVS_SVC_ATTR_PORT"))
            flags = service.get_attr("IPVS_SVC_ATTR_FLAGS")["flags"]
            affinity = service.get_attr("IPVS_SVC_ATTR_TIMEOUT") if flags & PERSISTENT else 0
            weights = {backend: weight for backend, weight, _ in self.backends(server)}
            out[server] = Virtual(service.get_attr("IPVS_SVC_ATTR_SCHED_NAME"), affinity, weights)
        return out

    def backends(self, server: Server) -> Iterator[tuple[Backend, int, int]]:
        """(backend, weight, connections) of each backend of a virtual server."""
        for message in self.ipvs.dest("dump", service=_service(server)):
            dest = message.get_attr("IPVS_CMD_ATTR_DEST")
            connections = dest.get_attr("IPVS_DEST_ATTR_ACTIVE_CONNS") + dest.get_attr("IPVS_DEST_ATTR_INACT_CONNS")
            yield (dest.get_attr("IPVS_DEST_ATTR_ADDR"), dest.get_attr("IPVS_DEST_ATTR_PORT")), dest.get_attr("IPVS_DEST_ATTR_WEIGHT"), connections

    def apply(self, step: Step) -> None:
        """One step. What is there already, or gone already, is as good as done."""
        with _kernel_errors():
            try:
                if step.backend is None:
                    self.ipvs.service(step.verb, service=_service(step.server, None if step.verb == "del" else step.virtual))
                else:
                    ip, port = step.backend
                    dest = IPVSDest(addr=ip, port=port, fwd_method=FORWARD_NAT, weight=step.weight)
                    self.ipvs.dest(step.verb, service=_service(step.server), dest=dest)
            except NetlinkError as e:
                if not (step.verb == "add" and e.code == errno.EEXIST) and not (step.verb == "del" and e.code in (errno.ENOENT, errno.ESRCH)):
                    raise

    def remove_device(self) -> None:
        device = self.device
        if device is not None:
            self.ip.link("del", index=device)


def _service(server: Server, virtual: Virtual | None = None) -> IPVSService:
    more: dict[str, Any] = {}
    if virtual:
        more = {"sched_name": virtual.scheduler}
        if virtual.affinity:
            more |= {"flags": {"flags": PERSISTENT, "mask": 0xFFFFFFFF}, "timeout": virtual.affinity}
    if ":" in server.ip:
        more["netmask"] = 128
    return IPVSService(addr=server.ip, port=server.port, protocol=PROTOCOLS[server.protocol], **more)


def _sysctl(path: str, value: int) -> None:
    file = Path("/proc/sys") / path
    if file.exists() and file.read_text().strip() != str(value):
        file.write_text(f"{value}\n")


@contextlib.contextmanager
def _kernel_errors() -> Iterator[None]:
    """pyroute2's errors as the OSErrors they are."""
    try:
        yield
    except NetlinkError as e:
        raise OSError(e.code, str(e)) from e


class IpvsDriver:
    """Programs Services through IPVS and the nftables table beside it."""

    mode = "ipvs"

    def __init__(self, config: Config, nft: Nft | None = None) -> None:
        self.scheduler = config.ipvs_scheduler
        self.node_port_cidrs = config.node_port_cidrs
        families = ["IPv4"] + ["IPv6"] * any(":" in cidr for cidr in (*config.service_cidrs, *config.cluster_cidrs))
        self.rules = NftablesDriver([IpvsLayout(f, config.cluster_cidrs, config.service_cidrs, config.node_port_cidrs) for f in families], nft)
        self.live: dict[Frontend, Target] = {}
        self.have: dict[Server, Virtual] = {}
        self.bound: set[str] = set()
        self.draining: dict[tuple[Server, Backend], float] = {}  # -> since when
        self.kernel: Kernel | None = None
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "ipvs")  # pyroute2's sockets stay in the thread that made them

    async def replace(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        self.live = {c.frontend: c.new for c in changes if c.new}
        async with self._lock:
            # Addresses and marks first, so that no virtual server is there without them.
            await self.rules.replace(changes)
            await self._in_thread(self._program, True)

    async def change(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        for change in changes:
            if change.new:
                self.live[change.frontend] = change.new
            else:
                self.live.pop(change.frontend, None)
        async with self._lock:
            await self.rules.change(changes)
            await self._in_thread(self._program, False)

    async def drain(self) -> None:
        """Task body: remove backends whose last connection has ended."""
        while True:
            await asyncio.sleep(DRAIN_CHECK_SECONDS)
            if self.draining:
                async with self._lock:
                    await self._in_thread(self._drain)

    async def cleanup(self) -> None:
        await self.rules.cleanup()
        await self._in_thread(self._remove_all)

    async def _in_thread(self, function: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _program(self, whole: bool) -> None:
        if whole and self.kernel:
            self.kernel.close()
            self.kernel = None
        if self.kernel is None:
            self.kernel = Kernel()
            self.kernel.prepare()
            whole = True
        kernel = self.kernel
        nodes = kernel.node_addresses()
        want = wanted(self.live, self._taking_node_ports(nodes), self.scheduler)
        addresses = {frontend.ip for frontend in self.live if not frontend.is_node_port}
        if whole:
            self.bound = kernel.bound()
            ours = self.bound | nodes
            self.have = {server: virtual for server, virtual in kernel.servers().items() if server.ip in ours}
        for address in sorted(addresses - self.bound):
            kernel.bind(address)
        for step in list(steps(self.have, want)):
            kernel.apply(step)
            self._note(step)
        for address in self.bound - addresses:
            kernel.unbind(address)
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
                    self.kernel.apply(step)
                    self._note(step)

    def _taking_node_ports(self, addresses: set[str]) -> list[str]:
        if not self.node_port_cidrs:
            return sorted(addresses)
        networks = [ipaddress.ip_network(cidr) for cidr in self.node_port_cidrs]
        return sorted(a for a in addresses if any(ipaddress.ip_address(a) in n for n in networks))

    def _remove_all(self) -> None:
        kernel = Kernel()
        try:
            if kernel.device is None:
                return
            ours = kernel.bound() | kernel.node_addresses()
            for server, virtual in kernel.servers().items():
                if server.ip in ours:
                    kernel.apply(Step("del", server, virtual))
            kernel.remove_device()
        finally:
            kernel.close()
