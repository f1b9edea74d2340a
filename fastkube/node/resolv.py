"""What a pod finds in /etc/resolv.conf and /etc/hosts: pure functions of its spec, the node's own files and the cluster's DNS settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkube.node import podspec

Object = dict[str, Any]

SEARCHES_MAX = 32
SEARCH_BYTES_MAX = 2048
NAMESERVERS_MAX = 3

_HOSTS_HEAD = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


@dataclass(slots=True)
class Dns:
    servers: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


def parse(text: str) -> Dns:
    """A resolv.conf."""
    out = Dns()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if not words:
            continue
        if words[0] == "nameserver" and len(words) > 1:
            out.servers.append(words[1])
        elif words[0] in ("search", "domain"):
            out.searches = [w.rstrip(".") or "." for w in words[1:]]
        elif words[0] == "options":
            out.options = words[1:]
    return out


def pod_dns(pod: Object, host: Dns, cluster_servers: Sequence[str], cluster_domain: str) -> Dns:
    """A pod's resolver settings: dnsPolicy, then dnsConfig merged in."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    if policy == "ClusterFirst" and podspec.host_network(pod):
        policy = "Default"
    if policy == "None":
        out = Dns()
    elif policy in ("ClusterFirst", "ClusterFirstWithHostNet") and cluster_servers:
        namespace = pod["metadata"].get("namespace", "default")
        searches = [f"{namespace}.svc.{cluster_domain}", f"svc.{cluster_domain}", cluster_domain] if cluster_domain else []
        out = Dns(list(cluster_servers), _unique([*searches, *host.searches]), ["ndots:5"])
    else:
        out = Dns(list(host.servers), list(host.searches), list(host.options))
    extra = spec.get("dnsConfig") or {}
    out.servers = _unique([*out.servers, *(extra.get("nameservers") or ())])[:NAMESERVERS_MAX]
    out.searches = _unique([*out.searches, *(extra.get("searches") or ())])
    out.options = _merged_options(out.options, extra.get("options") or ())
    while len(out.searches) > SEARCHES_MAX or len(" ".join(out.searches)) > SEARCH_BYTES_MAX:
        out.searches.pop()
    return out


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _merged_options(options: Sequence[str], extra: Sequence[Object]) -> list[str]:
    merged: dict[str, str | None] = {}
    for option in options:
        name, colon, value = option.partition(":")
        merged[name] = value if colon else None
    for entry in extra:
        merged[entry["name"]] = entry.get("value")
    return [f"{k}:{v}" if v is not None else k for k, v in merged.items()]


def hostname_of(pod: Object, cluster_domain: str, node_name: str) -> tuple[str, str]:
    """(hostname, domain name or ""), as the pod's own `hostname` and `hostname -d` give them."""
    spec = pod["spec"]
    if spec.get("hostnameOverride"):
        return spec["hostnameOverride"], ""
    if podspec.host_network(pod):
        return node_name, ""
    name = spec.get("hostname") or pod["metadata"]["name"][:63].rstrip("-.")
    domain = ""
    if spec.get("subdomain"):
        domain = f"{spec['subdomain']}.{pod['metadata'].get('namespace', 'default')}.svc.{cluster_domain}"
    return name, domain


def sandbox_hostname(pod: Object, cluster_domain: str, node_name: str) -> str:
    """What the sandbox's UTS namespace is told; "" when it shares the node's."""
    if podspec.host_network(pod):
        return ""
    name, domain = hostname_of(pod, cluster_domain, node_name)
    return f"{name}.{domain}" if pod["spec"].get("setHostnameAsFQDN") and domain else name


def hosts_file(pod: Object, ips: Sequence[str], host_file: str, cluster_domain: str, node_name: str) -> str:
    """The pod's /etc/hosts: the node's own for hostNetwork, else ours with the pod's addresses; hostAliases behind."""
    if podspec.host_network(pod):
        text = "# Kubernetes-managed hosts file (host network).\n" + host_file
    else:
        name, domain = hostname_of(pod, cluster_domain, node_name)
        names = f"{name}.{domain}\t{name}" if domain else name
        text = _HOSTS_HEAD + "".join(f"{ip}\t{names}\n" for ip in ips)
    aliases = pod["spec"].get("hostAliases") or ()
    if aliases:
        text += "\n# Entries added by HostAliases.\n" + "".join(f"{a['ip']}\t" + "\t".join(a.get("hostnames") or ()) + "\n" for a in aliases)
    return text
