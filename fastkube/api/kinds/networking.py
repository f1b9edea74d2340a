"""networking.k8s.io: Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from fastkube.api import formats, internal
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.batch import _domain_path
from fastkube.api.kinds.common import Errors, immutable, label_selector, rule

GROUP = "networking.k8s.io"
CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
_PROTOCOLS = ("TCP", "UDP", "SCTP")


class NetworkPolicy(Kind):
    group = GROUP
    kind = "NetworkPolicy"
    has_status = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("podSelector", {})
        for key in ("ingress", "egress"):
            for item in spec.get(key) or ():
                for port in item.get("ports") or ():
                    if port.get("protocol") is None:
                        port["protocol"] = "TCP"
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress"] + (["Egress"] if spec.get("egress") else [])

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def _spec(self, spec: Object) -> Errors:
        errors = label_selector(spec.get("podSelector"), "spec.podSelector")
        for key, peers in (("ingress", "from"), ("egress", "to")):
            for i, item in enumerate(spec.get(key) or ()):
                at = f"spec.{key}[{i}]"
                for j, port in enumerate(item.get("ports") or ()):
                    errors += _policy_port(port, f"{at}.ports[{j}]")
                for j, peer in enumerate(item.get(peers) or ()):
                    errors += _peer(peer, f"{at}.{peers}[{j}]")
        types = spec.get("policyTypes") or []
        if len(types) > 2:
            return [*errors, invalid_value("spec.policyTypes", types, "may not specify more than two policyTypes")]
        errors += [not_supported(f"spec.policyTypes[{i}]", t, ("Ingress", "Egress")) for i, t in enumerate(types) if t not in ("Ingress", "Egress")]
        return errors


def _policy_port(port: Object, at: str) -> Errors:
    errors: Errors = []
    protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
    if protocol is not None and protocol not in _PROTOCOLS:
        errors.append(not_supported(f"{at}.protocol", protocol, _PROTOCOLS))
    if isinstance(number, str):
        if end is not None:
            errors.append(invalid_value(f"{at}.endPort", end, "may not be specified when `port` is non-numeric"))
        errors += rule(formats.port_name, number, f"{at}.port")
    elif number is not None:
        errors += [invalid_value(f"{at}.port", number, m) for m in formats.port_number(number)]
        if end is not None:
            if end < number:
                errors.append(invalid_value(f"{at}.endPort", number, "must be greater than or equal to `port`"))
            errors += [invalid_value(f"{at}.endPort", end, m) for m in formats.port_number(end)]
    elif end is not None:
        errors.append(invalid_value(f"{at}.endPort", end, "may not be specified when `port` is not specified"))
    return errors


def _peer(peer: Object, at: str) -> Errors:
    errors: Errors = []
    given = [key for key in ("podSelector", "namespaceSelector", "ipBlock") if peer.get(key) is not None]
    for key in given[:2]:
        if key != "ipBlock":
            errors += label_selector(peer[key], f"{at}.{key}")
    if "ipBlock" in given:
        errors += _ip_block(peer["ipBlock"], f"{at}.ipBlock")
    if not given:
        errors.append(required(at, "must specify a peer"))
    elif len(given) > 1 and "ipBlock" in given:
        errors.append(forbidden_field(at, "may not specify both ipBlock and another peer"))
    return errors


def _ip_block(block: Object, at: str) -> Errors:
    cidr = block.get("cidr") or ""
    if not cidr:
        return [required(f"{at}.cidr")]
    network = formats.sloppy_cidr(cidr)
    if network is None:
        return [invalid_value(f"{at}.cidr", cidr, CIDR)]
    errors: Errors = []
    for i, text in enumerate(block.get("except") or ()):
        inner = formats.sloppy_cidr(text)
        if inner is None:
            return [*errors, invalid_value(f"{at}.except[{i}]", text, CIDR)]
        if inner.version != network.version or inner.prefixlen <= network.prefixlen or not inner.subnet_of(network):  # type: ignore[arg-type]
            errors.append(invalid_value(f"{at}.except[{i}]", text, "must be a strict subset of `cidr`"))
    return errors


class Ingress(Kind):
    group = GROUP
    kind = "Ingress"
    status_metadata = METADATA

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = self._spec(obj["spec"])
        annotations = obj["metadata"].get("annotations") or {}
        if CLASS_ANNOTATION in annotations and obj["spec"].get("ingressClassName") is not None:
            errors.append(invalid_value(f"annotations.{CLASS_ANNOTATION}", annotations[CLASS_ANNOTATION], "can not be set when the class field is also set"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def _spec(self, spec: Object) -> Errors:
        errors: Errors = []
        rules, backend = spec.get("rules"), spec.get("defaultBackend")
        if not rules and backend is None:
            errors.append(invalid_value("spec", rules, "either `defaultBackend` or `rules` must be specified"))
        if backend is not None:
            errors += _backend(backend, "spec.defaultBackend")
        for i, item in enumerate(rules or ()):
            errors += _rule(item, f"spec.rules[{i}]")
        for i, tls in enumerate(spec.get("tls") or ()):
            for j, host in enumerate(tls.get("hosts") or ()):
                errors += rule(formats.wildcard_subdomain if "*" in host else formats.subdomain, host, f"spec.tls[{i}].hosts[{j}]")
            if tls.get("secretName"):
                errors += rule(formats.subdomain, tls["secretName"], f"spec.tls[{i}].secretName")
        if spec.get("ingressClassName") is not None:
            errors += rule(formats.subdomain, spec["ingressClassName"], "spec.ingressClassName")
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        errors: Errors = []
        for i, point in enumerate(((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()):
            at = f"status.loadBalancer.ingress[{i}]"
            if point.get("ip") and formats.sloppy_ip(point["ip"]) is None:
                errors.append(invalid_value(f"{at}.ip", point["ip"], "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
            if point.get("hostname"):
                errors += rule(formats.subdomain, point["hostname"], f"{at}.hostname")
                if formats.sloppy_ip(point["hostname"]) is not None:
                    errors.append(invalid_value(f"{at}.hostname", point["hostname"], "must be a DNS name, not an IP address"))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        if CLASS_ANNOTATION in (obj["metadata"].get("annotations") or {}) and old is None:
            return [f"annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"]
        return []


def _rule(item: Object, at: str) -> Errors:
    errors: Errors = []
    host = item.get("host") or ""
    if host:
        if formats.sloppy_ip(host) is not None:
            errors.append(invalid_value(f"{at}.host", host, "must be a DNS name, not an IP address"))
        errors += rule(formats.wildcard_subdomain if "*" in host else formats.subdomain, host, f"{at}.host")
    http = item.get("http")
    if http is not None:
        paths = http.get("paths") or []
        if not paths:
            errors.append(required(f"{at}.http.paths"))
        for i, path in enumerate(paths):
            errors += _path(path, f"{at}.http.paths[{i}]")
    return errors


def _path(item: Object, at: str) -> Errors:
    errors: Errors = []
    kind, path = item.get("pathType"), item.get("path") or ""
    if kind is None:
        return [required(f"{at}.pathType", "pathType must be specified")]
    if kind in ("Exact", "Prefix"):
        if not path.startswith("/"):
            errors.append(invalid_value(f"{at}.path", path, "must be an absolute path"))
        if path:
            errors += [invalid_value(f"{at}.path", path, f"must not contain '{bad}'") for bad in ("//", "/./", "/../", "%2f", "%2F") if bad in path]
            errors += [invalid_value(f"{at}.path", path, f"cannot end with '{bad}'") for bad in ("/..", "/.") if path.endswith(bad)]
    elif kind == "ImplementationSpecific":
        if path and not path.startswith("/"):
            errors.append(invalid_value(f"{at}.path", path, "must be an absolute path"))
    else:
        errors.append(not_supported(f"{at}.pathType", kind, _PATH_TYPES))
    return errors + _backend(item.get("backend") or {}, f"{at}.backend")


def _backend(backend: Object, at: str) -> Errors:
    resource, service = backend.get("resource"), backend.get("service")
    if resource is not None and service is not None:
        return [invalid_value(at, "", "cannot set both resource and service backends")]
    if resource is not None:
        errors: Errors = []
        if resource.get("apiGroup") is not None:
            errors += rule(formats.subdomain, resource["apiGroup"], f"{at}.resource.apiGroup")
        for key in ("kind", "name"):
            value = resource.get(key) or ""
            errors += [required(f"{at}.resource.{key}")] if not value else rule(formats.path_segment, value, f"{at}.resource.{key}")
        return errors
    if service is None:
        return [invalid_value(at, "", "resource or service backend is required")]
    name, port = service.get("name") or "", service.get("port") or {}
    if not name:
        errors = [required(f"{at}.service.name")]
    else:
        errors = rule(formats.label, name, f"{at}.service.name")
    number, port_name = port.get("number", 0), port.get("name") or ""
    if port_name and number:
        errors.append(invalid_value(at, "", "cannot set both port name & port number"))
    elif port_name:
        errors += rule(formats.port_name, port_name, f"{at}.service.port.name")
    elif number:
        errors += [invalid_value(f"{at}.service.port.number", number, m) for m in formats.port_number(number)]
    else:
        errors.append(required(at, "port name or number is required"))
    return errors


class IngressClass(Kind):
    group = GROUP
    kind = "IngressClass"
    has_status = False

    def default(self, obj: Object) -> None:
        parameters = (obj.setdefault("spec", {})).get("parameters")
        if parameters is not None and parameters.get("scope") is None:
            parameters["scope"] = "Cluster"

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        controller = spec.get("controller") or ""
        errors: Errors = []
        if len(controller.encode()) > 250:
            from fastkube.api.errors import too_long

            errors.append(too_long("spec.controller", 250))
        errors += _plain_domain_path(controller, "spec.controller")
        parameters = spec.get("parameters")
        if parameters is not None:
            errors += self._parameters(parameters, "spec.parameters")
        return errors

    def _parameters(self, ref: Object, at: str) -> Errors:
        errors: Errors = []
        if ref.get("apiGroup") is not None:
            errors += rule(formats.subdomain, ref["apiGroup"], f"{at}.apiGroup")
        for key in ("kind", "name"):
            value = ref.get(key) or ""
            errors += [required(f"{at}.{key}")] if not value else rule(formats.path_segment, value, f"{at}.{key}")
        scope, namespace = ref.get("scope"), ref.get("namespace")
        if scope is None:
            errors.append(required(f"{at}.scope"))
        elif scope not in ("Cluster", "Namespace"):
            errors.append(not_supported(f"{at}.scope", scope, ("Cluster", "Namespace")))
        if scope == "Namespace":
            errors += (
                [required(f"{at}.namespace", "`parameters.scope` is set to 'Namespace'")]
                if not namespace
                else rule(formats.label, namespace, f"{at}.namespace")
            )
        if scope == "Cluster" and namespace is not None:
            errors.append(forbidden_field(f"{at}.namespace", "`parameters.scope` is set to 'Cluster'"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = immutable(obj["spec"].get("controller"), old["spec"].get("controller"), "spec.controller")
        parameters = obj["spec"].get("parameters")
        return errors + (self._parameters(parameters, "spec.parameters") if parameters is not None else [])


def _plain_domain_path(value: str, at: str) -> Errors:
    return [required(at)] if not value else _domain_path(value, at) if len(value.encode()) <= 63 else _domain_path_long(value, at)


def _domain_path_long(value: str, at: str) -> Errors:
    host, slash, path = value.partition("/")
    if not (slash and host and path):
        return [invalid_value(at, value, 'must be a domain-prefixed path (such as "acme.io/foo")')]
    errors = [invalid_value(at, host, m) for m in formats.subdomain(host)]
    if not re.fullmatch(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", path):
        errors.append(invalid_value(at, path, formats.regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+")))
    return errors


class IPAddress(Kind):
    group = GROUP
    kind = "IPAddress"
    has_status = has_generation = False
    field_labels = ("spec.parentRef.group",)

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def name_errors(self, name: str, prefix: bool = False) -> list[str]:
        ip = formats.ip(name)
        if ip is None:
            return ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
        return [] if str(ip) == name else [f'must be in canonical form ("{ip}")']

    def validate_create(self, obj: Object) -> list[FieldError]:
        ref, at = obj["spec"].get("parentRef"), "spec.parentRef"
        if ref is None:
            return [required(at)]
        errors: Errors = []
        if ref.get("group"):
            errors += rule(formats.subdomain, ref["group"], f"{at}.group")
        for key, check in (("resource", formats.path_segment), ("name", formats.path_segment), ("namespace", formats.path_segment)):
            value = ref.get(key) or ""
            if not value:
                if key != "namespace":
                    errors.append(required(f"{at}.{key}"))
            else:
                errors += rule(check, value, f"{at}.{key}")
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        new, before = obj["spec"].get("parentRef"), old["spec"].get("parentRef")
        if new == before:
            return []
        return [invalid_value("spec.parentRef", internal.view("networking.v1.ParentReference", new), "field is immutable")]


class ServiceCIDR(Kind):
    group = GROUP
    kind = "ServiceCIDR"
    status_metadata = METADATA
    has_generation = False

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def validate_create(self, obj: Object) -> list[FieldError]:
        cidrs, at = obj["spec"].get("cidrs") or [], "spec.cidrs"
        if not cidrs:
            return [required(at, "at least one CIDR required")]
        if len(cidrs) > 2:
            return [invalid_value(at, cidrs, "may only hold up to 2 values")]
        errors: Errors = []
        if len(cidrs) == 2:
            families = [n.version if (n := _network(c)) else None for c in cidrs]
            if None in families or families[0] == families[1]:
                errors.append(invalid_value(at, cidrs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
        for i, cidr in enumerate(cidrs):
            network = _network(cidr)
            if network is None:
                errors.append(invalid_value(f"{at}[{i}]", cidr, CIDR))
            elif str(network) != cidr:
                errors.append(invalid_value(f"{at}[{i}]", cidr, f'must be in canonical form ("{network}")'))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        new, before = obj["spec"].get("cidrs") or [], old["spec"].get("cidrs") or []
        if len(before) == 1 and len(new) == 2:  # a second family may be added
            return [] if new[0] == before[0] else immutable(new[0], before[0], "spec.cidrs[0]")
        return [] if new == before else [invalid_value("spec.cidrs", new, "field is immutable")]


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


KINDS = [Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR]
