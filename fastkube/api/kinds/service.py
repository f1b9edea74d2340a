"""The rules of Service (upstream: pkg/registry/core/service/strategy.go, ValidateService). Addresses and node ports are allocated by the API server."""

from __future__ import annotations

from typing import Any

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, enum, rule
from fastkube.api.kinds.config import non_special_ip
from fastkube.api.kinds.pod_containers import PROTOCOLS, port_number_or_name
from fastkube.api.meta import validate_labels

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_AFFINITY_SECONDS = 10800
_AFFINITY_SECONDS_MAX = 86400
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
TOPOLOGY_MODE = "service.kubernetes.io/topology-mode"


def externally_accessible(spec: Object) -> bool:
    return spec.get("type") in ("NodePort", "LoadBalancer") or (spec.get("type") == "ClusterIP" and bool(spec.get("externalIPs")))


def needs_health_check(spec: Object) -> bool:
    """Whether the service gets a health check node port."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def is_headless(spec: Object) -> bool:
    return (spec.get("clusterIPs") or [spec.get("clusterIP")])[0] == "None"


class Service(Kind):
    kind = "Service"
    status_metadata = METADATA
    has_generation = False
    name_rule = "label"
    field_labels = ("spec.clusterIP", "spec.type")
    cluster_families: tuple[str, ...] = ("IPv4",)  # of the cluster's service ranges, first one first

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("sessionAffinity"):
            spec["sessionAffinity"] = "None"
        if spec["sessionAffinity"] == "None":
            spec.pop("sessionAffinityConfig", None)
        if spec["sessionAffinity"] == "ClientIP":
            client = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
            if client.get("timeoutSeconds") is None:
                spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": _AFFINITY_SECONDS}}
        if not spec.get("type"):
            spec["type"] = "ClusterIP"
        for port in spec.get("ports") or ():
            if not port.get("protocol"):
                port["protocol"] = "TCP"
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port", 0)
        if externally_accessible(spec) and not spec.get("externalTrafficPolicy"):
            spec["externalTrafficPolicy"] = "Cluster"
        if spec.get("internalTrafficPolicy") is None and spec["type"] in ("NodePort", "LoadBalancer", "ClusterIP"):
            spec["internalTrafficPolicy"] = "Cluster"
        if spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
            spec["allocateLoadBalancerNodePorts"] = True
        ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        for point in ingress:
            if point.get("ip") and point.get("ipMode") is None and spec["type"] == "LoadBalancer":
                point["ipMode"] = "VIP"

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"loadBalancer": {}}
        spec = obj["spec"]
        _normalize_ips(spec, None)
        _default_families(spec, self.cluster_families)

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        new, before = obj["spec"], old["spec"]
        _normalize_ips(new, before)
        _keep_allocated(new, before)
        _drop_by_type(new, before)
        if new["type"] != "ExternalName":
            for key in ("ipFamilies", "ipFamilyPolicy"):
                if not new.get(key) and before.get(key):
                    new[key] = before[key]
            _default_families(new, self.cluster_families)

    def validate_create(self, obj: Object) -> list[FieldError]:
        return _service(obj)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return _ip_changes(obj["spec"], old["spec"]) + _service(obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        at = "status.loadBalancer"
        ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        if ingress and obj["spec"].get("type") != "LoadBalancer":
            return [forbidden_field(f"{at}.ingress", 'may only be used when `spec.type` is "LoadBalancer"')]
        errors: Errors = []
        for i, point in enumerate(ingress):
            here = f"{at}.ingress[{i}]"
            if point.get("ip") and formats.sloppy_ip(point["ip"]) is None:
                errors.append(invalid_value(f"{here}.ip", point["ip"], "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
            if point.get("ipMode") is not None and not point.get("ip"):
                errors.append(forbidden_field(f"{here}.ipMode", "may not be specified when `ip` is not set"))
            elif point.get("ipMode") is None and point.get("ip"):
                errors.append(required(f"{here}.ipMode", "must be specified when `ip` is set"))
            elif point.get("ipMode") not in (None, "VIP", "Proxy"):
                errors.append(not_supported(f"{here}.ipMode", point["ipMode"], ("Proxy", "VIP")))
            if point.get("hostname"):
                errors += rule(formats.subdomain, point["hostname"], f"{here}.hostname")
                if formats.sloppy_ip(point["hostname"]) is not None:
                    errors.append(invalid_value(f"{here}.hostname", point["hostname"], "must be a DNS name, not an IP address"))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        spec, annotations = obj["spec"], obj["metadata"].get("annotations") or {}
        out = []
        if "service.kubernetes.io/topology-aware-hints" in annotations and "service.kubernetes.io/topology-aware-hints" not in (
            (old or {}).get("metadata", {}).get("annotations") or {}
        ):
            out.append("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead")
        if is_headless(spec):
            if spec.get("loadBalancerIP"):
                out.append('spec.loadBalancerIP is ignored when spec.clusterIP is "None"')
            if spec.get("externalIPs"):
                out.append('spec.externalIPs is ignored when spec.clusterIP is "None"')
            if spec.get("sessionAffinity") not in (None, "None"):
                out.append("spec.SessionAffinity is ignored for headless services")
        return out

    def fields(self, obj: Object) -> dict[str, str]:
        return {"spec.clusterIP": obj["spec"].get("clusterIP") or "", "spec.type": obj["spec"].get("type") or ""}


# ---- what strategy does


def _normalize_ips(new: Object, old: Object | None) -> None:
    """clusterIP and clusterIPs[0] say the same; clients that know only the first may clear or set both through it."""
    ip, ips = new.get("clusterIP") or "", new.get("clusterIPs") or []
    if old is None:
        if ip and not ips:
            new["clusterIPs"] = [ip]
        return
    before, befores = old.get("clusterIP") or "", old.get("clusterIPs") or []
    same = ips == befores
    if before and not ip and same:
        new.pop("clusterIPs", None)
    elif (before and ip and before != ip and same) or (not before and ip and not ips):
        new["clusterIPs"] = [ip]


def _keep_allocated(new: Object, old: Object) -> None:
    """Values that the server allocated come back when an update leaves them out."""
    if "ExternalName" not in (new["type"], old.get("type")):
        if not new.get("clusterIP") and not new.get("clusterIPs") and old.get("clusterIP"):
            new["clusterIP"] = old["clusterIP"]
        if not new.get("clusterIPs") and old.get("clusterIPs") and new.get("clusterIP") == old.get("clusterIP"):
            new["clusterIPs"] = list(old["clusterIPs"])
    if new["type"] in ("NodePort", "LoadBalancer") and old.get("type") in ("NodePort", "LoadBalancer"):
        taken = {p["nodePort"] for p in new.get("ports") or () if p.get("nodePort")}
        before = {(p.get("protocol"), p.get("port")): p.get("nodePort", 0) for p in old.get("ports") or ()}
        for port in new.get("ports") or ():
            if not port.get("nodePort"):
                number = before.get((port.get("protocol"), port.get("port")), 0)
                if number and number not in taken:
                    port["nodePort"] = number
                    taken.add(number)
    if needs_health_check(old) and needs_health_check(new) and not new.get("healthCheckNodePort") and old.get("healthCheckNodePort"):
        new["healthCheckNodePort"] = old["healthCheckNodePort"]


def _drop_by_type(new: Object, old: Object) -> None:
    """Fields that only the old type had are dropped when the update left them as they were."""
    was, now = old.get("type"), new.get("type")
    if was != "ExternalName" and now == "ExternalName":
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if new.get(key) == old.get(key):
                new.pop(key, None)
        if new.get("internalTrafficPolicy") == old.get("internalTrafficPolicy"):
            new.pop("internalTrafficPolicy", None)
    if was in ("NodePort", "LoadBalancer") and now not in ("NodePort", "LoadBalancer"):
        ports, before = new.get("ports") or [], old.get("ports") or []
        if [p.get("nodePort") for p in ports] == [p.get("nodePort") for p in before]:
            for port in ports:
                port.pop("nodePort", None)
    if needs_health_check(old) and not needs_health_check(new) and new.get("healthCheckNodePort") == old.get("healthCheckNodePort"):
        new.pop("healthCheckNodePort", None)
    if externally_accessible(old) and not externally_accessible(new) and new.get("externalTrafficPolicy") == old.get("externalTrafficPolicy"):
        new.pop("externalTrafficPolicy", None)
    if was == "LoadBalancer" and now != "LoadBalancer":
        for key in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if new.get(key) == old.get(key):
                new.pop(key, None)


def _default_families(spec: Object, cluster: tuple[str, ...]) -> None:
    """ipFamilies and ipFamilyPolicy as the cluster's ranges and the given addresses have them."""
    if spec.get("type") == "ExternalName":
        return
    families = list(spec.get("ipFamilies") or [])
    for i, ip in enumerate(spec.get("clusterIPs") or ()):
        address = formats.sloppy_ip(ip)
        if i >= len(families) and address is not None:
            families.append(f"IPv{address.version}")
    policy = spec.get("ipFamilyPolicy")
    if is_headless(spec) and not spec.get("selector"):
        families = families or [cluster[0]]
        if policy is None:
            policy = "RequireDualStack"
        if len(families) < 2 and policy != "SingleStack":
            families.append("IPv6" if families[0] == "IPv4" else "IPv4")
    else:
        if policy is None:
            policy = "RequireDualStack" if len(families) > 1 else "SingleStack"
        families = families or [cluster[0]]
        if policy != "SingleStack" and len(families) < 2 and len(cluster) > 1:
            families.append(next(f for f in cluster if f != families[0]))
    spec["ipFamilies"], spec["ipFamilyPolicy"] = families, policy


# ---- validation


def _service(obj: Object) -> Errors:
    spec = obj["spec"]
    errors: Errors = []
    kind, ports = spec.get("type"), spec.get("ports") or []
    headless = is_headless(spec)
    if not ports and not headless and kind != "ExternalName":
        errors.append(required("spec.ports"))
    if kind == "LoadBalancer":
        errors += [
            invalid_value(f"spec.ports[{i}]", port["port"], "may not expose port 10250 externally since it is used by kubelet")
            for i, port in enumerate(ports)
            if port.get("port") == 10250
        ]
        if headless:
            errors.append(invalid_value("spec.clusterIPs[0]", spec.get("clusterIPs"), "may not be set to 'None' for LoadBalancer services"))
    elif kind == "NodePort":
        if headless:
            errors.append(invalid_value("spec.clusterIPs[0]", spec.get("clusterIPs"), "may not be set to 'None' for NodePort services"))
    elif kind == "ExternalName":
        errors += _external_name(spec)
    names: set[str] = set()
    for i, port in enumerate(ports):
        errors += _port(port, len(ports) > 1, headless, names, f"spec.ports[{i}]")
    errors += validate_labels(spec.get("selector"), "spec.selector")
    errors += enum(spec.get("sessionAffinity"), "spec.sessionAffinity", ("ClientIP", "None"))
    if spec.get("sessionAffinity") == "ClientIP":
        errors += _affinity(spec.get("sessionAffinityConfig"))
    elif spec.get("sessionAffinity") == "None" and spec.get("sessionAffinityConfig") is not None:
        errors.append(forbidden_field("spec.sessionAffinityConfig", "must not be set when session affinity is None"))
    errors += _cluster_ips(spec)
    for i, ip in enumerate(spec.get("externalIPs") or ()):
        if formats.sloppy_ip(ip) is None:
            errors.append(invalid_value(f"spec.externalIPs[{i}]", ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
        else:
            errors += non_special_ip(ip, f"spec.externalIPs[{i}]")
    errors += enum(kind, "spec.type", TYPES)
    if kind == "ClusterIP":
        errors += [forbidden_field(f"spec.ports[{i}].nodePort", "may not be used when `type` is 'ClusterIP'") for i, p in enumerate(ports) if p.get("nodePort")]
    errors += _repeated(ports)
    errors += _source_ranges(obj)
    if spec.get("allocateLoadBalancerNodePorts") is not None and kind != "LoadBalancer":
        errors.append(forbidden_field("spec.allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'"))
    if kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
        errors.append(required("allocateLoadBalancerNodePorts"))
    if spec.get("loadBalancerClass") is not None:
        errors += rule(formats.qualified_name, spec["loadBalancerClass"], "spec.loadBalancerClass")
        if kind != "LoadBalancer":
            errors.append(forbidden_field("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'"))
    return errors + _traffic(spec)


def _external_name(spec: Object) -> Errors:
    errors: Errors = []
    if spec.get("clusterIPs") or spec.get("clusterIP"):
        errors.append(forbidden_field("spec.clusterIPs", "may not be set for ExternalName services"))
    if spec.get("ipFamilies"):
        errors.append(forbidden_field("spec.ipFamilies", "may not be set for ExternalName services"))
    if spec.get("ipFamilyPolicy"):
        errors.append(forbidden_field("spec.ipFamilyPolicy", "may not be set for ExternalName services"))
    name = (spec.get("externalName") or "").removesuffix(".")
    return errors + ([required("spec.externalName")] if not name else rule(formats.subdomain, name, "spec.externalName"))


def _port(port: Object, need_name: bool, headless: bool, names: set[str], at: str) -> Errors:
    errors: Errors = []
    name = port.get("name") or ""
    if need_name and not name:
        errors.append(required(f"{at}.name"))
    elif name:
        errors += rule(formats.label, name, f"{at}.name")
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
    number = port.get("port", 0)
    if formats.port_number(number):
        errors.append(invalid_value(f"{at}.port", number, formats.in_range(1, 65535)))
    errors += enum(port.get("protocol"), f"{at}.protocol", PROTOCOLS)
    errors += port_number_or_name(port.get("targetPort"), f"{at}.targetPort")
    if port.get("appProtocol") is not None:
        errors += rule(formats.qualified_name, port["appProtocol"], f"{at}.appProtocol")
    return errors


def _repeated(ports: list[Object]) -> Errors:
    errors: Errors = []
    node_ports: set[Any] = set()
    numbers: set[Any] = set()
    for i, port in enumerate(ports):
        if port.get("nodePort"):
            key = (port.get("protocol"), port["nodePort"])
            if key in node_ports:
                errors.append(duplicate(f"spec.ports[{i}].nodePort", port["nodePort"]))
            node_ports.add(key)
    for i, port in enumerate(ports):
        key = (port.get("protocol"), port.get("port"))
        if key in numbers:
            value = {"Name": "", "Protocol": port.get("protocol"), "AppProtocol": None, "Port": port.get("port"), "TargetPort": 0, "NodePort": 0}
            errors.append(duplicate(f"spec.ports[{i}]", value))
        numbers.add(key)
    return errors


def _affinity(config: Object | None) -> Errors:
    at, text = "spec.sessionAffinityConfig", "when session affinity type is ClientIP"
    if not config:
        return [required(at, text)]
    if config.get("clientIP") is None:
        return [required(f"{at}.clientIP", text)]
    seconds = config["clientIP"].get("timeoutSeconds")
    if seconds is None:
        return [required(f"{at}.clientIP.timeoutSeconds", text)]
    if not 0 < seconds <= _AFFINITY_SECONDS_MAX:
        return [invalid_value(f"{at}.clientIP.timeoutSeconds", seconds, f"must be greater than 0 and less than {_AFFINITY_SECONDS_MAX}")]
    return []


def _cluster_ips(spec: Object) -> Errors:
    if spec.get("type") == "ExternalName":
        return []
    at, ip, ips, families = "spec.clusterIPs", spec.get("clusterIP") or "", spec.get("clusterIPs") or [], spec.get("ipFamilies") or []
    errors: Errors = []
    if ip:
        if not ips:
            errors.append(required(at))
        elif ips[0] != ip:
            errors.append(invalid_value(at, ips, "first value must match `clusterIP`"))
    elif ips:
        errors.append(invalid_value(at, ips, "must be empty when `clusterIP` is not specified"))
    seen: set[str] = set()
    for i, family in enumerate(families):
        if family not in ("IPv4", "IPv6"):
            errors.append(not_supported(f"spec.ipFamilies[{i}]", family, ("IPv4", "IPv6")))
        if family in seen:
            errors.append(duplicate(f"spec.ipFamilies[{i}]", family))
        seen.add(family)
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in ("PreferDualStack", "RequireDualStack", "SingleStack"):
        errors.append(not_supported("spec.ipFamilyPolicy", policy, ("PreferDualStack", "RequireDualStack", "SingleStack")))
    found = []
    for i, value in enumerate(ips):
        if i == 0 and value == "None":
            if len(ips) > 1:
                errors.append(invalid_value(at, ips, "'None' must be the first and only value"))
            continue
        address = formats.sloppy_ip(value)
        if address is None:
            errors.append(invalid_value(f"{at}[{i}]", value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
        found.append(address)
        if address is not None and i < len(families) and families[i] != f"IPv{address.version}" and families[i] in ("IPv4", "IPv6"):
            errors.append(invalid_value(f"{at}[{i}]", value, f"expected an {families[i]} value as indicated by `ipFamilies[{i}]`"))
    if len(ips) > 2:
        errors.append(invalid_value(at, ips, "may only hold up to 2 values"))
    if len(found) == 2 and found[0] and found[1] and found[0].version == found[1].version:
        errors.append(invalid_value(at, ips, "may specify no more than one IP for each IP family"))
    return errors


def _source_ranges(obj: Object) -> Errors:
    spec, annotations = obj["spec"], obj["metadata"].get("annotations") or {}
    ranges = spec.get("loadBalancerSourceRanges") or []
    if not ranges and SOURCE_RANGES not in annotations:
        return []
    errors: Errors = []
    at = "spec.loadBalancerSourceRanges" if ranges else f"metadata.annotations[{SOURCE_RANGES}]"
    if spec.get("type") != "LoadBalancer":
        errors.append(forbidden_field(at, "may only be used when `type` is 'LoadBalancer'"))
    if ranges:
        for i, value in enumerate(ranges):
            if formats.sloppy_cidr(value.strip()) is None:
                errors.append(invalid_value(f"{at}[{i}]", value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
    elif any(formats.sloppy_cidr(v.strip()) is None for v in annotations[SOURCE_RANGES].split(",") if annotations[SOURCE_RANGES].strip()):
        errors.append(invalid_value(at, annotations[SOURCE_RANGES], "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24"))
    return errors


def _traffic(spec: Object) -> Errors:
    errors: Errors = []
    policy = spec.get("externalTrafficPolicy")
    if not externally_accessible(spec):
        if policy:
            errors.append(invalid_value("spec.externalTrafficPolicy", policy, "may only be set for externally-accessible services"))
    elif not policy:
        errors.append(required("spec.externalTrafficPolicy"))
    elif policy not in ("Cluster", "Local"):
        errors.append(not_supported("spec.externalTrafficPolicy", policy, ("Cluster", "Local")))
    port = spec.get("healthCheckNodePort", 0)
    if needs_health_check(spec):
        if port and not 0 < port < 65536:
            errors.append(invalid_value("spec.healthCheckNodePort", port, formats.in_range(1, 65535)))
    elif port:
        errors.append(invalid_value("spec.healthCheckNodePort", port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
    internal = spec.get("internalTrafficPolicy")
    if internal is None:
        if spec.get("type") in ("NodePort", "LoadBalancer", "ClusterIP"):
            errors.append(required("spec.internalTrafficPolicy"))
    elif internal not in ("Cluster", "Local"):
        errors.append(not_supported("spec.internalTrafficPolicy", internal, ("Cluster", "Local")))
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in ("PreferClose", "PreferSameNode", "PreferSameZone"):
        errors.append(not_supported("spec.trafficDistribution", distribution, ("PreferClose", "PreferSameNode", "PreferSameZone")))
    return errors


def _ip_changes(new: Object, old: Object) -> Errors:
    """Addresses and families stay, but for a secondary one that comes or goes."""
    if "ExternalName" in (new.get("type"), old.get("type")):
        return []
    errors: Errors = []
    for key, what in (("clusterIPs", "clusterIP"), ("ipFamilies", "ipFamily")):
        values, before = new.get(key) or [], old.get(key) or []
        if not before:
            continue
        if not values:
            errors.append(invalid_value(f"spec.{key}[0]", values, f"primary {what} can not be unset"))
        elif values[0] != before[0]:
            errors.append(invalid_value(f"spec.{key}[0]", values if key == "clusterIPs" else new.get("clusterIPs"), "may not change once set"))
        elif len(before) > 1 and len(values) > 1 and values[1] != before[1]:
            errors.append(invalid_value(f"spec.{key}[1]", values, "may not change once set"))
        elif len(before) > 1 and len(values) == 1 and new.get("ipFamilyPolicy") != "SingleStack":
            errors.append(
                invalid_value(f"spec.{key}[0]", new.get("clusterIPs"), f"`ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary {what}")
            )
    if new.get("type") == "LoadBalancer" == old.get("type") and new.get("loadBalancerClass") != old.get("loadBalancerClass"):
        errors.append(invalid_value("spec.loadBalancerClass", new.get("loadBalancerClass"), "may not change once set"))
    return errors


KINDS = [Service]
