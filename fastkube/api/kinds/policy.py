"""policy/v1: PodDisruptionBudget and Eviction."""

from __future__ import annotations

from fastkube.api.errors import FieldError, invalid_value, not_supported
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, label_selector, not_more_than_100_percent
from fastkube.api.kinds.workloads import counts

GROUP = "policy"


class PodDisruptionBudget(Kind):
    group = GROUP
    kind = "PodDisruptionBudget"
    status_metadata = METADATA
    unconditional_update = False
    name_rule = "path"  # upstream never looks at it more closely

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def _spec(self, spec: Object) -> Errors:
        errors: Errors = []
        low, high = spec.get("minAvailable"), spec.get("maxUnavailable")
        if low is not None and high is not None:
            errors.append(invalid_value("spec", _view(spec), "minAvailable and maxUnavailable cannot be both set"))
        for key, value in (("minAvailable", low), ("maxUnavailable", high)):
            if value is not None:
                errors += _amount(value, f"spec.{key}")
                errors += not_more_than_100_percent(value, f"spec.{key}")
        errors += label_selector(spec.get("selector"), "spec.selector")
        policy = spec.get("unhealthyPodEvictionPolicy")
        if policy is not None and policy not in ("IfHealthyBudget", "AlwaysAllow"):
            errors.append(not_supported("spec.unhealthyPodEvictionPolicy", policy, ("AlwaysAllow", "IfHealthyBudget")))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return counts(obj.get("status") or {}, "status", "disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods")


def _view(spec: Object) -> Object:
    from fastkube.api import internal

    return internal.view("policy.v1.PodDisruptionBudgetSpec", spec)


def _amount(value: object, at: str) -> Errors:
    from fastkube.api import formats
    from fastkube.api.kinds.common import nonnegative

    if isinstance(value, str):
        return [invalid_value(at, value, m) for m in formats.percent(value)]
    assert isinstance(value, int)
    return nonnegative(value, at)


class Eviction(Kind):
    group = GROUP
    kind = "Eviction"


KINDS = [PodDisruptionBudget, Eviction]
