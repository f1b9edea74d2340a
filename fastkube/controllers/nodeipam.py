"""node-ipam-controller: a range of the cluster's pod addresses for each node (spec.podCIDR, spec.podCIDRs).

What is taken is derived from the nodes; a range is handed out at most once, also while its write is under way.
"""

from __future__ import annotations

import ipaddress

from fastkube.controllers.meta import Object, deleting
from fastkube.controllers.runtime import Context, Controller

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class CidrSet:
    """The subnets of `mask` bits of one range; which are taken, as a set of numbers. Pure."""

    def __init__(self, cidr: str, mask: int) -> None:
        """Raises ValueError when `cidr` is no network or no larger than `mask`."""
        self.network: Network = ipaddress.ip_network(cidr)
        if not self.network.prefixlen <= mask <= self.network.max_prefixlen:
            raise ValueError(f"node ranges of /{mask} do not fit into {cidr}")
        self.mask = mask
        self.count = 1 << (mask - self.network.prefixlen)
        self.taken: set[int] = set()
        self._next = 0

    def allocate(self) -> str | None:
        """The next free range, round robin so that one just given back rests a while; None: all are taken."""
        for i in range(self.count):
            number = (self._next + i) % self.count
            if number not in self.taken:
                self.taken.add(number)
                self._next = (number + 1) % self.count
                return self._range(number)
        return None

    def occupy(self, cidr: str) -> None:
        """Take every subnet that overlaps `cidr`; ranges of other networks are ignored."""
        self.taken.update(self._numbers(cidr))

    def release(self, cidr: str) -> None:
        self.taken.difference_update(self._numbers(cidr))

    def _range(self, number: int) -> str:
        base = int(self.network.network_address) + (number << (self.network.max_prefixlen - self.mask))
        return f"{ipaddress.ip_address(base) if self.network.version == 4 else ipaddress.IPv6Address(base)}/{self.mask}"

    def _numbers(self, cidr: str) -> range:
        try:
            other = ipaddress.ip_network(cidr, strict=False)
        except ValueError:
            return range(0)
        if other.version != self.network.version or not other.overlaps(self.network):
            return range(0)
        shift = self.network.max_prefixlen - self.mask
        base = int(self.network.network_address)
        first = max(int(other.network_address) - base, 0) >> shift
        last = min(int(other.broadcast_address) - base, int(self.network.broadcast_address) - base) >> shift
        return range(first, last + 1)


class NodeIpamController(Controller):
    name = "node-ipam-controller"
    account = "node-controller"
    component = "cidrAllocator"
    workers = 1  # one at a time hands out ranges

    def __init__(self, context: Context) -> None:
        options = context.options
        cidrs = [c for c in options.cluster_cidr.split(",") if c] if options.allocate_node_cidrs else []
        self.sets = [CidrSet(c, options.node_cidr_mask_size if ":" not in c else max(64, ipaddress.ip_network(c).prefixlen)) for c in cidrs]
        for service_range in [c for c in options.service_cluster_ip_range.split(",") if c]:
            for one in self.sets:
                one.occupy(service_range)
        super().__init__(context)

    def setup(self) -> None:
        self.nodes = self.informer("v1/nodes")
        self.nodes.add_handler(self._changed, lambda old, new: self._changed(new), self._deleted)

    def _changed(self, node: Object) -> None:
        ranges = _ranges(node)
        for one in self.sets:
            for cidr in ranges:
                one.occupy(cidr)
        if not ranges and self.sets:
            self.enqueue(node)

    def _deleted(self, node: Object) -> None:
        for one in self.sets:
            for cidr in _ranges(node):
                one.release(cidr)

    async def reconcile(self, key: str) -> float | None:
        node = self.nodes.get(None, key)
        if node is None or deleting(node) or _ranges(node) or self.behind(node):
            return None
        chosen = [one.allocate() for one in self.sets]
        given = [cidr for cidr in chosen if cidr is not None]
        if len(given) < len(self.sets):
            self._give_back(given)
            self.recorder.event(node, "Normal", "CIDRNotAvailable", f"Node {key} status is now: CIDRNotAvailable")
            raise RuntimeError("no pod range is left for a node; --cluster-cidr is used up")
        try:
            self.wrote(await self.client.patch("v1/nodes", key, {"spec": {"podCIDR": given[0], "podCIDRs": given}}, kind="strategic"))
        except BaseException:
            self._give_back(given)
            raise
        return None

    def _give_back(self, given: list[str]) -> None:
        for one in self.sets:
            for cidr in given:
                one.release(cidr)


def _ranges(node: Object) -> list[str]:
    spec = node.get("spec") or {}
    return spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
