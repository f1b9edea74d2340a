"""scheduling.k8s.io/v1: PriorityClass."""

from __future__ import annotations

from fastkube.api.errors import FieldError, forbidden_field, not_supported, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors

HIGHEST_USER = 1_000_000_000
SYSTEM = {"system-node-critical": (2_000_001_000, False), "system-cluster-critical": (2_000_000_000, False)}


class PriorityClass(Kind):
    group = "scheduling.k8s.io"
    kind = "PriorityClass"
    has_status = False

    def default(self, obj: Object) -> None:
        if obj.get("preemptionPolicy") is None:
            obj["preemptionPolicy"] = "PreemptLowerPriority"

    def prepare_update(self, obj: Object, old: Object) -> None:
        """Its generation never moves."""

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        name, value = obj["metadata"].get("name") or "", obj.get("value", 0)
        if name.startswith("system-"):
            known = SYSTEM.get(name)
            if known is None:
                errors.append(
                    forbidden_field(
                        "metadata.name",
                        "priority class names with 'system-' prefix are reserved for system use only. error: no system priority class with that name",
                    )
                )
            elif known != (value, bool(obj.get("globalDefault"))):
                errors.append(
                    forbidden_field(
                        "metadata.name",
                        f"priority class names with 'system-' prefix are reserved for system use only. error: value of {name} PriorityClass must be {known[0]}",
                    )
                )
        elif value > HIGHEST_USER:
            errors.append(forbidden_field("value", f"maximum allowed value of a user defined priority is {HIGHEST_USER}"))
        return errors + _preemption(obj.get("preemptionPolicy"), "preemptionPolicy")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors: Errors = []
        if obj.get("value", 0) != old.get("value", 0):
            errors.append(forbidden_field("value", "may not be changed in an update."))
        if obj.get("preemptionPolicy") != old.get("preemptionPolicy"):
            errors.append(FieldError("FieldValueInvalid", "preemptionPolicy", f'Invalid value: "{obj.get("preemptionPolicy")}": field is immutable'))
        return errors


def _preemption(policy: str | None, at: str) -> Errors:
    if not policy:
        return [required(at)]
    return [] if policy in ("PreemptLowerPriority", "Never") else [not_supported(at, policy, ("PreemptLowerPriority", "Never"))]


KINDS = [PriorityClass]
