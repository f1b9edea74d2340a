"""autoscaling: HorizontalPodAutoscaler (stored as v2) and Scale."""

from __future__ import annotations

from fastkube.api import formats, quantity
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, label_selector, nonnegative, rule

GROUP = "autoscaling"
_SOURCES = {"Object": "object", "Pods": "pods", "Resource": "resource", "External": "external", "ContainerResource": "containerResource"}
_SOURCE_TYPES = ("ContainerResource", "External", "Object", "Pods", "Resource")
_SELECT_POLICIES = ("Disabled", "Max", "Min")
_PERIOD_MAX, _WINDOW_MAX = 1800, 3600
_UP = [{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]
_DOWN = [{"type": "Percent", "value": 100, "periodSeconds": 15}]


class HorizontalPodAutoscaler(Kind):
    group = GROUP
    kind = "HorizontalPodAutoscaler"
    status_metadata = METADATA
    has_generation = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if spec.get("minReplicas") is None:
            spec["minReplicas"] = 1
        if not spec.get("metrics"):
            spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]
        behavior = spec.get("behavior")
        if behavior is not None:
            behavior["scaleUp"] = _rules(behavior.get("scaleUp"), _UP, 0)
            behavior["scaleDown"] = _rules(behavior.get("scaleDown"), _DOWN, None)

    def prepare_update(self, obj: Object, old: Object) -> None:
        obj["status"] = old.get("status") or {}

    def validate_create(self, obj: Object) -> list[FieldError]:
        return _spec(obj["spec"])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return _spec(obj["spec"])

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        return nonnegative(status.get("currentReplicas"), "status.currentReplicas") + nonnegative(status.get("desiredReplicas"), "status.desiredReplicas")


def _rules(rules: Object | None, policies: list[Object], window: int | None) -> Object:
    """Scaling rules with what was left out: an absent part of `behavior` stands for its defaults in full."""
    rules = rules if rules is not None else {}
    if rules.get("selectPolicy") is None:
        rules["selectPolicy"] = "Max"
    if rules.get("policies") is None:
        rules["policies"] = [dict(p) for p in policies]
    if rules.get("stabilizationWindowSeconds") is None and window is not None:
        rules["stabilizationWindowSeconds"] = window
    return rules


def _spec(spec: Object) -> Errors:
    errors: Errors = []
    low, high = spec.get("minReplicas"), spec.get("maxReplicas", 0)
    least = 1
    if low is not None and low < least:
        errors.append(invalid_value("spec.minReplicas", low, f"must be greater than or equal to {least}"))
    if high < 1:
        errors.append(
            required("spec.maxReplicas", "must be set and greater than 0") if not high else invalid_value("spec.maxReplicas", high, "must be greater than 0")
        )
    if low is not None and high < low:
        errors.append(invalid_value("spec.maxReplicas", high, "must be greater than or equal to `minReplicas`"))
    errors += cross_reference(spec.get("scaleTargetRef") or {}, "spec.scaleTargetRef")
    metrics = spec.get("metrics") or []
    external = False
    for i, metric in enumerate(metrics):
        errors += _metric(metric, f"spec.metrics[{i}]")
        external = external or metric.get("type") in ("Object", "External")
    if low == 0 and not external:
        errors.append(forbidden_field("spec.metrics", "must specify at least one Object or External metric to support scaling to zero replicas"))
    behavior = spec.get("behavior")
    if behavior is not None:
        for key in ("scaleUp", "scaleDown"):
            if behavior.get(key) is not None:
                errors += _scaling_rules(behavior[key], f"spec.behavior.{key}")
    return errors


def cross_reference(ref: Object, at: str, api_version: bool = True) -> Errors:
    errors: Errors = []
    for key in ("kind", "name"):
        value = ref.get(key) or ""
        if not value:
            errors.append(required(f"{at}.{key}"))
        else:
            errors += rule(formats.path_segment, value, f"{at}.{key}")
    if api_version:
        group, slash, version = (ref.get("apiVersion") or "").rpartition("/")
        if (ref.get("apiVersion") or "").count("/") > 1:
            errors.append(invalid_value(f"{at}.apiVersion", ref["apiVersion"], f"unexpected GroupVersion string: {ref['apiVersion']}"))
        elif not group and ref.get("apiVersion") != "v1":
            errors.append(invalid_value(f"{at}.apiVersion", ref.get("apiVersion") or "", "apiVersion must specify API group"))
        elif slash and not version:
            errors.append(invalid_value(f"{at}.apiVersion", ref["apiVersion"], "apiVersion must specify API version"))
    return errors


def _metric(metric: Object, at: str) -> Errors:
    errors: Errors = []
    kind = metric.get("type") or ""
    if not kind:
        errors.append(required(f"{at}.type", "must specify a metric source type"))
    if kind not in _SOURCES:
        errors.append(not_supported(f"{at}.type", kind, _SOURCE_TYPES))
    given: dict[str, None] = {}
    checks = {
        "object": _object_source,
        "external": _external_source,
        "pods": _pods_source,
        "resource": _resource_source,
        "containerResource": _container_source,
    }
    for key, check in checks.items():
        if metric.get(key) is not None:
            given[key] = None
            if len(given) == 1:
                errors += check(metric[key], f"{at}.{key}")
    expected = _SOURCES.get(kind, "")
    if not expected:
        errors.append(not_supported(f"{at}.type", kind, _SOURCE_TYPES))  # upstream says it twice
    elif expected not in given:
        errors.append(required(f"{at}.{expected}", "must populate information for the given metric source"))
    if len(given) != 1:
        errors += [forbidden_field(f"{at}.{key}", "must populate the given metric source only") for key in given if key != expected]
    return errors


def _identifier(ident: Object, at: str) -> Errors:
    name = ident.get("name") or ""
    errors = [required(f"{at}.name")] if not name else rule(formats.path_segment, name, f"{at}.name")
    return errors + label_selector(ident.get("selector"), f"{at}.selector")


def _target(target: Object, at: str) -> Errors:
    errors: Errors = []
    kind = target.get("type") or ""
    if not kind:
        errors.append(required(f"{at}.type", "must specify a metric target type"))
    if kind not in ("Utilization", "Value", "AverageValue"):
        errors.append(invalid_value(f"{at}.type", kind, "must be either Utilization, Value, or AverageValue"))
    for key in ("value", "averageValue"):
        if target.get(key) is not None and quantity.nanos(target[key]) <= 0:
            errors.append(invalid_value(f"{at}.{key}", target[key], "must be positive"))
    utilization = target.get("averageUtilization")
    if utilization is not None and utilization < 1:
        errors.append(invalid_value(f"{at}.averageUtilization", utilization, "must be greater than 0"))
    return errors


def _object_source(source: Object, at: str) -> Errors:
    target = source.get("target") or {}
    errors = (
        cross_reference(source.get("describedObject") or {}, f"{at}.describedObject")
        + _identifier(source.get("metric") or {}, f"{at}.metric")
        + _target(target, f"{at}.target")
    )
    if target.get("value") is None and target.get("averageValue") is None:
        errors.append(required(f"{at}.target.averageValue", "must set either a target value or averageValue"))
    return errors


def _external_source(source: Object, at: str) -> Errors:
    target = source.get("target") or {}
    errors = _identifier(source.get("metric") or {}, f"{at}.metric") + _target(target, f"{at}.target")
    if target.get("value") is None and target.get("averageValue") is None:
        errors.append(required(f"{at}.target.averageValue", "must set either a target value for metric or a per-pod target"))
    if target.get("value") is not None and target.get("averageValue") is not None:
        errors.append(forbidden_field(f"{at}.target.value", "may not set both a target value for metric and a per-pod target"))
    return errors


def _pods_source(source: Object, at: str) -> Errors:
    target = source.get("target") or {}
    errors = _identifier(source.get("metric") or {}, f"{at}.metric") + _target(target, f"{at}.target")
    if target.get("averageValue") is None:
        errors.append(required(f"{at}.target.averageValue", "must specify a positive target averageValue"))
    return errors


def _resource_source(source: Object, at: str) -> Errors:
    errors: Errors = []
    target = source.get("target") or {}
    if not source.get("name"):
        errors.append(required(f"{at}.name", "must specify a resource name"))
    errors += _target(target, f"{at}.target")
    if target.get("averageUtilization") is None and target.get("averageValue") is None:
        errors.append(required(f"{at}.target.averageUtilization", "must set either a target raw value or a target utilization"))
    if target.get("averageUtilization") is not None and target.get("averageValue") is not None:
        errors.append(forbidden_field(f"{at}.target.averageValue", "may not set both a target raw value and a target utilization"))
    return errors


def _container_source(source: Object, at: str) -> Errors:
    errors: Errors = [] if source.get("container") else [required(f"{at}.container", "must specify a container")]
    return errors + _resource_source(source, at)


def _scaling_rules(rules: Object, at: str) -> Errors:
    errors: Errors = []
    window, select, policies = rules.get("stabilizationWindowSeconds"), rules.get("selectPolicy"), rules.get("policies")
    if window is not None:
        if window < 0:
            errors.append(invalid_value(f"{at}.stabilizationWindowSeconds", window, "must be greater than or equal to zero"))
        if window > _WINDOW_MAX:
            errors.append(invalid_value(f"{at}.stabilizationWindowSeconds", window, f"must be less than or equal to {_WINDOW_MAX}"))
    if select is not None and select not in _SELECT_POLICIES:
        errors.append(not_supported(f"{at}.selectPolicy", select, _SELECT_POLICIES))
    if not policies:
        errors.append(required(f"{at}.policies", "must specify at least one Policy"))
    for i, policy in enumerate(policies or ()):
        here = f"{at}.policies[{i}]"
        if policy.get("type") not in ("Percent", "Pods"):
            errors.append(not_supported(f"{here}.type", policy.get("type") or "", ("Percent", "Pods")))
        for key in ("value", "periodSeconds"):
            if policy.get(key, 0) <= 0:
                errors.append(invalid_value(f"{here}.{key}", policy.get(key, 0), "must be greater than zero"))
        if policy.get("periodSeconds", 0) > _PERIOD_MAX:
            errors.append(invalid_value(f"{here}.periodSeconds", policy["periodSeconds"], f"must be less than or equal to {_PERIOD_MAX}"))
    tolerance = rules.get("tolerance")
    if tolerance is not None and quantity.nanos(tolerance) < 0:
        errors.append(invalid_value(f"{at}.tolerance", tolerance, "must be greater or equal to zero"))
    return errors


class Scale(Kind):
    """The scale subresource of workloads."""

    group = GROUP
    kind = "Scale"

    def validate_create(self, obj: Object) -> list[FieldError]:
        return nonnegative((obj.get("spec") or {}).get("replicas"), "spec.replicas")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


KINDS = [HorizontalPodAutoscaler, Scale]
