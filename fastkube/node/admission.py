"""Whether this node takes a pod: pure, the kubelet's own admission. A pod that is refused is Failed with the reason; it never starts.

Upstream's predicates on the node: resources, ports, node name, selector and affinity, NoExecute taints, safe sysctls, operating system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fastkube.node import podspec

Object = dict[str, Any]

SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip


def admit(
    pod: Object, others: Iterable[Object], node: Object | None, allocatable: Mapping[str, float], pods_max: int, unsafe_sysctls: Iterable[str] = ()
) -> tuple[str, str] | None:
    """None: welcome. Else (reason, message)."""
    spec = pod["spec"]
    if (spec.get("os") or {}).get("name", "linux") != "linux":
        return "PodOSNotSupported", f"Failed to admit pod as the OS field doesn't match node OS, requested: {spec['os']['name']}"
    refused = _sysctls(pod, unsafe_sysctls)
    if refused:
        return refused
    others = list(others)
    refused = fits(pod, others, allocatable, pods_max)
    if refused:
        return refused
    if node is not None:
        labels = node["metadata"].get("labels") or {}
        if not selects(spec, labels, node["metadata"]["name"]):
            return "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        if not podspec.is_static(pod) and not _tolerates(pod, node):
            return "TaintToleration", "Predicate TaintToleration failed: node(s) had untolerated taint(s)"
    taken = {p for other in others for p in host_ports(other)}
    if any(_conflicts(port, taken) for port in host_ports(pod)):
        return "NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    return None


def fits(pod: Object, others: list[Object], allocatable: Mapping[str, float], pods_max: int) -> tuple[str, str] | None:
    """Room for the pod beside `others`; else (OutOfRESOURCE, message)."""
    if podspec.is_critical(pod) and podspec.is_static(pod):
        return None
    text = "Node didn't have enough resource: {}, requested: {}, used: {}, capacity: {}"
    if len(others) + 1 > pods_max:
        return "OutOfpods", text.format("pods", 1, len(others), pods_max)
    used: dict[str, float] = {}
    for other in others:
        for name, value in podspec.pod_requests(other).items():
            used[name] = used.get(name, 0.0) + value
    for name, value in podspec.pod_requests(pod).items():
        capacity = allocatable.get(name, 0.0)
        if value > 0 and value + used.get(name, 0.0) > capacity + 1e-9:
            scale = 1000 if name == "cpu" else 1
            numbers = [round(v * scale) for v in (value, used.get(name, 0.0), capacity)]
            return f"OutOf{name}", text.format(name, *numbers)
    return None


def _sysctls(pod: Object, unsafe: Iterable[str]) -> tuple[str, str] | None:
    allowed = list(unsafe)
    for sysctl in (pod["spec"].get("securityContext") or {}).get("sysctls") or ():
        name = sysctl["name"].replace("/", ".")
        if name not in SAFE_SYSCTLS and not any(name == a or (a.endswith("*") and name.startswith(a[:-1])) for a in allowed):
            return "SysctlForbidden", f'forbidden sysctl: "{sysctl["name"]}" not allowlisted'
        if name.startswith("net.") and podspec.host_network(pod):
            return "SysctlForbidden", f'forbidden sysctl: "{sysctl["name"]}" not allowed with host net enabled'
    return None


def host_ports(pod: Object) -> set[tuple[str, str, int]]:
    """(host IP, protocol, port) of each host port."""
    return {
        (p.get("hostIP") or "0.0.0.0", p.get("protocol", "TCP"), p["hostPort"])
        for c in [*podspec.init_containers(pod), *podspec.containers(pod)]
        for p in c.get("ports") or ()
        if p.get("hostPort")
    }


def _conflicts(port: tuple[str, str, int], taken: set[tuple[str, str, int]]) -> bool:
    return any(port[1:] == other[1:] and (port[0] == other[0] or "0.0.0.0" in (port[0], other[0])) for other in taken)


# --- node selection ---


def selects(spec: Object, labels: Mapping[str, str], node_name: str) -> bool:
    """nodeSelector and required node affinity."""
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term(term, labels, node_name) for term in required.get("nodeSelectorTerms") or ())


def _term(term: Object, labels: Mapping[str, str], node_name: str) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(_matches(e, labels) for e in expressions) and all(_matches(f, {"metadata.name": node_name}) for f in fields)


def _matches(requirement: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(requirement["key"]), requirement.get("values") or ()
    match requirement["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            if value is None or not re.fullmatch(r"-?\d+", value) or not values:
                return False
            return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])
    return False


def _tolerates(pod: Object, node: Object) -> bool:
    taints = [t for t in (node.get("spec") or {}).get("taints") or () if t["effect"] == "NoExecute"]
    tolerations = pod["spec"].get("tolerations") or ()
    return all(any(tolerates(toleration, taint) for toleration in tolerations) for taint in taints)


def tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")
