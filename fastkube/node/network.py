"""The built-in pod network of a node: CNI configuration, routes to the other nodes' pods, masquerade for what leaves the cluster.

Laws:
1. Packets for pod and service addresses never leave by accident: before anything else both ranges get an `unreachable` route, which the routes
   of single pods and nodes and the proxy's rules override.
2. Pods are attached by the `ptp` plugin: a veth pair and a host route each. All traffic between pods is routed, so that the service
   proxy's connection tracking sees both directions also between two pods of one node (with `bridge` it does only under br_netfilter).
3. Everything made is named or marked as ours (CNI network `fastkube`, nft table `fastkube-node`, route protocol 76), so `remove` finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastkube.runtime import config, logs

NETWORK = "fastkube"
NFT_TABLE = "fastkube-node"
ROUTE_PROTOCOL = 76  # "F" + 6: marks our routes; below 128 nobody else claims it (/etc/iproute2/rt_protos)
UNREACHABLE_METRIC = 4096  # behind every route that anyone else makes for the same range
ROUTE_UNREACHABLE = 7
CNI_VERSION = "0.4.0"
MTU_DEFAULT = 1500
IFF_UP, IFF_LOOPBACK = 1, 8

log = logs.get("network")


class NetworkError(Exception):
    """The kernel or a tool refused; the text says what was tried."""


@dataclass(frozen=True)
class Ranges:
    """The cluster's address ranges, in CIDR notation."""

    pods: str = "10.244.0.0/16"
    services: str = "10.96.0.0/12"


class PodNetwork:
    """The network of one node, in the network namespace of the caller."""

    def __init__(self, ranges: Ranges, cni_conf_dir: Path, state_dir: Path, mtu: int = 0) -> None:
        self.ranges = ranges
        self.cni_conf_dir = Path(cni_conf_dir)
        self.state_dir = Path(state_dir)
        self.mtu = mtu
        self.pod_cidr = ""
        self._routes: dict[str, str] = {}  # other nodes' podCIDR -> gateway, as set by us

    async def guard(self) -> None:
        """Law 1. Called before the node does anything else."""
        await asyncio.to_thread(self._guard)

    def _guard(self) -> None:
        with IPRoute() as ip:
            for destination in (self.ranges.pods, self.ranges.services):
                ip.route("replace", dst=destination, type=ROUTE_UNREACHABLE, priority=UNREACHABLE_METRIC, proto=ROUTE_PROTOCOL)

    async def set_up(self, pod_cidr: str) -> None:
        """Give pods of this node addresses of `pod_cidr`: forwarding on, masquerade in place, then the CNI configuration (which makes the runtime ready)."""
        subnet = ipaddress.ip_network(pod_cidr)
        await self.guard()
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        await nft(self._masquerade(pod_cidr))
        mtu = self.mtu or await asyncio.to_thread(_uplink_mtu)
        config.write_file(self.cni_conf_dir / "10-fastkube.conflist", orjson.dumps(self._conflist(str(subnet), mtu), option=orjson.OPT_INDENT_2))
        self.pod_cidr = pod_cidr
        log.info("pod network ready", pod_cidr=pod_cidr, mtu=mtu)

    def _conflist(self, subnet: str, mtu: int) -> dict[str, Any]:
        ipam = {
            "type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.state_dir / "ipam"),
        }  # fmt: skip
        return {
            "cniVersion": CNI_VERSION,
            "name": NETWORK,
            "plugins": [
                {"type": "ptp", "ipMasq": False, "mtu": mtu, "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            ],
        }

    def _masquerade(self, pod_cidr: str) -> str:
        return f"""
table ip {NFT_TABLE}
delete table ip {NFT_TABLE}
table ip {NFT_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pod_cidr} ip daddr != {{ {self.ranges.pods}, 224.0.0.0/4 }} fib daddr type != local masquerade
  }}
}}
"""

    async def set_peers(self, peers: Iterable[tuple[str, str]]) -> None:
        """Route other nodes' pods through their nodes: (podCIDR, InternalIP) of each. What is not among them is removed."""
        wanted = {cidr: gateway for cidr, gateway in peers if cidr and gateway and cidr != self.pod_cidr}
        if wanted == self._routes:
            return
        await asyncio.to_thread(self._set_routes, wanted)

    def _set_routes(self, wanted: dict[str, str]) -> None:
        with IPRoute() as ip:
            for cidr in self._routes.keys() - wanted.keys():
                with contextlib.suppress(NetlinkError):
                    ip.route("del", dst=cidr, gateway=self._routes[cidr], proto=ROUTE_PROTOCOL)
                del self._routes[cidr]
            for cidr, gateway in wanted.items():
                if self._routes.get(cidr) == gateway:
                    continue
                try:
                    ip.route("replace", dst=cidr, gateway=gateway, proto=ROUTE_PROTOCOL)
                    self._routes[cidr] = gateway
                except NetlinkError as e:
                    log.warning("no route to a node's pods", pod_cidr=cidr, gateway=gateway, error=str(e))

    async def remove(self) -> None:
        """Take back everything `guard`, `set_up` and `set_peers` made (pods are gone by then); also what an earlier process of ours left."""
        (self.cni_conf_dir / "10-fastkube.conflist").unlink(missing_ok=True)
        await nft(f"table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\n")
        await remove_portmap_chains()
        await asyncio.to_thread(_remove_routes)
        self._routes.clear()


# pyroute2 brings an event loop of its own, which does not go together with uvloop: it works in threads.


def _uplink_mtu() -> int:
    """The MTU of the default route's link; without one, the smallest of the links that are up."""
    with IPRoute() as ip:
        links = {link["index"]: link.get("mtu") for link in ip.get_links() if link["flags"] & IFF_UP and not link["flags"] & IFF_LOOPBACK}
        for route in ip.get_default_routes(family=socket.AF_INET):
            if route.get("oif") in links:
                return int(links[route.get("oif")] or MTU_DEFAULT)
    return int(min((m for m in links.values() if m), default=MTU_DEFAULT))


def _remove_routes() -> None:
    with IPRoute() as ip:
        for route in list(ip.get_routes(family=socket.AF_INET, proto=ROUTE_PROTOCOL)):
            if route["proto"] == ROUTE_PROTOCOL:
                with contextlib.suppress(NetlinkError):
                    ip.route("del", dst=f"{route.get('dst')}/{route['dst_len']}", type=route["type"], proto=ROUTE_PROTOCOL)


async def remove_portmap_chains() -> None:
    """The portmap plugin leaves its (empty) base chains behind when the last pod with a hostPort is gone."""
    chains = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK")
    saved = (await run("iptables-save", "-t", "nat", check=False)).decode()
    if not any(f":{chain} " in saved for chain in chains):
        return
    jumps = [line.replace("-A ", "-D ", 1) for line in saved.splitlines() if line.startswith("-A ") and any(f"-j {chain}" in line for chain in chains)]
    present = [chain for chain in chains if f":{chain} " in saved]
    script = ["*nat", *jumps, *(f"-F {c}" for c in present), *(f"-X {c}" for c in present), "COMMIT", ""]
    await run("iptables-restore", "--noflush", stdin="\n".join(script).encode(), check=False)


async def nft(script: str) -> None:
    """One nft transaction; NetworkError when the kernel refuses it."""
    await run("nft", "-f", "-", stdin=script.encode())


async def run(*command: str, stdin: bytes = b"", check: bool = True) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    except FileNotFoundError:
        if check:
            raise NetworkError(f"{command[0]} is not installed") from None
        return b""
    out, err = await process.communicate(stdin)
    if check and process.returncode:
        raise NetworkError(f"{' '.join(command)}: {err.decode(errors='replace').strip()}")
    return out
