"""What the kinds that hold a pod template share, and the core group's own two: ReplicationController and PodTemplate."""

from __future__ import annotations

from typing import Any

from fastkube.api import formats, selectors
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds import pod_defaults, pod_spec, pod_warnings
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors, label_selector, nonnegative
from fastkube.api.meta import validate_labels


def template_warnings(template: Object | None, old: Object | None, at: str = "spec.template") -> list[str]:
    """Warnings of a workload's pod template."""
    new, before = template or {}, old or {}
    return pod_warnings.pod(new.get("metadata") or {}, new.get("spec") or {}, before.get("spec") if old is not None else None, f"{at}.spec", template=True)


def selector_matches(selector: Object | None, template: Object | None, at: str) -> Errors:
    """The template's labels are what the selector selects."""
    labels = ((template or {}).get("metadata") or {}).get("labels") or {}
    if not selector:
        return []
    try:
        match = selectors.from_object(selector)
    except ValueError:
        return []
    return [] if match.empty or match.matches(labels) else [invalid_value(f"{at}.metadata.labels", labels, "`selector` does not match template `labels`")]


def template_for(template: Object | None, at: str, kind: str) -> Errors:
    """The template of pods that are kept running."""
    errors = pod_spec.template(template, at)
    spec = (template or {}).get("spec") or {}
    if spec.get("restartPolicy") != "Always":
        errors.append(not_supported(f"{at}.spec.restartPolicy", spec.get("restartPolicy") or "", ("Always",)))
    if spec.get("activeDeadlineSeconds") is not None:
        errors.append(forbidden_field(f"{at}.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported"))
    return errors


def workload_selector(spec: Object, at: str, what: str) -> Errors:
    """A required, non-empty metav1.LabelSelector."""
    selector = spec.get("selector")
    if selector is None:
        return [required(f"{at}.selector")]
    errors = label_selector(selector, f"{at}.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        errors.append(invalid_value(f"{at}.selector", selector, f"empty selector is invalid for {what}"))
    return errors


def counts(status: Object, at: str, *names: str) -> Errors:
    return [e for name in names for e in nonnegative(status.get(name), f"{at}.{name}")]


def no_more_than(status: Object, at: str, name: str, bound: str) -> Errors:
    value = status.get(name, 0)
    return [invalid_value(f"{at}.{name}", value, f"cannot be greater than {bound}")] if value > status.get(bound, 0) else []


class ReplicationController(Kind):
    kind = "ReplicationController"
    field_labels = ("status.replicas",)

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        template = spec.get("template")
        labels = ((template or {}).get("metadata") or {}).get("labels")
        if template is not None:
            if labels:
                if not spec.get("selector"):
                    spec["selector"] = dict(labels)
                if not obj["metadata"].get("labels"):
                    obj["metadata"]["labels"] = dict(labels)
            pod_defaults.template(template)
        if spec.get("replicas") is None:
            spec["replicas"] = 1

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        obj["status"] = {"replicas": 0}

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self._spec(obj["spec"])

    def _spec(self, spec: Object) -> Errors:
        errors = nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
        selector = spec.get("selector")
        if not selector:
            errors.append(required("spec.selector"))
        errors += nonnegative(spec.get("replicas"), "spec.replicas")
        template = spec.get("template")
        if template is None:
            return [*errors, required("spec.template")]
        labels = (template.get("metadata") or {}).get("labels") or {}
        if selector and any(labels.get(k) != v for k, v in selector.items()):
            errors.append(invalid_value("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
        return errors + template_for(template, "spec.template", "ReplicationController")

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        names = ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration")
        errors = counts(status, "status", *names)
        for name in names[1:4]:
            if status.get(name, 0) > status.get("replicas", 0):
                errors.append(invalid_value(f"status.{name}", status[name], "cannot be greater than status.replicas"))
        if status.get("availableReplicas", 0) > status.get("readyReplicas", 0):
            errors.append(invalid_value("status.availableReplicas", status["availableReplicas"], "cannot be greater than readyReplicas"))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        return template_warnings(obj["spec"].get("template"), (old or {}).get("spec", {}).get("template") if old else None)

    def fields(self, obj: Object) -> dict[str, str]:
        return {"status.replicas": str((obj.get("status") or {}).get("replicas", 0))}


class PodTemplate(Kind):
    kind = "PodTemplate"
    has_status = False

    def default(self, obj: Object) -> None:
        pod_defaults.template(obj.setdefault("template", {}))

    def prepare_update(self, obj: Object, old: Object) -> None:
        generation = old["metadata"].get("generation", 0)
        obj["metadata"]["generation"] = generation + (obj.get("template") != old.get("template"))

    def validate_create(self, obj: Object) -> list[FieldError]:
        return pod_spec.template(obj.get("template"), "template")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return pod_spec.template(obj.get("template"), "template")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        return template_warnings(obj.get("template"), old.get("template") if old else None, "template")


KINDS = [ReplicationController, PodTemplate]
__all__ = ["KINDS", "formats", "template_for", "template_warnings", "validate_labels", "workload_selector"]
Any_ = Any
