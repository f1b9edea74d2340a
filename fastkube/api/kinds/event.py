"""Events: one stored kind (core/v1) served as two, core's and events.k8s.io's; each checks what its own clients send."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, invalid_value, required
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
        return _legacy(obj)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return _legacy(obj)

    def fields(self, obj: Object) -> dict[str, str]:
        ref = obj.get("involvedObject") or {}
        out = {f"involvedObject.{k}": ref.get(k) or "" for k in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")}
        source = (obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""
        return {**out, "reason": obj.get("reason") or "", "reportingComponent": obj.get("reportingComponent") or "", "source": source, "type": obj.get("type") or ""}


def _namespace_fits(obj: Object) -> Errors:
    """An event lies in the namespace of what it is about; of cluster-scoped things in default or kube-system."""
    involved, own = (obj.get("involvedObject") or {}).get("namespace") or "", obj["metadata"].get("namespace") or ""
    if not involved:
        ok = own in ("", "default", "kube-system")
    else:
        ok = involved == own
    return [] if ok else [invalid_value("involvedObject.namespace", involved, "does not match event.namespace")]


def _legacy(obj: Object) -> Errors:
    errors = _namespace_fits(obj)
    return errors + rule(formats.label, obj["metadata"].get("namespace") or "default", "namespace")


_NOTE_BYTES_MAX = 1024


class NewEvent(Event):
    """events.k8s.io/v1: the rules of what is written through the new API (field names are the stored, core ones)."""

    group = "events.k8s.io"

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = _legacy(obj)
        if obj.get("eventTime") is None:
            errors.append(required("eventTime"))
        return errors + _strict(obj)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = _legacy(obj)
        for key in ("involvedObject", "reason", "message", "type", "eventTime", "action", "related", "reportingComponent", "reportingInstance"):
            if (obj.get(key) or None) != (old.get(key) or None):
                errors.append(invalid_value(_NEW.get(key, key), obj.get(key), "field is immutable"))
        return errors


_NEW = {"message": "note", "involvedObject": "regarding", "reportingComponent": "reportingController"}


def _strict(obj: Object) -> Errors:
    errors: Errors = []
    controller, instance, action = obj.get("reportingComponent") or "", obj.get("reportingInstance") or "", obj.get("action") or ""
    if not controller:
        errors.append(required("reportingController"))
    errors += rule(formats.qualified_name, controller, "reportingController")
    if not instance:
        errors.append(required("reportingInstance"))
    elif len(instance.encode()) > 128:
        errors.append(invalid_value("repotingIntance", "", "can have at most 128 characters"))
    for key, value in (("action", action), ("reason", obj.get("reason") or "")):
        if not value:
            errors.append(required(key))
        elif len(value.encode()) > 128:
            errors.append(invalid_value(key, "", "can have at most 128 characters"))
    if len((obj.get("message") or "").encode()) > _NOTE_BYTES_MAX:
        errors.append(invalid_value("message", "", f"can have at most {_NOTE_BYTES_MAX} characters"))
    if obj.get("type") not in ("Normal", "Warning"):
        errors.append(invalid_value("type", "", "has invalid value: " + (obj.get("type") or "")))
    return errors


KINDS = [Event, NewEvent]
