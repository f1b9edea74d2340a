"""coordination.k8s.io/v1: Lease."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors, nonnegative, rule

_STRATEGIES = ("OldestEmulationVersion",)


class Lease(Kind):
    group = "coordination.k8s.io"
    kind = "Lease"
    has_status = has_generation = False
    create_on_update = True
    unconditional_update = False

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors: Errors = []
        seconds, strategy = spec.get("leaseDurationSeconds"), spec.get("strategy")
        if seconds is not None and seconds <= 0:
            errors.append(invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
        errors += nonnegative(spec.get("leaseTransitions"), "spec.leaseTransitions")
        if strategy is not None:
            if "/" in strategy:
                errors += rule(formats.qualified_name, strategy, "spec.strategy")
            elif strategy not in _STRATEGIES:
                errors.append(not_supported("spec.strategy", strategy, _STRATEGIES))
        if spec.get("preferredHolder") and not strategy:
            errors.append(forbidden_field("spec.preferredHolder", "can only be set if strategy is defined"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


KINDS = [Lease]
