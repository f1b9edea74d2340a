"""Routes that let the node itself connect to service addresses.

A connection from the node is routed before it is translated, and the node agent's `unreachable` route for the service range would refuse
it. So the range is routed to the loopback device, in two halves, as more specific routes win. What is not translated is refused by the
proxy's own rules, and leaves the machine in no case.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

ROUTE_PROTOCOL = 76  # marks all of fastkube's routes
ENOENT, ESRCH = 2, 3


def halves(cidr: str) -> list[str]:
    """`cidr` as two routes more specific than itself; one address is left as it is."""
    network = ipaddress.ip_network(cidr)
    return [str(n) for n in network.subnets()] if network.prefixlen < network.max_prefixlen else [cidr]


def ensure(service_cidrs: Iterable[str]) -> None:
    """Blocks: netlink, in a thread of its own. OSError (NetlinkError) when the kernel refuses."""
    with IPRoute() as ip:
        loopback = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=loopback, state="up")
        for cidr in service_cidrs:
            for half in halves(cidr):
                ip.route("replace", dst=half, oif=loopback, proto=ROUTE_PROTOCOL, **_family(half))


def remove(service_cidrs: Iterable[str]) -> None:
    with IPRoute() as ip:
        for cidr in service_cidrs:
            for half in halves(cidr):
                try:
                    ip.route("del", dst=half, oif=ip.link_lookup(ifname="lo")[0], proto=ROUTE_PROTOCOL, **_family(half))
                except NetlinkError as e:
                    if e.code not in (ENOENT, ESRCH):
                        raise


def _family(cidr: str) -> dict[str, int]:
    return {"family": 10 if ":" in cidr else 2}
