"""A container's environment, command line and downward API values: pure functions of the pod, what it refers to, and the node.

Order, as upstream's: variables of services, then envFrom in its order, then env in its order; a later one of the same name wins and
`$(NAME)` sees what came before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastkube.node import podspec

Object = dict[str, Any]
Lookup = Callable[[str, str], "Object | None"]  # ("configmaps"|"secrets", name) -> the object in the pod's namespace

_REFERENCE = re.compile(r"\$(?:\$|\(([^()]*)\))")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['(.*)'\]$")


class ConfigError(Exception):
    """The container cannot be configured: CreateContainerConfigError with this text."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """Kubernetes' expansion: `$(NAME)` of a known name is replaced, `$$` is a `$`, everything else stays."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(one, text) if "$" in text else text


def field_value(pod: Object, path: str, status: Mapping[str, Any]) -> str:
    """A fieldRef's value. `status` holds podIP, podIPs, hostIP, hostIPs as known now. ConfigError when there is no such field."""
    meta, spec = pod["metadata"], pod["spec"]
    simple: dict[str, Any] = {
        "metadata.name": meta.get("name"),
        "metadata.namespace": meta.get("namespace", "default"),
        "metadata.uid": meta.get("uid"),
        "spec.nodeName": spec.get("nodeName"),
        "spec.serviceAccountName": spec.get("serviceAccountName"),
        "status.podIP": status.get("podIP"),
        "status.hostIP": status.get("hostIP"),
        "status.podIPs": ",".join(p["ip"] for p in status.get("podIPs") or ()),
        "status.hostIPs": ",".join(p["ip"] for p in status.get("hostIPs") or ()),
    }
    if path in simple:
        return simple[path] or ""
    if path in ("metadata.labels", "metadata.annotations"):
        return format_map(meta.get(path.removeprefix("metadata.")) or {})
    subscript = _SUBSCRIPT.match(path)
    if subscript:
        return (meta.get(subscript[1]) or {}).get(subscript[2], "")
    raise ConfigError(f"unsupported fieldPath: {path}")


def format_map(values: Mapping[str, str]) -> str:
    """Labels or annotations as a downward API file holds them: key="escaped value", sorted, a line each."""
    return "\n".join(f"{key}={_go_quote(values[key])}" for key in sorted(values))


def _go_quote(text: str) -> str:
    out = ['"']
    for char in text:
        out.append(_ESCAPES.get(char) or (char if char.isprintable() else f"\\u{ord(char):04x}" if ord(char) >= 0x80 else f"\\x{ord(char):02x}"))
    return "".join([*out, '"'])


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}


def resource_value(pod: Object, ref: Object, container: Object | None, allocatable: Mapping[str, float]) -> str:
    """A resourceFieldRef's value, rounded up to its divisor; a limit that is not set is what the node has."""
    name = ref.get("containerName")
    owner = podspec.find(pod, name) if name else container
    if owner is None:
        raise ConfigError(f"container {name} not found in pod")
    where, _, resource = ref["resource"].partition(".")
    if where not in ("limits", "requests") or not resource:
        raise ConfigError(f"unsupported container resource: {ref['resource']}")
    value = (podspec.limits if where == "limits" else podspec.requests)(owner).get(resource)
    if value is None:
        value = (podspec.limits(owner).get(resource, 0.0)) if where == "requests" else allocatable.get(resource, 0.0)
    divisor = podspec.amount(ref.get("divisor") or "1") or 1.0
    return str(math.ceil(round(value / divisor, 9)))


def service_variables(services: Iterable[Object]) -> dict[str, str]:
    """Docker-link style variables of services with a cluster IP, in the order of the services' names."""
    out: dict[str, str] = {}
    for service in sorted(services, key=lambda s: s["metadata"]["name"]):
        spec = service.get("spec") or {}
        address, ports = spec.get("clusterIP"), spec.get("ports") or []
        if not address or address == "None" or not ports:
            continue
        prefix = service["metadata"]["name"].replace("-", "_").upper()
        joined = f"[{address}]" if ":" in address else address
        out[f"{prefix}_SERVICE_HOST"] = address
        out[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                out[f"{prefix}_SERVICE_PORT_{port['name'].replace('-', '_').upper()}"] = str(port["port"])
        for i, port in enumerate(ports):
            protocol = port.get("protocol", "TCP")
            url = f"{protocol.lower()}://{joined}:{port['port']}"
            if i == 0:
                out[f"{prefix}_PORT"] = url
            base = f"{prefix}_PORT_{port['port']}_{protocol.upper()}"
            out |= {base: url, f"{base}_PROTO": protocol.lower(), f"{base}_PORT": str(port["port"]), f"{base}_ADDR": address}
    return out


def visible_services(pod: Object, services: Iterable[Object]) -> list[Object]:
    """The services whose variables a pod gets: those of its namespace if it enables links, and `kubernetes` of default always."""
    namespace = pod["metadata"].get("namespace", "default")
    links = pod["spec"].get("enableServiceLinks", True)
    chosen: dict[str, Object] = {}
    for service in services:
        meta = service["metadata"]
        if meta["namespace"] == "default" and meta["name"] == "kubernetes":
            chosen.setdefault(meta["name"], service)
        elif links and meta["namespace"] == namespace:
            chosen[meta["name"]] = service
    return list(chosen.values())


def build(
    pod: Object, container: Object, lookup: Lookup, services: Iterable[Object], status: Mapping[str, Any], allocatable: Mapping[str, float]
) -> dict[str, str]:
    """The container's variables, in order. ConfigError when one cannot be had."""
    out: dict[str, str] = dict(service_variables(visible_services(pod, services)))
    for source in container.get("envFrom") or ():
        out.update(_from(source, lookup, pod["metadata"].get("namespace", "default")))
    for variable in container.get("env") or ():
        name, source = variable["name"], variable.get("valueFrom")
        if not source:
            out[name] = expand(variable.get("value") or "", out)
            continue
        value = _value_from(pod, container, source, lookup, status, allocatable)
        if value is not None:
            out[name] = value
    return out


def _from(source: Object, lookup: Lookup, namespace: str) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    for key, kind, word in (("configMapRef", "configmaps", "configmap"), ("secretRef", "secrets", "secret")):
        ref = source.get(key)
        if ref is None:
            continue
        obj = lookup(kind, ref.get("name", ""))
        if obj is None:
            if ref.get("optional"):
                return {}
            raise ConfigError(f'{word} "{ref.get("name", "")}" not found')
        return {prefix + k: v for k, v in text_data(obj).items()}
    return {}


def _value_from(pod: Object, container: Object, source: Object, lookup: Lookup, status: Mapping[str, Any], allocatable: Mapping[str, float]) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], status)
    if "resourceFieldRef" in source:
        return resource_value(pod, source["resourceFieldRef"], container, allocatable)
    for key, kind, word in (("configMapKeyRef", "configmaps", "configmap"), ("secretKeyRef", "secrets", "secret")):
        ref = source.get(key)
        if ref is None:
            continue
        obj = lookup(kind, ref.get("name", ""))
        namespace = pod["metadata"].get("namespace", "default")
        if obj is None:
            if ref.get("optional"):
                return None
            raise ConfigError(f'{word} "{ref.get("name", "")}" not found')
        values = text_data(obj)
        if ref["key"] not in values:
            if ref.get("optional"):
                return None
            kind_name = "ConfigMap" if word == "configmap" else "Secret"
            raise ConfigError(f"couldn't find key {ref['key']} in {kind_name} {namespace}/{ref['name']}")
        return values[ref["key"]]
    raise ConfigError("invalid valueFrom: no source is set")


def text_data(obj: Object) -> dict[str, str]:
    """The keys of a ConfigMap or Secret as text (what is not UTF-8 keeps its place with replacement characters)."""
    return {k: v.decode("utf-8", "replace") for k, v in binary_data(obj).items()}


def binary_data(obj: Object) -> dict[str, bytes]:
    """The keys of a ConfigMap (data, binaryData) or Secret (data) as bytes."""
    import base64

    if obj.get("kind") == "Secret":
        return {k: base64.b64decode(v or "") for k, v in (obj.get("data") or {}).items()}
    out = {k: base64.b64decode(v or "") for k, v in (obj.get("binaryData") or {}).items()}
    return out | {k: v.encode() for k, v in (obj.get("data") or {}).items()}
