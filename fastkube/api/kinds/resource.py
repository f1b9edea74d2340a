"""resource.k8s.io/v1: DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice (dynamic resource allocation)."""

from __future__ import annotations

import re
from typing import Any

from fastkube.api import formats, internal
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required, too_long, too_many
from fastkube.api.kinds.base import Kind, Object, null_when_empty
from fastkube.api.kinds.cel import expression_errors
from fastkube.api.kinds.common import Errors, rule
from fastkube.api.kinds.pod_spec import node_selector, tolerations
from fastkube.api.meta import validate_annotations, validate_labels

GROUP = "resource.k8s.io"
_SELECTORS_MAX, _CONFIGS_MAX, _REQUESTS_MAX, _CONSTRAINTS_MAX, _FIRST_AVAILABLE_MAX, _RESERVED_MAX = 32, 32, 32, 32, 8, 256
_DEVICES_MAX, _ATTRIBUTES_MAX, _TAINTS_MAX, _STRING_BYTES_MAX, _PARAMETERS_BYTES_MAX = 128, 32, 16, 64, 10 * 1024
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


def _set(values: list[Any], limit: int, at: str) -> Errors:
    return [too_many(at, len(values), limit)] if len(values) > limit else []


def _driver(name: str, at: str) -> Errors:
    if not name:
        return [required(at)]
    errors: Errors = [too_long(at, 63)] if len(name.encode()) > 63 else []
    return errors + rule(formats.subdomain, name, at)


def _selectors(selectors: list[Object], at: str) -> Errors:
    errors = _set(selectors, _SELECTORS_MAX, at)
    for i, selector in enumerate(selectors):
        cel = selector.get("cel")
        if cel is None:
            errors.append(required(f"{at}[{i}].cel"))
            continue
        text = cel.get("expression") or ""
        if len(text.encode()) > 10 * 1024:
            errors.append(too_long(f"{at}[{i}].cel.expression", 10 * 1024))
        else:
            errors += expression_errors(text, f"{at}[{i}].cel.expression")
    return errors


def _opaque(config: Object, at: str) -> Errors:
    opaque = config.get("opaque")
    if opaque is None:
        return [required(f"{at}.opaque")]
    errors = _driver(opaque.get("driver") or "", f"{at}.opaque.driver")
    parameters, here = opaque.get("parameters"), f"{at}.opaque.parameters"
    if parameters is None:
        errors.append(required(here))
    elif not isinstance(parameters, dict):
        errors.append(invalid_value(here, "<value omitted>", "must be a valid JSON object"))
    else:
        import orjson

        if len(orjson.dumps(parameters)) > _PARAMETERS_BYTES_MAX:
            errors.append(too_long(here, _PARAMETERS_BYTES_MAX))
    return errors


class DeviceClass(Kind):
    group = GROUP
    kind = "DeviceClass"
    has_status = False

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors = _selectors(spec.get("selectors") or [], "spec.selectors")
        configs = spec.get("config") or []
        errors += _set(configs, _CONFIGS_MAX, "spec.config")
        for i, config in enumerate(configs):
            errors += _opaque(config, f"spec.config[{i}]")
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


def _default_devices(spec: Object) -> None:
    for request in (spec.get("devices") or {}).get("requests") or ():
        listed = [request["exactly"]] if request.get("exactly") is not None else []
        for part in listed + (request.get("firstAvailable") or []):
            if not part.get("allocationMode"):
                part["allocationMode"] = "ExactCount"
            if part["allocationMode"] == "ExactCount" and not part.get("count"):
                part["count"] = 1
            for toleration in part.get("tolerations") or ():
                if not toleration.get("operator"):
                    toleration["operator"] = "Equal"


class ResourceClaim(Kind):
    group = GROUP
    kind = "ResourceClaim"
    has_generation = False

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        null_when_empty(obj["spec"].get("devices"), "requests")

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        null_when_empty(obj["spec"].get("devices"), "requests")

    def default(self, obj: Object) -> None:
        _default_devices(obj.setdefault("spec", {"devices": {}}))

    def validate_create(self, obj: Object) -> list[FieldError]:
        return claim(obj["spec"], "spec")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors: Errors = []
        if obj.get("spec") != old.get("spec"):
            errors.append(invalid_value("spec", internal.view("resource.v1.ResourceClaimSpec", obj.get("spec")), "field is immutable"))
        return errors + self.validate_create(obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status, before = obj.get("status") or {}, old.get("status") or {}
        reserved = status.get("reservedFor") or []
        errors = _set(reserved, _RESERVED_MAX, "status.reservedFor")
        seen: set[str] = set()
        for i, consumer in enumerate(reserved):
            at = f"status.reservedFor[{i}]"
            errors += [required(f"{at}.{key}") for key in ("resource", "name", "uid") if not consumer.get(key)]
            if consumer.get("uid") in seen:
                errors.append(duplicate(f"{at}.uid", consumer["uid"]))
            seen.add(consumer.get("uid") or "")
        if reserved and status.get("allocation") is None:
            errors.append(forbidden_field("status.reservedFor", "may not be specified when `allocated` is not set"))
        if status.get("allocation") is not None and before.get("allocation") is not None and status["allocation"] != before["allocation"]:
            errors.append(invalid_value("status.allocation", internal.view("resource.v1.AllocationResult", status["allocation"]), "field is immutable"))
        if (
            obj["metadata"].get("deletionTimestamp")
            and reserved != (before.get("reservedFor") or [])
            and any(c not in (before.get("reservedFor") or []) for c in reserved)
        ):
            errors.append(forbidden_field("status.reservedFor", "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
        return errors


def claim(spec: Object, at: str) -> Errors:
    """A ResourceClaimSpec."""
    devices, at = spec.get("devices") or {}, f"{at}.devices"
    requests = devices.get("requests") or []
    errors = _set(requests, _REQUESTS_MAX, f"{at}.requests")
    names: dict[str, set[str]] = {}
    for i, request in enumerate(requests):
        here, name = f"{at}.requests[{i}]", request.get("name") or ""
        errors += _request(request, here)
        if name in names:
            errors.append(duplicate(here, name))
        names[name] = {part.get("name") or "" for part in request.get("firstAvailable") or ()}
    known = {*names, *(f"{name}/{sub}" for name, subs in names.items() for sub in subs)}
    constraints = devices.get("constraints") or []
    errors += _set(constraints, _CONSTRAINTS_MAX, f"{at}.constraints")
    for i, constraint in enumerate(constraints):
        here = f"{at}.constraints[{i}]"
        errors += _references(constraint.get("requests") or [], known, f"{here}.requests")
        match, distinct = constraint.get("matchAttribute"), constraint.get("distinctAttribute")
        if match is None and distinct is None:
            errors.append(required(f"{here}.matchAttribute"))
        elif match is not None:
            errors += _qualified_attribute(match, f"{here}.matchAttribute")
    configs = devices.get("config") or []
    errors += _set(configs, _CONFIGS_MAX, f"{at}.config")
    for i, config in enumerate(configs):
        here = f"{at}.config[{i}]"
        errors += _references(config.get("requests") or [], known, f"{here}.requests") + _opaque(config, here)
    return errors


def _references(names: list[str], known: set[str], at: str) -> Errors:
    errors: Errors = []
    for i, name in enumerate(names):
        if name not in known:
            errors.append(
                invalid_value(f"{at}[{i}]", name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
            )
        if name in names[:i]:
            errors.append(duplicate(f"{at}[{i}]", name))
    return errors


def _request(request: Object, at: str) -> Errors:
    errors = rule(formats.label, request.get("name") or "", f"{at}.name")
    exactly, first = request.get("exactly"), request.get("firstAvailable") or []
    if exactly is not None and first:
        errors.append(invalid_value(at, None, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"))
    elif exactly is None and not first:
        errors.append(required(at, "exactly one of `exactly` or `firstAvailable` is required"))
    elif exactly is not None:
        errors += _exact(exactly, f"{at}.exactly")
    else:
        errors += _set(first, _FIRST_AVAILABLE_MAX, f"{at}.firstAvailable")
        for i, part in enumerate(first):
            here = f"{at}.firstAvailable[{i}]"
            errors += rule(formats.label, part.get("name") or "", f"{here}.name") + _exact(part, here)
            if any(p.get("name") == part.get("name") for p in first[:i]):
                errors.append(duplicate(here, part.get("name")))
    return errors


def _exact(part: Object, at: str) -> Errors:
    name, mode, count = part.get("deviceClassName") or "", part.get("allocationMode"), part.get("count", 0)
    errors = [required(f"{at}.deviceClassName")] if not name else rule(formats.subdomain, name, f"{at}.deviceClassName")
    errors += _selectors(part.get("selectors") or [], f"{at}.selectors")
    if mode == "All":
        if count:
            errors.append(invalid_value(f"{at}.count", count, "must not be specified when allocationMode is 'All'"))
    elif mode == "ExactCount":
        if count <= 0:
            errors.append(invalid_value(f"{at}.count", count, "must be greater than zero"))
    else:
        errors.append(not_supported(f"{at}.allocationMode", mode or "", ("All", "ExactCount")))
    listed = part.get("tolerations") or []
    errors += _set(listed, _TAINTS_MAX, f"{at}.tolerations")
    return errors + tolerations(listed, f"{at}.tolerations")


class ResourceClaimTemplate(Kind):
    group = GROUP
    kind = "ResourceClaimTemplate"
    has_status = has_generation = False

    def prepare_create(self, obj: Object) -> None:
        null_when_empty((obj["spec"].get("spec") or {}).get("devices"), "requests")

    def prepare_update(self, obj: Object, old: Object) -> None:
        null_when_empty((obj["spec"].get("spec") or {}).get("devices"), "requests")

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("metadata", {})
        _default_devices(spec.setdefault("spec", {"devices": {}}))

    def validate_create(self, obj: Object) -> list[FieldError]:
        meta = obj["spec"].get("metadata") or {}
        errors = validate_labels(meta.get("labels"), "spec.metadata.labels") + validate_annotations(meta.get("annotations"), "spec.metadata.annotations")
        return errors + claim(obj["spec"].get("spec") or {}, "spec.spec")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors: Errors = []
        if obj.get("spec") != old.get("spec"):
            errors.append(invalid_value("spec", internal.view("resource.v1.ResourceClaimTemplateSpec", obj.get("spec")), "field is immutable"))
        return self.validate_create(obj) + errors


class ResourceSlice(Kind):
    group = GROUP
    kind = "ResourceSlice"
    has_status = False
    field_labels = ("spec.nodeName", "spec.driver")

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("driver", "")
        spec.setdefault("pool", {"name": "", "generation": 0, "resourceSliceCount": 0})
        for device in spec.get("devices") or ():
            for taint in device.get("taints") or ():
                if taint.get("timeAdded") is None:
                    from fastkube.runtime import clock

                    taint["timeAdded"] = clock.rfc3339()

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors = _driver(spec.get("driver") or "", "spec.driver")
        pool = spec.get("pool") or {}
        errors += _pool_name(pool.get("name") or "", "spec.pool.name")
        if pool.get("resourceSliceCount", 0) <= 0:
            errors.append(invalid_value("spec.pool.resourceSliceCount", pool.get("resourceSliceCount", 0), "must be greater than zero"))
        if pool.get("generation", 0) < 0:
            errors.append(invalid_value("spec.pool.generation", pool["generation"], "must be greater than or equal to zero"))
        errors += self._where(spec, "spec", ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"))
        devices = spec.get("devices") or []
        errors += _set(devices, _DEVICES_MAX, "spec.devices")
        names: set[str] = set()
        for i, device in enumerate(devices):
            at, name = f"spec.devices[{i}]", device.get("name") or ""
            errors += self._device(device, bool(spec.get("perDeviceNodeSelection")), at)
            if name in names:
                errors.append(duplicate(at, name))
            names.add(name)
        return errors

    def _where(self, spec: Object, at: str, keys: tuple[str, ...]) -> Errors:
        given = [key for key in keys if spec.get(key)]
        listed = ", ".join(f"`{key}`" for key in keys)
        errors: Errors = []
        if not given:
            errors.append(required(at, f"exactly one of {listed} is required"))
        elif len(given) > 1:
            errors.append(invalid_value(at, "{" + ", ".join(given) + "}", f"exactly one of {listed} is required, but multiple fields are set"))
        if spec.get("nodeName"):
            errors += rule(formats.subdomain, spec["nodeName"], f"{at}.nodeName")
        if spec.get("nodeSelector"):
            errors += node_selector(spec["nodeSelector"], f"{at}.nodeSelector")
            if len(spec["nodeSelector"].get("nodeSelectorTerms") or ()) != 1:
                errors.append(
                    invalid_value(
                        f"{at}.nodeSelector.nodeSelectorTerms", spec["nodeSelector"].get("nodeSelectorTerms"), "must have exactly one node selector term"
                    )
                )
        return errors

    def _device(self, device: Object, own_nodes: bool, at: str) -> Errors:
        errors = rule(formats.label, device.get("name") or "", f"{at}.name")
        attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
        if len(attributes) + len(capacity) > _ATTRIBUTES_MAX:
            errors.append(
                invalid_value(at, len(attributes) + len(capacity), f"the total number of attributes and capacities must not exceed {_ATTRIBUTES_MAX}")
            )
        for name, value in attributes.items():
            errors += _attribute_name(name, f"{at}.attributes") + _attribute(value, f"{at}.attributes[{name}]")
        for name in capacity:
            errors += _attribute_name(name, f"{at}.capacity")
        if own_nodes:
            errors += self._where(device, at, ("nodeName", "nodeSelector", "allNodes"))
        taints = device.get("taints") or []
        errors += _set(taints, _TAINTS_MAX, f"{at}.taints")
        for i, taint in enumerate(taints):
            here = f"{at}.taints[{i}]"
            errors += rule(formats.qualified_name, taint.get("key") or "", f"{here}.key") + rule(formats.label_value, taint.get("value") or "", f"{here}.value")
            if taint.get("effect") not in ("NoSchedule", "NoExecute", "None"):
                errors.append(
                    not_supported(f"{here}.effect", taint["effect"], ("NoExecute", "NoSchedule", "None")) if taint.get("effect") else required(f"{here}.effect")
                )
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        new, before = obj["spec"], old["spec"]
        for key, a, b in (
            ("driver", new.get("driver"), before.get("driver")),
            ("pool.name", (new.get("pool") or {}).get("name"), (before.get("pool") or {}).get("name")),
            ("nodeName", new.get("nodeName"), before.get("nodeName")),
        ):
            if a != b:
                errors.append(invalid_value(f"spec.{key}", a, "field is immutable"))
        return errors

    def fields(self, obj: Object) -> dict[str, str]:
        spec = obj.get("spec") or {}
        return {"spec.nodeName": spec.get("nodeName") or "", "spec.driver": spec.get("driver") or ""}


def _pool_name(name: str, at: str) -> Errors:
    if not name:
        return [required(at)]
    errors: Errors = [too_long(at, 253)] if len(name.encode()) > 253 else []
    return errors + [e for part in name.split("/") for e in rule(formats.subdomain, part, at)]


_C_IDENTIFIER_BYTES_MAX = 32


def _attribute_name(name: str, at: str) -> Errors:
    """[domain/]identifier."""
    if not name:
        return [required(at, "name required")]
    parts = name.split("/")
    if len(parts) > 2:
        return [invalid_value(at, name, "a qualified name must have the form [domain/]identifier")]
    errors: Errors = []
    if len(parts) == 2:
        errors += [required(at, "the domain must not be empty")] if not parts[0] else _driver(parts[0], at)
    bare = parts[-1]
    if not bare:
        errors.append(required(at, "the name must not be empty"))
    elif len(bare.encode()) > _C_IDENTIFIER_BYTES_MAX:
        errors.append(too_long(at, _C_IDENTIFIER_BYTES_MAX))
    else:
        errors += rule(formats.c_identifier, bare, at)
    return errors


def _qualified_attribute(name: str, at: str) -> Errors:
    errors = _attribute_name(name, at)
    if not errors and "/" not in name:
        errors.append(invalid_value(at, name, "must include a domain"))
    return errors


_ATTRIBUTE_KINDS = ("bool", "int", "string", "version", "bools", "ints", "strings", "versions")


def _attribute(value: Object, at: str) -> Errors:
    given = [key for key in _ATTRIBUTE_KINDS if value.get(key) is not None]
    if len(given) != 1:
        shown = internal.view("resource.v1.DeviceAttribute", value) if given else ""
        return [invalid_value(at, shown, "exactly one value must be specified")]
    errors: Errors = []
    for key, check in (("string", None), ("version", _SEMVER)):
        text = value.get(key)
        if text is None:
            continue
        if len(text.encode()) > _STRING_BYTES_MAX:
            errors.append(too_long(f"{at}.{key}", _STRING_BYTES_MAX))
        if check is not None and not check.fullmatch(text):
            errors.append(invalid_value(f"{at}.{key}", text, "must be a string compatible with semver.org spec 2.0.0"))
    return errors


KINDS = [DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice]
