"""The nftables table beside IPVS: what IPVS itself does not do. Same table name and machinery as nftables mode, but nothing is translated here.

A frontend is one element: its lane only marks what must be masqueraded. Besides: refusing or dropping where there are no endpoints,
allowed sources, hairpin, and refusing what else is sent to a service's address: it is bound to this machine, whose own
services would answer otherwise. Ping passes.
"""

from __future__ import annotations

import ipaddress

from fastkube.proxy.layout import DROP, LAYOUT_VERSION, MASQUERADE_MARK, REFUSE, Elements, Lane, Layout
from fastkube.proxy.model import Frontend, Target


class IpvsLayout(Layout):
    standing = (REFUSE, DROP, Lane("guarded"), Lane("cluster"), Lane("external"), Lane("direct"), Lane("external", True), Lane("direct", True))

    def elements(self, frontend: Frontend, target: Target) -> Elements:
        node = frontend.is_node_port
        prefix = "node-" if node else ""
        key: tuple[str | int, ...] = (frontend.protocol, frontend.port) if node else (frontend.ip, frontend.protocol, frontend.port)
        backends = target.backends if target.outside is None else target.outside
        out: Elements = {} if node else {("addresses", (frontend.ip,)): None}
        if not backends:
            out[f"{prefix}no-endpoints", key] = DROP if target.drop or target.backends else REFUSE
            return out
        verdict = Lane("direct" if target.outside is not None else "external" if target.external else "cluster", node)
        if target.sources and not node:
            out["services-guarded", key] = verdict
            for cidr in target.sources:
                out["sources", (str(ipaddress.ip_network(cidr, strict=False)), *key)] = None
            verdict = Lane("guarded")
        out[f"{prefix}services", key] = verdict
        for backend in backends:
            if backend.local:
                out["hairpin", (backend.ip, backend.ip)] = None
        return out

    def base(self) -> dict[str, str]:
        service = f"{self.address} . inet_proto . inet_service"
        out = {
            "map services": f"type {service} : verdict;",
            "map no-endpoints": f"type {service} : verdict;",
            "map node-services": "type inet_proto . inet_service : verdict;",
            "map node-no-endpoints": "type inet_proto . inet_service : verdict;",
            "map services-guarded": f"type {service} : verdict;",
            "set sources": f"type {self.address} . {service}; flags interval;",
            "set hairpin": f"type {self.address} . {self.address};",
            "set addresses": f"type {self.address};",
        }
        out |= {f"chain {lane.name}": self.lane_body(lane) for lane in self.standing}
        out |= {f"chain {name}": text for name, text in self._hooks().items()}
        out[f"chain {self.version}"] = ""
        return out

    @property
    def version(self) -> str:
        return f"layout-ipvs-{LAYOUT_VERSION}"

    def _hooks(self) -> dict[str, str]:
        key, node_key, at_node = self.field(False), self.field(True), self.at_node
        stray = f"{self.nft} daddr {{ {', '.join(self.service_cidrs)} }} ct state new goto refuse;" if self.service_cidrs else ""
        rules = (
            f"ct state new {key} vmap @no-endpoints; ct state new {key} vmap @services; "
            f"{self.nft} daddr @addresses meta l4proto {{ tcp, udp, sctp }} ct state new goto refuse; {self.nft} daddr @addresses accept; "
            f"ct state new {at_node}{node_key} vmap @node-no-endpoints; ct state new {at_node}{node_key} vmap @node-services; {stray}"
        )
        mark = f"{MASQUERADE_MARK:#x}"
        return {
            "filter-prerouting": f"type filter hook prerouting priority dstnat - 10; {rules}",
            "filter-output": f"type filter hook output priority -110; {rules}",
            "nat-postrouting": (
                f'type nat hook postrouting priority srcnat; oifname != "lo" {self.nft} saddr . {self.nft} daddr @hairpin masquerade; '
                f"meta mark & {mark} == {mark} meta mark set meta mark xor {mark} masquerade fully-random;"
            ),
        }

    def lane_body(self, lane: Lane) -> str:
        mark = f"meta mark set meta mark or {MASQUERADE_MARK:#x};"
        if lane.kind == "external":
            return mark
        if lane.kind == "cluster":
            # The node's own connections carry the service's address as their source: it is the local address that leads there.
            pods = f"{self.nft} saddr != {{ {', '.join(self.cluster_cidrs)} }} {mark} " if self.cluster_cidrs else ""
            return f"{pods}fib saddr type local {mark}"
        return "" if lane.kind == "direct" else super().lane_body(lane)
