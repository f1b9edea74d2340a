"""Several nodes on one machine: the bridge that is their network, and a network namespace for each.

One node lives in the namespace `fastkube up` was started in, and its address is the bridge's, 10.245.0.1. More than one get a namespace
each, joined to the bridge by a veth pair, 10.245.0.11 and on; the machine itself reaches pods and services through the first of them.
All of it carries our names (links `fastkube0` and `fkn-*`, namespaces `fastkube-*`), so that `remove` takes away exactly what was made here.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

BRIDGE = "fastkube0"
ADDRESS = "10.245.0.1"
PREFIX_LENGTH = 24
NODES_MAX = 200
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/12"

EEXIST = 17
ROUTE_PROTOCOL = 76  # as the node agent marks its routes


class MachineError(Exception):
    """The machine's network could not be set up; the text says what to do."""


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """Where a node lives: the path of its network namespace (None: ours) and its address."""

    netns: str | None
    address: str


def _bridge(ip: IPRoute) -> int:
    found = ip.link_lookup(ifname=BRIDGE)
    if not found:
        ip.link("add", ifname=BRIDGE, kind="bridge")
        found = ip.link_lookup(ifname=BRIDGE)
    index = found[0]
    with _exists_already():
        ip.addr("add", index=index, address=ADDRESS, prefixlen=PREFIX_LENGTH)
    ip.link("set", index=index, state="up")
    return index


@contextlib.contextmanager
def _exists_already():  # type: ignore[no-untyped-def]
    try:
        yield
    except NetlinkError as error:
        if error.code != EEXIST:
            raise


def set_up_bridge() -> None:
    """The bridge with its address; what is there already stays. Raises MachineError."""
    try:
        with IPRoute() as ip:
            lo = ip.link_lookup(ifname="lo")[0]
            ip.link("set", index=lo, state="up")
            _bridge(ip)
    except (NetlinkError, PermissionError) as error:
        raise MachineError(f"cannot make the node network (bridge {BRIDGE}): {error}; it needs root and CAP_NET_ADMIN") from error


async def set_up_nodes(count: int) -> list[NodeNetwork]:
    """The networks of `count` nodes. Raises MachineError."""
    if count > NODES_MAX:
        raise MachineError(f"--nodes {count}: at most {NODES_MAX} nodes with containers fit on one machine")
    await asyncio.to_thread(set_up_bridge)  # pyroute2 has an event loop of its own
    if count == 1:
        return [NodeNetwork(None, ADDRESS)]
    networks = [await _namespace(i) for i in range(1, count + 1)]
    await _command("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for cidr in (POD_CIDR, SERVICE_CIDR):
        await _command("ip", "route", "replace", cidr, "via", networks[0].address, "proto", str(ROUTE_PROTOCOL))
    return networks


async def _namespace(i: int) -> NodeNetwork:
    name, outer, inner, address = f"fastkube-{i}", f"fkn-{i}", f"fkp-{i}", f"10.245.0.{10 + i}"
    netns = Path("/run/netns") / name
    if not netns.exists():
        await _command("ip", "netns", "add", name)
    await _command("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, check=False)  # there already: fine
    await _command("ip", "link", "set", inner, "netns", name, "name", "eth0", check=False)
    await _command("ip", "link", "set", outer, "master", BRIDGE, "up")
    enter = ["ip", "-n", name]
    await _command(*enter, "address", "replace", f"{address}/{PREFIX_LENGTH}", "dev", "eth0")
    for link in ("lo", "eth0"):
        await _command(*enter, "link", "set", link, "up")
    return NodeNetwork(str(netns), address)


async def remove() -> None:
    """Take away bridge, namespaces, links and routes of ours; what is not there is no error."""
    await _command("ip", "route", "flush", "proto", str(ROUTE_PROTOCOL), check=False)
    for netns in sorted(Path("/run/netns").glob("fastkube-*")):
        await _command("ip", "netns", "delete", netns.name, check=False)
    await asyncio.to_thread(_remove_links)


def _remove_links() -> None:
    with IPRoute() as ip:
        for link in ip.get_links():
            name = link.get_attr("IFLA_IFNAME")
            if name == BRIDGE or name.startswith("fkn-"):
                with contextlib.suppress(NetlinkError):
                    ip.link("del", index=link["index"])


async def _command(*argv: str, check: bool = True) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()
    if check and process.returncode:
        raise MachineError(f"{' '.join(argv)}: {stderr.decode().strip()}")
