"""node.k8s.io/v1: RuntimeClass."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors, immutable, rule
from fastkube.api.kinds.pod_containers import resources
from fastkube.api.kinds.pod_spec import tolerations
from fastkube.api.meta import validate_labels


class RuntimeClass(Kind):
    group = "node.k8s.io"
    kind = "RuntimeClass"
    has_status = has_generation = False
    unconditional_update = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        handler = obj.get("handler") or ""
        errors: Errors = [required("handler")] if not handler else rule(formats.label, handler, "handler")
        overhead = (obj.get("overhead") or {}).get("podFixed")
        if overhead:
            errors += resources({"limits": overhead}, set(), "overhead.podFixed")
        scheduling = obj.get("scheduling")
        if scheduling is not None:
            errors += validate_labels(scheduling.get("nodeSelector"), "scheduling.nodeSelector")
            listed = scheduling.get("tolerations") or []
            errors += tolerations(listed, "scheduling.tolerations")
            errors += [duplicate(f"scheduling.tolerations[{i}]", t) for i, t in enumerate(listed) if t in listed[:i]]
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return immutable(obj.get("handler"), old.get("handler"), "handler")


KINDS = [RuntimeClass]
