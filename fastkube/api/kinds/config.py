"""The core group's small kinds: ConfigMap, Secret, ServiceAccount, Namespace, LimitRange, ResourceQuota, Endpoints, Binding, ComponentStatus."""

from __future__ import annotations

import base64
import re
from typing import Any

from fastkube.api import formats, quantity
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required, too_long
from fastkube.api.kinds.base import METADATA, Kind, Object, null_when_empty
from fastkube.api.kinds.common import Errors, enum, immutable, native_resource, resource_quantity, rule
from fastkube.api.kinds.pod_containers import PROTOCOLS, container_resource_name, resource_name
from fastkube.runtime import entropy

DATA_BYTES_MAX = 1024 * 1024


def _frozen(obj: Object, old: Object, *keys: str) -> Errors:
    """What an immutable ConfigMap or Secret does not let change."""
    if not old.get("immutable"):
        return []
    text = "field is immutable when `immutable` is set"
    errors: Errors = [] if obj.get("immutable") else [forbidden_field("immutable", text)]
    return errors + [forbidden_field(key, text) for key in keys if (obj.get(key) or {}) != (old.get(key) or {})]


class ConfigMap(Kind):
    kind = "ConfigMap"
    has_status = has_generation = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
        size = 0
        for key, value in data.items():
            errors += rule(formats.config_key, key, f"data[{key}]")
            if key in binary:
                errors.append(invalid_value(f"data[{key}]", key, "duplicate of key present in binaryData"))
            size += len(value.encode())
        for key, value in binary.items():
            errors += rule(formats.config_key, key, f"binaryData[{key}]")
            size += len(value or "") * 3 // 4
        if size > DATA_BYTES_MAX:
            errors.append(too_long("", DATA_BYTES_MAX))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return _frozen(obj, old, "data", "binaryData") + self.validate_create(obj)


_NEEDED = {  # secret type -> the keys it must have
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}


class Secret(Kind):
    kind = "Secret"
    has_status = has_generation = False
    field_labels = ("type",)

    def default(self, obj: Object) -> None:
        if not obj.get("type"):
            obj["type"] = "Opaque"
        plain = obj.pop("stringData", None)
        if plain:
            data = obj.setdefault("data", {})
            if data is None:
                data = obj["data"] = {}
            for key, value in plain.items():
                data[key] = base64.b64encode(value.encode()).decode()

    def prepare_update(self, obj: Object, old: Object) -> None:
        if not obj.get("type"):
            obj["type"] = old.get("type", "")

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        data, kind = obj.get("data") or {}, obj.get("type")
        size = 0
        for key, value in data.items():
            errors += rule(formats.config_key, key, f"data[{key}]")
            size += len(value or "") * 3 // 4
        if size > DATA_BYTES_MAX:
            errors.append(too_long("data", DATA_BYTES_MAX))
        if kind == "kubernetes.io/service-account-token" and not (obj["metadata"].get("annotations") or {}).get("kubernetes.io/service-account.name"):
            errors.append(required("metadata.annotations[kubernetes.io/service-account.name]"))
        elif kind == "kubernetes.io/basic-auth" and "username" not in data and "password" not in data:
            errors += [required("data[username]"), required("data[password]")]
        elif kind == "kubernetes.io/ssh-auth" and not data.get("ssh-privatekey"):
            errors.append(required("data[ssh-privatekey]"))
        for key in _NEEDED.get(kind or "", ()):
            if key not in data:
                errors.append(required(f"data[{key}]"))
            elif key.startswith(".docker"):
                errors += _json(data[key], f"data[{key}]")
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return immutable(obj.get("type"), old.get("type"), "type") + _frozen(obj, old, "data") + self.validate_create(obj)

    def fields(self, obj: Object) -> dict[str, str]:
        return {"type": obj.get("type") or ""}

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        if obj.get("type") != "kubernetes.io/tls":
            return []
        data = obj.get("data") or {}
        said = _key_pair(base64.b64decode(data.get("tls.crt") or ""), base64.b64decode(data.get("tls.key") or ""))
        return [said] if said else []


_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n.*?-----END \1-----", re.S)


def _key_pair(certificate: bytes, key: bytes) -> str:
    """What Go's tls package says of a certificate and key that do not make a pair; "" of a pair."""
    for what, data, wanted in (
        ("certificate", certificate, lambda k: k == b"CERTIFICATE"),
        ("key", key, lambda k: k == b"PRIVATE KEY" or k.endswith(b" PRIVATE KEY")),
    ):
        kinds = [m[1] for m in _PEM.finditer(data)]
        if not kinds:
            return f"tls: failed to find any PEM data in {what} input"
        if not any(wanted(k) for k in kinds):
            shown = " ".join(k.decode() for k in kinds)
            block = '"CERTIFICATE" PEM block' if what == "certificate" else 'PEM block with type ending in "PRIVATE KEY"'
            return f"tls: failed to find {block} in {what} input after skipping PEM blocks of the following types: [{shown}]"
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        public = x509.load_pem_x509_certificates(certificate)[0].public_key()
        private = load_pem_private_key(key, None)
    except Exception:
        return "tls: failed to parse private key" if certificate else "x509: malformed certificate"
    return "" if private.public_key() == public else "tls: private key does not match public key"


def _json(encoded: str | None, at: str) -> Errors:
    """A value that must be a JSON object; what it holds is not told."""
    from fastkube.api import codec

    try:
        if isinstance(codec.load(base64.b64decode(encoded or "")), dict):
            return []
        text = "json: cannot unmarshal into Go value of type map[string]interface {}"
    except ValueError as e:
        text = str(e)
    return [invalid_value(at, "<secret contents redacted>", text)]


class ServiceAccount(Kind):
    kind = "ServiceAccount"
    has_status = has_generation = False

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        key = "kubernetes.io/enforce-mountable-secrets"
        if key in (obj["metadata"].get("annotations") or {}) and key not in ((old or {}).get("metadata", {}).get("annotations") or {}):
            return [f"metadata.annotations[{key}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"]
        return []


class Namespace(Kind):
    kind = "Namespace"
    status_metadata = METADATA
    name_rule = "label"
    has_generation = False
    field_labels = ("status.phase", "name")
    LABEL = "kubernetes.io/metadata.name"

    def default(self, obj: Object) -> None:
        meta = obj["metadata"]
        if meta.get("name"):
            meta.setdefault("labels", {})[self.LABEL] = meta["name"]

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Active"}
        spec = obj.setdefault("spec", {})
        finalizers = spec.setdefault("finalizers", [])
        if "kubernetes" not in finalizers:
            finalizers.append("kubernetes")
        if obj["metadata"].get("name"):  # a generated name is known by now
            obj["metadata"].setdefault("labels", {})[self.LABEL] = obj["metadata"]["name"]

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        obj["spec"] = {**(obj.get("spec") or {}), "finalizers": (old.get("spec") or {}).get("finalizers") or []}

    def prepare_status(self, obj: Object, old: Object) -> None:
        super().prepare_status(obj, old)

    def prepare_finalize(self, obj: Object, old: Object) -> None:
        """An update through /finalize: only spec.finalizers changes."""
        obj["status"] = old.get("status") or {}

    def validate_finalize(self, obj: Object, old: Object) -> list[FieldError]:
        errors: Errors = []
        for i, name in enumerate((obj.get("spec") or {}).get("finalizers") or ()):
            errors += rule(formats.qualified_name, name, f"spec.finalizers[{i}]")
            if "/" not in name and name not in ("kubernetes", "orphan", "foregroundDeletion"):
                errors.append(invalid_value(f"spec.finalizers[{i}]", name, "name is neither a standard finalizer name nor is it fully qualified"))
        return errors

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self.validate_finalize(obj, obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        phase, going = (obj.get("status") or {}).get("phase"), obj["metadata"].get("deletionTimestamp")
        if not going and phase != "Active":
            return [invalid_value("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty")]
        if going and phase != "Terminating":
            return [invalid_value("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")]
        return []

    def fields(self, obj: Object) -> dict[str, str]:
        return {"status.phase": (obj.get("status") or {}).get("phase") or "", "name": obj["metadata"].get("name") or ""}


# ---- LimitRange

_LIMITS = ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio")


class LimitRange(Kind):
    kind = "LimitRange"
    has_status = has_generation = False

    def prepare_create(self, obj: Object) -> None:
        if not obj["metadata"].get("name"):
            obj["metadata"]["name"] = entropy.uid()
        null_when_empty(obj.get("spec"), "limits")

    def prepare_update(self, obj: Object, old: Object) -> None:
        null_when_empty(obj.get("spec"), "limits")

    def default(self, obj: Object) -> None:
        for item in (obj.get("spec") or {}).get("limits") or ():
            if item.get("type") != "Container":
                continue
            limits = item.setdefault("default", {})
            for name, amount in (item.get("max") or {}).items():
                limits.setdefault(name, amount)
            requests = item.setdefault("defaultRequest", {})
            for source in (limits, item.get("min") or {}):
                for name, amount in source.items():
                    requests.setdefault(name, amount)
            for key in ("default", "defaultRequest"):
                if not item[key]:
                    del item[key]

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        kinds: set[str] = set()
        for i, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
            at, kind = f"spec.limits[{i}]", item.get("type") or ""
            errors += _limit_type(kind, f"{at}.type")
            if kind in kinds:
                errors.append(duplicate(f"{at}.type", kind))
            kinds.add(kind)
            errors += _limit_item(item, kind, at)
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


def _limit_type(kind: str, at: str) -> Errors:
    errors = rule(formats.qualified_name, kind, at)
    if not errors and "/" not in kind and kind not in ("Pod", "Container", "PersistentVolumeClaim"):
        return [invalid_value(at, kind, "must be a standard limit type or fully qualified")]
    return errors


def _limit_item(item: Object, kind: str, at: str) -> Errors:
    errors: Errors = []
    names: dict[str, None] = {}
    for key in ("max", "min"):
        for name in item.get(key) or {}:
            errors += _limit_name(name, kind, f"{at}.{key}[{name}]")
            names[name] = None
    if kind == "Pod":
        errors += [forbidden_field(f"{at}.{key}", "may not be specified when `type` is 'Pod'") for key in ("default", "defaultRequest") if item.get(key)]
    else:
        for key in ("default", "defaultRequest"):
            for name in item.get(key) or {}:
                errors += _limit_name(name, kind, f"{at}.{key}[{name}]")
                names[name] = None
    if kind == "PersistentVolumeClaim" and "storage" not in (item.get("min") or {}) and "storage" not in (item.get("max") or {}):
        errors.append(required(f"{at}.limits", "either minimum or maximum storage value is required, but neither was provided"))
    for name in item.get("maxLimitRequestRatio") or {}:
        errors += _limit_name(name, kind, f"{at}.maxLimitRequestRatio[{name}]")
        names[name] = None
    for name in names:
        errors += _limit_values(item, name, at)
    return errors


def _limit_name(name: str, kind: str, at: str) -> Errors:
    return container_resource_name(name, at) if kind in ("Pod", "Container") else resource_name(name, at)


def _limit_values(item: Object, name: str, at: str) -> Errors:
    """Amounts of one resource in order: min <= defaultRequest <= default <= max."""
    errors: Errors = []
    values: dict[str, str | None] = {key: (item.get(key) or {}).get(name) for key in _LIMITS}
    low, high, default, request, ratio = values["min"], values["max"], values["default"], values["defaultRequest"], values["maxLimitRequestRatio"]

    def above(a: str | None, b: str | None) -> bool:
        return a is not None and b is not None and quantity.compare(a, b) > 0

    if above(low, high):
        errors.append(invalid_value(f"{at}.min[{name}]", low, f"min value {low} is greater than max value {high}"))
    if above(low, request):
        errors.append(invalid_value(f"{at}.defaultRequest[{name}]", request, f"min value {low} is greater than default request value {request}"))
    if above(request, high):
        errors.append(invalid_value(f"{at}.defaultRequest[{name}]", request, f"default request value {request} is greater than max value {high}"))
    if above(request, default):
        errors.append(invalid_value(f"{at}.defaultRequest[{name}]", request, f"default request value {request} is greater than default limit value {default}"))
    if above(low, default):
        errors.append(invalid_value(f"{at}.default[{name}]", low, f"min value {low} is greater than default value {default}"))
    if above(default, high):
        errors.append(invalid_value(f"{at}.default[{name}]", high, f"default value {default} is greater than max value {high}"))
    if ratio is not None:
        if quantity.nanos(ratio) < quantity.NANO:
            errors.append(invalid_value(f"{at}.maxLimitRequestRatio[{name}]", ratio, f"ratio {ratio} is less than 1"))
        if low is not None and high is not None and quantity.nanos(low):
            most = quantity.nanos(high) / quantity.nanos(low)
            if quantity.nanos(ratio) / quantity.NANO > most:
                errors.append(invalid_value(f"{at}.maxLimitRequestRatio[{name}]", ratio, f"ratio {ratio} is greater than max/min = {most:f}"))
    overcommit = native_resource(name) and not name.startswith("hugepages-")
    if not overcommit and default is not None and request is not None and quantity.compare(default, request):
        errors.append(invalid_value(f"{at}.defaultRequest[{name}]", request, f"default value {default} must equal to defaultRequest value {request} in {name}"))
    return errors


# ---- ResourceQuota

_SCOPES = {"Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity", "VolumeAttributesClass"}
_POD_ONLY = {
    "cpu",
    "memory",
    "pods",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
}
_QUOTA_STANDARD = {
    "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.storage", "requests.ephemeral-storage", "limits.cpu", "limits.memory",
    "limits.ephemeral-storage", "pods", "resourcequotas", "services", "replicationcontrollers", "secrets", "persistentvolumeclaims", "configmaps", "services.nodeports",
    "services.loadbalancers",
}  # fmt: skip
_INTEGER_QUOTAS = {
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
}


class ResourceQuota(Kind):
    kind = "ResourceQuota"
    status_metadata = METADATA
    has_generation = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj.get("spec") or {}
        return self._hard(spec.get("hard"), "spec.hard") + _quota_scopes(spec) + _scope_selector(spec)

    def _hard(self, amounts: Object | None, at: str) -> Errors:
        errors: Errors = []
        for name, amount in (amounts or {}).items():
            here = f"{at}[{name}]"
            errors += _quota_name(name, here)
            errors += resource_quantity(name, amount, here)
            if name in _INTEGER_QUOTAS and quantity.nanos(amount) % quantity.NANO:
                errors.append(invalid_value(here, amount, "must be an integer"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        new, before = (obj.get("spec") or {}).get("scopes") or [], (old.get("spec") or {}).get("scopes") or []
        if set(new) != set(before):
            errors.append(invalid_value("spec.scopes", new, "field is immutable"))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        return self._hard(status.get("hard"), "status.hard") + self._hard(status.get("used"), "status.used")


def _quota_name(name: str, at: str) -> Errors:
    errors = rule(formats.qualified_name, name, at)
    if not errors and "/" not in name and name not in _QUOTA_STANDARD and not name.startswith(("hugepages-", "requests.hugepages-")):
        return [
            invalid_value(at, name, "must be a standard resource type or fully qualified"),
            invalid_value(at, name, "must be a standard resource for quota"),
        ]
    return errors


def _quota_scopes(spec: Object) -> Errors:
    scopes = spec.get("scopes") or []
    if not scopes:
        return []
    errors: Errors = []
    for scope in scopes:
        if scope not in _SCOPES:
            errors.append(invalid_value("spec.scopes", scopes, "unsupported scope"))
        errors += [
            invalid_value("spec.scopes", scopes, "unsupported scope applied to resource")
            for name in sorted(spec.get("hard") or ())
            if not _scope_fits(scope, name)
        ]
    for a, b in (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")):
        if a in scopes and b in scopes:
            errors.append(invalid_value("spec.scopes", scopes, "conflicting scopes"))
    return errors


def _scope_fits(scope: str, name: str) -> bool:
    """Whether a quota of `name` can be narrowed by a scope."""
    if scope == "BestEffort":
        return name == "pods"
    if scope in ("Terminating", "NotTerminating", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"):
        return name in _POD_ONLY or name.startswith(("hugepages-", "requests.hugepages-")) or "/" in name
    if scope == "VolumeAttributesClass":
        return name in ("persistentvolumeclaims", "requests.storage") or "storageclass" in name
    return True


def _scope_selector(spec: Object) -> Errors:
    at = "spec.scopeSelector.matchExpressions"
    errors: Errors = []
    expressions = (spec.get("scopeSelector") or {}).get("matchExpressions") or []
    for expression in expressions:
        scope, operator, values = expression.get("scopeName") or "", expression.get("operator") or "", expression.get("values") or []
        if scope not in _SCOPES:
            errors.append(invalid_value(f"{at}.scopeName", scope, "unsupported scope"))
        errors += [
            invalid_value(at, spec["scopeSelector"], "unsupported scope applied to resource")
            for name in sorted(spec.get("hard") or ())
            if not _scope_fits(scope, name)
        ]
        if scope in ("BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity") and operator != "Exists":
            text = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"
            errors.append(invalid_value(f"{at}.operator", operator, text))
        if operator in ("In", "NotIn"):
            if not values:
                errors.append(required(f"{at}.values", "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                errors.append(invalid_value(f"{at}.values", values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
        else:
            errors.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
    names = {e.get("scopeName") for e in expressions}
    for a, b in (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")):
        if a in names and b in names:
            errors.append(invalid_value("spec.scopes", spec.get("scopes") or [], "conflicting scopes"))
    return errors


# ---- Endpoints


class Endpoints(Kind):
    kind = "Endpoints"
    has_status = has_generation = False
    create_on_update = True
    deprecated = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"

    def default(self, obj: Object) -> None:
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                if not port.get("protocol"):
                    port["protocol"] = "TCP"

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        for i, subset in enumerate(obj.get("subsets") or ()):
            at = f"subsets[{i}]"
            ready, unready, ports = subset.get("addresses") or [], subset.get("notReadyAddresses") or [], subset.get("ports") or []
            if not ready and not unready:
                errors.append(required(at, "must specify `addresses` or `notReadyAddresses`"))
            for key, addresses in (("addresses", ready), ("notReadyAddresses", unready)):
                for j, address in enumerate(addresses):
                    errors += _endpoint_address(address, f"{at}.{key}[{j}]")
            for j, port in enumerate(ports):
                errors += _endpoint_port(port, len(ports) > 1, f"{at}.ports[{j}]")
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


def _endpoint_address(address: Object, at: str) -> Errors:
    ip = address.get("ip") or ""
    errors: Errors = []
    if formats.sloppy_ip(ip) is None:
        errors.append(invalid_value(f"{at}.ip", ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
    if address.get("hostname"):
        errors += rule(formats.label, address["hostname"], f"{at}.hostname")
    if address.get("nodeName") is not None:
        errors += rule(formats.subdomain, address["nodeName"], f"{at}.nodeName")
    return errors + non_special_ip(ip, f"{at}.ip")


def non_special_ip(value: str, at: str) -> Errors:
    """An address that traffic may be sent to."""
    import ipaddress

    ip = formats.sloppy_ip(value)
    if ip is None:
        return [invalid_value(at, value, "must be a valid IP address")]
    errors: Errors = []
    if ip.is_unspecified:
        errors.append(invalid_value(at, value, f"may not be unspecified ({value})"))
    if ip.is_loopback:
        errors.append(invalid_value(at, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
    if ip.is_link_local:
        errors.append(invalid_value(at, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
    link_local = ipaddress.ip_network("224.0.0.0/24") if ip.version == 4 else ipaddress.ip_network("ff02::/16")
    if ip in link_local:
        errors.append(invalid_value(at, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
    return errors


def _endpoint_port(port: Object, need_name: bool, at: str) -> Errors:
    errors: Errors = []
    name = port.get("name")
    if not name and need_name:
        errors.append(required(f"{at}.name"))
    elif name:
        errors += rule(formats.label, name, f"{at}.name")
    number = port.get("port", 0)
    if formats.port_number(number):
        errors.append(invalid_value(f"{at}.port", number, formats.in_range(1, 65535)))
    errors += enum(port.get("protocol"), f"{at}.protocol", PROTOCOLS)
    if port.get("appProtocol") is not None:
        errors += rule(formats.qualified_name, port["appProtocol"], f"{at}.appProtocol")
    return errors


class Binding(Kind):
    kind = "Binding"
    has_status = has_generation = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        target = obj.get("target") or {}
        errors: Errors = []
        if target.get("kind") not in (None, "", "Node"):
            errors.append(not_supported("target.kind", target["kind"], ("Node", "<empty>")))
        if not target.get("name"):
            errors.append(required("target.name"))
        return errors


KINDS: list[Any] = [ConfigMap, Secret, ServiceAccount, Namespace, LimitRange, ResourceQuota, Endpoints, Binding]
