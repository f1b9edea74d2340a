"""The rules of Node (upstream: pkg/registry/core/node/strategy.go, ValidateNode)."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, resource_quantity, rule
from fastkube.api.kinds.pod_spec import TAINT_EFFECTS
from fastkube.api.kinds.pod_warnings import node_label

_ADDRESS_TYPES = ("Hostname", "InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS")


class Node(Kind):
    kind = "Node"
    status_metadata = METADATA
    has_generation = False
    field_labels = ("spec.unschedulable",)

    def default(self, obj: Object) -> None:
        spec, status = obj.setdefault("spec", {}), obj.setdefault("status", {})
        first = (spec.get("podCIDRs") or [""])[0]
        if spec.get("podCIDR") and first != spec["podCIDR"]:  # where the two disagree, upstream's conversion goes by the single one
            spec["podCIDRs"] = [spec["podCIDR"]]
        elif first and not spec.get("podCIDR"):
            spec["podCIDR"] = first
        if status.get("capacity") and not status.get("allocatable"):
            status["allocatable"] = dict(status["capacity"])
        status.setdefault("daemonEndpoints", {"kubeletEndpoint": {"Port": 0}})
        status.setdefault("nodeInfo", dict.fromkeys(
            ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture"), ""
        ))  # fmt: skip

    def prepare_create(self, obj: Object) -> None:
        """A node may be created with its status: that is how it registers."""
        (obj.get("spec") or {}).pop("configSource", None)

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        (obj.get("spec") or {}).pop("configSource", None)

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self._validate(obj)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self._validate(obj)
        spec, before = obj.get("spec") or {}, old.get("spec") or {}
        cidrs, were = spec.get("podCIDRs") or [], before.get("podCIDRs") or []
        if were and cidrs != were:
            errors.append(forbidden_field("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid'))
        if before.get("providerID") and spec.get("providerID") != before["providerID"]:
            errors.append(forbidden_field("spec.providerID", 'node updates may not change providerID except from "" to valid'))
        # Upstream looks at the taints of an update twice, and says so twice.
        return errors + _addresses(obj.get("status") or {}) + _taints(spec.get("taints") or [], "metadata.taints")

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        errors = _addresses(status)
        for key in ("capacity", "allocatable"):
            for name, amount in (status.get(key) or {}).items():
                errors += resource_quantity(name, amount, f"status.{key}[{name}]")
        return errors

    def _validate(self, obj: Object) -> Errors:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        errors = _taints(spec.get("taints") or [], "metadata.taints")
        for key in ("capacity", "allocatable"):
            for name, amount in (status.get(key) or {}).items():
                errors += resource_quantity(name, amount, f"status.{key}[{name}]")
        cidrs = spec.get("podCIDRs") or []
        if cidrs:
            for i, cidr in enumerate(cidrs):
                if formats.sloppy_cidr(cidr) is None:
                    errors.append(invalid_value(f"spec.podCIDRs[{i}]", cidr, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
            if len(cidrs) > 1:
                families = {n.version for c in cidrs if (n := formats.sloppy_cidr(c))}
                if len(cidrs) > 2 or len(families) != len(cidrs):
                    errors.append(invalid_value("spec.podCIDRs", cidrs, "may specify no more than one CIDR for each IP family"))
            errors += [duplicate(f"spec.podCIDRs[{i}]", c) for i, c in enumerate(cidrs) if c in cidrs[:i]]
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        out = []
        if (obj.get("spec") or {}).get("configSource") is not None:
            out.append("spec.configSource: the feature is no longer available")
        if (obj.get("spec") or {}).get("externalID"):
            out.append("spec.externalID: this field is deprecated, and is unused by Kubernetes")
        for i, taint in enumerate((obj.get("spec") or {}).get("taints") or ()):
            if text := node_label(taint.get("key") or ""):
                out.append(f"spec.taints[{i}].key: {taint['key']} is {text}")
        return out

    def fields(self, obj: Object) -> dict[str, str]:
        return {"spec.unschedulable": "true" if (obj.get("spec") or {}).get("unschedulable") else "false"}


def _addresses(status: Object) -> Errors:
    seen: list[Object] = []
    errors: Errors = []
    for i, address in enumerate(status.get("addresses") or ()):
        if address in seen:
            errors.append(duplicate(f"status.addresses[{i}]", address))
        seen.append(address)
    return errors


def _taints(taints: list[Object], field: str) -> Errors:
    errors: Errors = []
    seen: set[tuple[str, str]] = set()
    for i, taint in enumerate(taints):
        at = f"{field}[{i}]"
        key, value, effect = (taint.get(k) or "" for k in ("key", "value", "effect"))
        errors += rule(formats.qualified_name, key, f"{at}.key")
        if bad := formats.label_value(value):
            errors.append(invalid_value(f"{at}.value", value, ";".join(bad)))
        if not effect:
            errors.append(required(f"{at}.effect"))
        elif effect not in TAINT_EFFECTS:
            errors.append(not_supported(f"{at}.effect", effect, TAINT_EFFECTS))
        if (key, effect) in seen:
            errors.append(FieldError("FieldValueDuplicate", at, f"Duplicate value: {_taint_text(taint)}: taints must be unique by key and effect pair"))
        seen.add((key, effect))
    return errors


def _taint_text(taint: Object) -> str:
    import orjson

    return orjson.dumps(
        {"Key": taint.get("key", ""), "Value": taint.get("value", ""), "Effect": taint.get("effect", ""), "TimeAdded": taint.get("timeAdded")}
    ).decode()


KINDS = [Node]
