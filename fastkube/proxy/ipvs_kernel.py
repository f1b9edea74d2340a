"""The kernel's side of IPVS: virtual servers over generic netlink (linux/ip_vs.h) and the dummy device that holds their addresses.

pyroute2 finds the family and cares for the device; the requests that come by the ten thousand are encoded here, at a hundredth of its cost,
and go out many at a time.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPVS, IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastkube.proxy.model import Frontend
from fastkube.proxy.netlink import F_CREATE, NETLINK_GENERIC, NETLINK_ROUTE, Socket, attribute, attributes, nested

DEVICE = "kube-ipvs0"
PERSISTENT = 0x1  # IP_VS_SVC_F_PERSISTENT
SYSCTLS = {"conntrack": 1, "conn_reuse_mode": 0, "expire_nodest_conn": 1, "expire_quiescent_template": 1}
MODULES = ("ip_vs", "nf_conntrack", "dummy")
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE, NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = range(1, 9)
SERVICE_COMMANDS = {"add": NEW_SERVICE, "set": SET_SERVICE, "del": DEL_SERVICE}
DEST_COMMANDS = {"add": NEW_DEST, "set": SET_DEST, "del": DEL_DEST}
SERVICE, DEST = 1, 2
AF, PROTOCOL, ADDRESS, PORT, SCHEDULER, FLAGS, TIMEOUT, NETMASK = 1, 2, 3, 4, 6, 7, 8, 9
DEST_ADDRESS, DEST_PORT, FORWARD_METHOD, WEIGHT, UPPER, LOWER, ACTIVE, INACTIVE, DEST_FAMILY = 1, 2, 3, 4, 5, 6, 7, 8, 11
FORWARD_NAT = 0
NEW_ADDRESS, DEL_ADDRESS, IFA_ADDRESS, IFA_LOCAL = 20, 21, 1, 2

Server = Frontend  # a virtual server's key: a frontend with a real address
Backend = tuple[str, int]

_u16, _u32 = struct.Struct("=H").pack, struct.Struct("=I").pack


class Virtual(NamedTuple):
    """A virtual server. `weights`: backend -> weight, 0 while it drains."""

    scheduler: str
    affinity: int
    weights: dict[Backend, int]


class Step(NamedTuple):
    """One request. `verb`: add, set, del of a virtual server, or of its `backend` where there is one."""

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
        _family()
    except NetlinkError as e:
        return f"the kernel has no ip_vs ({e})"
    except OSError as e:
        return f"IPVS cannot be reached ({e})"
    return ""


def _family() -> int:
    """The number the kernel gave to IPVS among generic netlink families."""
    with IPVS() as found:
        return int(found.prid)


def encode(step: Step) -> bytes:
    """The request of one step, from the generic netlink header on."""
    server, virtual = step.server, step.virtual
    key = _key(server)
    if step.backend is None:
        if step.verb != "del":
            flags = struct.pack("=II", PERSISTENT if virtual.affinity else 0, 0xFFFFFFFF)
            mask = b"\xff\xff\xff\xff" if ":" not in server.ip else _u32(128)
            key += attribute(SCHEDULER, virtual.scheduler.encode() + b"\0") + attribute(FLAGS, flags)
            key += attribute(TIMEOUT, _u32(virtual.affinity)) + attribute(NETMASK, mask)
        return _command(SERVICE_COMMANDS[step.verb]) + nested(SERVICE, key)
    ip, port = step.backend
    dest = attribute(DEST_ADDRESS, ipaddress.ip_address(ip).packed) + attribute(DEST_PORT, port.to_bytes(2, "big"))
    dest += attribute(DEST_FAMILY, _u16(socket.AF_INET6 if ":" in ip else socket.AF_INET))
    if step.verb != "del":
        dest += attribute(FORWARD_METHOD, _u32(FORWARD_NAT)) + attribute(WEIGHT, _u32(step.weight)) + attribute(UPPER, _u32(0)) + attribute(LOWER, _u32(0))
    return _command(DEST_COMMANDS[step.verb]) + nested(SERVICE, key) + nested(DEST, dest)


def _command(number: int) -> bytes:
    return bytes((number, 1, 0, 0))


def _key(server: Server) -> bytes:
    family = socket.AF_INET6 if ":" in server.ip else socket.AF_INET
    return (
        attribute(AF, _u16(family)) + attribute(PROTOCOL, _u16(PROTOCOLS[server.protocol]))
        + attribute(ADDRESS, ipaddress.ip_address(server.ip).packed) + attribute(PORT, server.port.to_bytes(2, "big"))
    )  # fmt: skip


def _number(data: memoryview) -> int:
    return int.from_bytes(data, "little")


def _address(family: int, data: memoryview) -> str:
    return str(ipaddress.ip_address(bytes(data[: 16 if family == socket.AF_INET6 else 4])))


class Kernel:
    """IPVS and the dummy device of this network namespace. Methods block; failures are OSErrors."""

    def __init__(self) -> None:
        self.family = _family()
        self.netlink = Socket(NETLINK_GENERIC)
        self.route = Socket(NETLINK_ROUTE)
        self.ip = IPRoute()

    def close(self) -> None:
        for part in (self.netlink, self.route, self.ip):
            part.close()

    def prepare(self) -> None:
        """The settings of the namespace that IPVS for services needs, and the device."""
        for name, value in SYSCTLS.items():
            _sysctl(f"net/ipv4/vs/{name}", value)
        _sysctl("net/ipv4/ip_forward", 1)
        if self.device is None:
            with _kernel_errors():
                self.ip.link("add", ifname=DEVICE, kind="dummy")

    # virtual servers

    def servers(self) -> dict[Server, Virtual]:
        """All virtual servers there are, but for those by firewall mark."""
        out: dict[Server, Virtual] = {}
        for payload in self.netlink.dump(self.family, _command(GET_SERVICE)):
            found = dict(attributes(dict(attributes(payload))[SERVICE]))
            protocol = PROTOCOL_NAMES.get(_number(found[PROTOCOL])) if PROTOCOL in found else None
            if protocol is not None:
                server = Server(_address(_number(found[AF]), found[ADDRESS]), protocol, int.from_bytes(found[PORT], "big"))
                affinity = _number(found[TIMEOUT]) if _number(found[FLAGS][:4]) & PERSISTENT else 0
                out[server] = Virtual(bytes(found[SCHEDULER]).rstrip(b"\0").decode(), affinity, {})
        for server, virtual in out.items():
            virtual.weights.update({backend: weight for backend, weight, _ in self.backends(server)})
        return out

    def backends(self, server: Server) -> Iterator[tuple[Backend, int, int]]:
        """(backend, weight, connections) of each backend of a virtual server."""
        for payload in self.netlink.dump(self.family, _command(GET_DEST) + nested(SERVICE, _key(server))):
            found = dict(attributes(dict(attributes(payload))[DEST]))
            ip = _address(socket.AF_INET6 if ":" in server.ip else socket.AF_INET, found[DEST_ADDRESS])
            backend = ip, int.from_bytes(found[DEST_PORT], "big")
            yield backend, _number(found[WEIGHT]), _number(found[ACTIVE]) + _number(found[INACTIVE])

    def apply(self, steps: Iterable[Step]) -> None:
        """Do all steps. What is there already, or gone already, is as good as done; the first other failure is raised at the end."""
        steps = list(steps)
        failures = self.netlink.requests((self.family, 0, encode(step)) for step in steps)
        for step, code in zip(steps, failures, strict=True):
            if code and not (step.verb == "add" and code == errno.EEXIST) and not (step.verb == "del" and code in (errno.ENOENT, errno.ESRCH)):
                raise OSError(code, f"IPVS: {step.verb} {step.server} {step.backend or ''}: {errno.errorcode.get(code, code)}")

    # addresses

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

    def bind(self, addresses: Iterable[str]) -> None:
        self._addresses(NEW_ADDRESS, F_CREATE, addresses, errno.EEXIST)

    def unbind(self, addresses: Iterable[str]) -> None:
        self._addresses(DEL_ADDRESS, 0, addresses, errno.EADDRNOTAVAIL)

    def _addresses(self, type_: int, flags: int, addresses: Iterable[str], as_good_as_done: int) -> None:
        device, addresses = self.device, list(addresses)
        messages = []
        for address in addresses:
            packed = ipaddress.ip_address(address).packed
            head = struct.pack("=BBBBI", socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, len(packed) * 8, 0, 0, device)
            messages.append((type_, flags, head + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)))
        for address, code in zip(addresses, self.route.requests(messages), strict=True):
            if code and code != as_good_as_done:
                raise OSError(code, f"{DEVICE}: {address}: {errno.errorcode.get(code, code)}")

    def node_addresses(self) -> set[str]:
        """The node's own addresses: not loopback, not link-local, not the services'."""
        device = self.device
        out = set()
        for a in self.ip.get_addr():
            address = a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS")
            if a["index"] != device and not address.startswith(("127.", "fe80:")) and address != "::1":
                out.add(address)
        return out

    def remove_device(self) -> None:
        device = self.device
        if device is not None:
            with _kernel_errors():
                self.ip.link("del", index=device)


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
