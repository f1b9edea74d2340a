"""What the kinds that hold a pod template share, and the core group's own two: ReplicationController and PodTemplate."""

from __future__ import annotations

from collections.abc import Iterable

from fastkube.api import selectors
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds import pod_defaults, pod_spec, pod_warnings
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, label_selector, nonnegative


def template_warnings(template: Object | None, old: Object | None, at: str = "spec.template") -> list[str]:
    """Warnings of a workload's pod template."""
    new, before = template or {}, old or {}
    return pod_warnings.pod(new.get("metadata") or {}, new.get("spec") or {}, before.get("spec") if old is not None else None, f"{at}.spec", template=True)


def selected_template(spec: Object, at: str) -> Errors:
    """The template's labels are what the selector selects (an absent selector selects nothing)."""
    selector = spec.get("selector")
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    match = selectors.from_object(selector)
    if match.matches(labels) or match.empty:
        return []
    return [invalid_value(f"{at}.template.metadata.labels", labels, "`selector` does not match template `labels`")]


def needs_labels(selector: Object | None) -> bool:
    """Whether a metav1.LabelSelector never selects what has no labels."""
    s = selector or {}
    return bool(s.get("matchLabels")) or any(e.get("operator") in ("In", "Exists") for e in s.get("matchExpressions") or ())


def template_for(template: Object | None, at: str, kind: str) -> Errors:
    """The template of pods that are kept running."""
    errors = pod_spec.template(template, at)
    spec = (template or {}).get("spec") or {}
    if spec.get("restartPolicy") != "Always":
        errors.append(not_supported(f"{at}.spec.restartPolicy", spec.get("restartPolicy") or "", ("Always",)))
    if spec.get("activeDeadlineSeconds") is not None:
        errors.append(forbidden_field(f"{at}.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported"))
    return errors


def workload_selector(spec: Object, at: str, what: str) -> tuple[Errors, bool]:
    """A required, non-empty metav1.LabelSelector -> (errors, whether it can select)."""
    selector = spec.get("selector")
    if selector is None:
        return [required(f"{at}.selector")], True
    errors = label_selector(selector, f"{at}.selector")
    sound = not errors
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        errors.append(invalid_value(f"{at}.selector", selector, f"empty selector is invalid for {what}"))
    return errors, sound


def counts(status: Object, at: str, *names: str) -> Errors:
    return [e for name in names for e in nonnegative(status.get(name), f"{at}.{name}")]


def no_more_than_there_are(status: Object, names: Iterable[str], ready: str = "readyReplicas") -> Errors:
    """The counts of parts of the replicas are at most that of all, the available ones at most the ready ones (which the message calls `ready`)."""
    replicas, available = status.get("replicas", 0), status.get("availableReplicas", 0)
    errors = [invalid_value(f"status.{n}", status.get(n, 0), "cannot be greater than status.replicas") for n in names if status.get(n, 0) > replicas]
    if available > status.get("readyReplicas", 0):
        errors.append(invalid_value("status.availableReplicas", available, f"cannot be greater than {ready}"))
    return errors


class ReplicationController(Kind):
    kind = "ReplicationController"
    status_metadata = METADATA
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
            pod_defaults.template(template, bool(spec.get("selector")))
        if spec.get("replicas") is None:
            spec["replicas"] = 1

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
        labels = (template.get("metadata") or {}).get("labels")
        if selector and any((labels or {}).get(k) != v for k, v in selector.items()):
            errors.append(invalid_value("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
        return errors + template_for(template, "spec.template", "ReplicationController")

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        names = ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration")
        errors = counts(status, "status", *names)
        errors += no_more_than_there_are(status, names[1:4])
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
