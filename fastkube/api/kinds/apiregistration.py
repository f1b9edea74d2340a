"""apiregistration.k8s.io/v1: APIService."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, invalid_value, not_supported, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors, rule


class APIService(Kind):
    group = "apiregistration.k8s.io"
    kind = "APIService"
    has_generation = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        for key in ("groupPriorityMinimum", "versionPriority"):
            spec.setdefault(key, 0)
        service = spec.get("service")
        if service is not None and service.get("port") is None:
            service["port"] = 443

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}
        if obj["spec"].get("service") is None:  # served by this server itself
            obj["status"] = {"conditions": [_local_condition()]}

    def name_errors(self, name: str, prefix: bool = False) -> list[str]:
        return []

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec, name = obj["spec"], obj["metadata"].get("name") or ""
        group, version = spec.get("group") or "", spec.get("version") or ""
        errors: Errors = []
        wanted = f"{version}.{group}"
        if name and name != wanted:
            errors.append(invalid_value("metadata.name", name, f'must be `spec.version+"."+spec.group`: "{wanted}"'))
        if not group:
            if version != "v1":
                errors.append(required("spec.group", "only v1 may have an empty group and it better be legacy kube"))
        else:
            errors += rule(formats.subdomain, group, "spec.group")
        errors += rule(formats.label_1035, version, "spec.version")
        if not 0 < spec.get("groupPriorityMinimum", 0) <= 20000:
            errors.append(invalid_value("spec.groupPriorityMinimum", spec.get("groupPriorityMinimum", 0), "must be positive and less than 20000"))
        if not 0 < spec.get("versionPriority", 0) <= 1000:
            errors.append(invalid_value("spec.versionPriority", spec.get("versionPriority", 0), "must be positive and less than 1000"))
        service, bundle, insecure = spec.get("service"), spec.get("caBundle"), spec.get("insecureSkipTLSVerify")
        if service is None:
            if bundle:
                errors.append(invalid_value("spec.caBundle", f"{len(bundle) * 3 // 4} bytes", "local APIServices may not have a caBundle"))
            if insecure:
                errors.append(invalid_value("spec.insecureSkipTLSVerify", True, "local APIServices may not have insecureSkipTLSVerify"))
            return errors
        errors += [required(f"spec.service.{key}") for key in ("namespace", "name") if not service.get(key)]
        if bad := formats.port_number(service.get("port", 0)):
            errors.append(invalid_value("spec.service.port", service.get("port", 0), "port is not valid: " + ", ".join(bad)))
        if insecure and bundle:
            errors.append(invalid_value("spec.insecureSkipTLSVerify", True, "may not be true if caBundle is present"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return [
            not_supported(f"status.conditions[{i}].status", c.get("status") or "", ("True", "False", "Unknown"))
            for i, c in enumerate((obj.get("status") or {}).get("conditions") or ())
            if c.get("status") not in ("True", "False", "Unknown")
        ]


def _local_condition() -> Object:
    from fastkube.runtime import clock

    return {
        "type": "Available",
        "status": "True",
        "lastTransitionTime": clock.rfc3339(),
        "reason": "Local",
        "message": "Local APIServices are always available",
    }


KINDS = [APIService]
