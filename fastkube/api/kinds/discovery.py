"""discovery.k8s.io/v1: EndpointSlice."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, invalid_value, not_supported, required, too_many
from fastkube.api.kinds.base import Kind, Object, null_when_empty
from fastkube.api.kinds.common import Errors, immutable, rule
from fastkube.api.kinds.config import non_special_ip
from fastkube.api.meta import validate_labels

_TYPES = ("FQDN", "IPv4", "IPv6")
_ENDPOINTS_MAX, _ADDRESSES_MAX, _PORTS_MAX, _HINTS_MAX, _TOPOLOGY_MAX = 1000, 100, 20000, 8, 16


class EndpointSlice(Kind):
    group = "discovery.k8s.io"
    kind = "EndpointSlice"
    has_status = False

    def default(self, obj: Object) -> None:
        for port in obj.get("ports") or ():
            if port.get("name") is None:
                port["name"] = ""
            if port.get("protocol") is None:
                port["protocol"] = "TCP"

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        null_when_empty(obj, "endpoints", "ports")

    def prepare_update(self, obj: Object, old: Object) -> None:
        null_when_empty(obj, "endpoints", "ports")
        changed = any(obj.get(k) != old.get(k) for k in ("addressType", "endpoints", "ports")) or (obj["metadata"].get("labels") or {}) != (
            old["metadata"].get("labels") or {}
        )
        obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + changed

    def validate_create(self, obj: Object) -> list[FieldError]:
        kind = obj.get("addressType") or ""
        errors: Errors = []
        if not kind:
            errors.append(required("addressType"))
        elif kind not in _TYPES:
            errors.append(not_supported("addressType", kind, _TYPES))
        endpoints, ports = obj.get("endpoints") or [], obj.get("ports") or []
        if len(endpoints) > _ENDPOINTS_MAX:
            errors.append(too_many("endpoints", len(endpoints), _ENDPOINTS_MAX))
            return errors
        for i, endpoint in enumerate(endpoints):
            errors += _endpoint(endpoint, kind, f"endpoints[{i}]")
        return errors + _ports(ports)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj) + immutable(obj.get("addressType"), old.get("addressType"), "addressType")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        if obj.get("addressType") == "FQDN" and old is None:
            return ["addressType: FQDN endpoints are deprecated"]
        return []


def _endpoint(endpoint: Object, kind: str, at: str) -> Errors:
    errors: Errors = []
    addresses = endpoint.get("addresses") or []
    if not addresses:
        errors.append(required(f"{at}.addresses", "must contain at least 1 address"))
    elif len(addresses) > _ADDRESSES_MAX:
        errors.append(too_many(f"{at}.addresses", len(addresses), _ADDRESSES_MAX))
    for i, address in enumerate(addresses):
        errors += _address(address, kind, f"{at}.addresses[{i}]")
    if endpoint.get("nodeName") is not None:
        errors += rule(formats.subdomain, endpoint["nodeName"], f"{at}.nodeName")
    topology = endpoint.get("deprecatedTopology") or {}
    if len(topology) > _TOPOLOGY_MAX:
        errors.append(too_many(f"{at}.deprecatedTopology", len(topology), _TOPOLOGY_MAX))
    errors += validate_labels(topology, f"{at}.deprecatedTopology")
    if "topology.kubernetes.io/zone" in topology:
        errors.append(
            invalid_value(
                f"{at}.deprecatedTopology[topology.kubernetes.io/zone]", topology["topology.kubernetes.io/zone"], "must be specified in the zone field"
            )
        )
    if endpoint.get("hostname") is not None:
        errors += rule(formats.label, endpoint["hostname"], f"{at}.hostname")
    hints = endpoint.get("hints") or {}
    for key in ("forZones", "forNodes"):
        listed = hints.get(key) or []
        if len(listed) > _HINTS_MAX:
            errors.append(too_many(f"{at}.hints.{key}", len(listed), _HINTS_MAX))
            continue
        seen: set[str] = set()
        for i, hint in enumerate(listed):
            name, here = hint.get("name") or "", f"{at}.hints.{key}[{i}].name"
            if name in seen:
                errors.append(duplicate(here, name))
            seen.add(name)
            errors += rule(formats.label_value if key == "forZones" else formats.subdomain, name, here)
    return errors


def _address(address: str, kind: str, at: str) -> Errors:
    if kind == "FQDN":
        return _fqdn(address, at)
    ip = formats.sloppy_ip(address)
    if kind not in ("IPv4", "IPv6"):
        return []
    if ip is None:
        return [invalid_value(at, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")]
    errors: Errors = []
    if f"IPv{ip.version}" != kind:
        errors.append(invalid_value(at, address, f"must be an {kind} address"))
    return errors + non_special_ip(address, at)


def _fqdn(name: str, at: str) -> Errors:
    if not name:
        return [required(at)]
    bare = name.removesuffix(".")
    if bad := formats.subdomain(bare):
        return [invalid_value(at, bare, ",".join(bad))]
    if "." not in bare:
        return [invalid_value(at, bare, "should be a domain with at least two segments separated by dots")]
    return [invalid_value(at, label, ",".join(bad)) for label in bare.split(".") if (bad := formats.label(label))][:1]


def _ports(ports: list[Object]) -> Errors:
    errors: Errors = []
    if len(ports) > _PORTS_MAX:
        return [too_many("ports", len(ports), _PORTS_MAX)]
    names: set[str] = set()
    for i, port in enumerate(ports):
        at, name = f"ports[{i}]", port.get("name") or ""
        if name:
            errors += rule(formats.label, name, f"{at}.name")
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
        if port.get("protocol") not in ("SCTP", "TCP", "UDP"):
            errors.append(
                not_supported(f"{at}.protocol", port.get("protocol") or "", ("SCTP", "TCP", "UDP"))
                if port.get("protocol") is not None
                else required(f"{at}.protocol")
            )
        if port.get("appProtocol") is not None:
            errors += rule(formats.qualified_name, port["appProtocol"], f"{at}.appProtocol")
    return errors


KINDS = [EndpointSlice]
