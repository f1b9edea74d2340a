"""Events: one stored kind (core/v1) served as two, core's and events.k8s.io's; each checks what its own clients send."""

from __future__ import annotations

from fastkube.api import formats, internal
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors, rule


class Event(Kind):
    kind = "Event"
    has_status = has_generation = False
    create_on_update = True
    field_labels = (
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion", "involvedObject.resourceVersion",
        "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type",
    )  # fmt: skip

    def prepare_create(self, obj: Object) -> None: ...

    def prepare_update(self, obj: Object, old: Object) -> None: ...

    def validate_create(self, obj: Object) -> list[FieldError]:
        return _legacy(obj, "reportingComponent")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return _legacy(obj, "reportingComponent")

    def fields(self, obj: Object) -> dict[str, str]:
        ref = obj.get("involvedObject") or {}
        out = {f"involvedObject.{k}": ref.get(k) or "" for k in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")}
        source = (obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""
        return {
            **out,
            "reason": obj.get("reason") or "",
            "reportingComponent": obj.get("reportingComponent") or "",
            "source": source,
            "type": obj.get("type") or "",
        }


_TEXT_MAX, _NOTE_MAX = 128, 1024


def _legacy(obj: Object, reporting: str) -> Errors:
    """What holds for every event; those with an eventTime, which only the new API's clients set, have more to say."""
    involved, own = (obj.get("involvedObject") or {}).get("namespace") or "", obj["metadata"].get("namespace") or ""
    apart = [invalid_value("involvedObject.namespace", involved, "does not match event.namespace")]
    errors: Errors = []
    if obj.get("eventTime") is None:
        if (own not in ("", "default")) if not involved else (own != involved):
            errors += apart
    else:
        if not involved and own not in ("default", "kube-system"):
            errors += apart
        errors += _reported(obj, reporting)
    return errors + rule(formats.subdomain, own, "namespace")


def _reported(obj: Object, reporting: str) -> Errors:
    errors: Errors = []
    controller, instance = obj.get("reportingComponent") or "", obj.get("reportingInstance") or ""
    if not controller:
        errors.append(required(reporting))
    errors += rule(formats.qualified_name, controller, reporting)
    if not instance:
        errors.append(required("reportingInstance"))
    if len(instance.encode()) > _TEXT_MAX:
        errors.append(invalid_value("repotingIntance", "", f"can have at most {_TEXT_MAX} characters"))  # sic
    for key in ("action", "reason"):
        value = obj.get(key) or ""
        if not value:
            errors.append(required(key))
        if len(value.encode()) > _TEXT_MAX:
            errors.append(invalid_value(key, "", f"can have at most {_TEXT_MAX} characters"))
    if len((obj.get("message") or "").encode()) > _NOTE_MAX:
        errors.append(invalid_value("message", "", f"can have at most {_NOTE_MAX} characters"))
    return errors


class NewEvent(Event):
    """events.k8s.io/v1: the rules of what is written through the new API (fields have the names of the stored, core ones)."""

    group = "events.k8s.io"
    stored_group = ""

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = _legacy(obj, "reportingController")
        if obj.get("eventTime") is None:
            errors.append(required("eventTime"))
        if obj.get("type") not in ("Normal", "Warning"):
            errors.append(invalid_value("type", "", "has invalid value: " + (obj.get("type") or "")))
        errors += [forbidden_field(key, "needs to be unset") for key in ("firstTimestamp", "lastTimestamp") if obj.get(key) is not None]
        errors += [forbidden_field("count", "needs to be unset")] if obj.get("count") else []
        return errors + ([forbidden_field("source", "needs to be unset")] if obj.get("source") else [])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = _legacy(obj, "reportingController")
        for key in _FIXED:
            new, before = obj.get(key) or None, old.get(key) or None
            if new != before:
                value = internal.view("core.v1.ObjectReference", new) if key in ("involvedObject", "related") and new else obj.get(key)
                told = invalid_value("reportingController" if key == "reportingComponent" else key, value, "field is immutable")
                errors += [told, told] if key == "reason" else [told]  # upstream looks at the reason twice
        return errors


_FIXED = (
    "involvedObject", "reason", "message", "source", "firstTimestamp", "lastTimestamp", "count", "type", "eventTime", "action", "related", "reportingComponent", "reportingInstance",
)  # fmt: skip


KINDS = [Event, NewEvent]
