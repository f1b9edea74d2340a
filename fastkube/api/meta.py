"""ObjectMeta: what the server fills in, what a write may say and what it may not change (k8s.io/apimachinery api/validation/objectmeta.go, apiserver registry/rest).

The pipeline calls, in this order: create: `prepare_create`, `fill_create`, the kind's `prepare_create`, `validate_create`; update: `prepare_update`,
the kind's `prepare_update`, `validate_update`. Nothing here reads the clock or makes names: the caller hands them in.
"""

from __future__ import annotations

from typing import Any

from fastkube.api import formats
from fastkube.api.errors import ApiError, FieldError, bad_request, forbidden_field, invalid_value, required, too_long
from fastkube.api.kinds.base import Kind

Object = dict[str, Any]

ANNOTATIONS_BYTES_MAX = 256 * 1024
IMMUTABLE = "field is immutable"
NAME_SUFFIX_LENGTH = 5
GENERATED_BASE_MAX = 63 - NAME_SUFFIX_LENGTH  # what is longer of a generateName is cut off
ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
_SUBRESOURCES = ("", "status", "scale", "resize")


def prepare_create(obj: Object, namespace: str | None, namespaced: bool) -> None:
    """Before a create: the namespace agrees with the request's, nothing is being deleted. Raises ApiError 400."""
    meta = obj.setdefault("metadata", {})
    _agree(meta, namespace, namespaced)
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        meta.pop(key, None)


def _agree(meta: Object, namespace: str | None, namespaced: bool) -> None:
    if namespaced:
        given = meta.get("namespace") or ""
        if given and namespace and given != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if namespace:
            meta["namespace"] = namespace
    elif meta.get("namespace"):
        raise (
            bad_request("namespace must not be provided on cluster-scoped objects")
            if namespace
            else bad_request("the namespace of the provided object does not match the namespace sent on the request")
        )


def generated_name(base: str, suffix: str) -> str:
    """The name that a generateName and a random suffix of five characters make."""
    return base[:GENERATED_BASE_MAX] + suffix


def fill_create(obj: Object, now: str, uid: str, suffix: str) -> None:
    """The server's part of a new object's metadata: `now` as RFC 3339, `suffix` five random characters for a generateName."""
    meta = obj["metadata"]
    meta["creationTimestamp"] = now
    meta["uid"] = uid
    if meta.get("generateName") and not meta.get("name"):
        meta["name"] = generated_name(meta["generateName"], suffix)


def prepare_update(obj: Object, old: Object, namespace: str | None = None, namespaced: bool = True) -> None:
    """Before the kind's own prepare_update: what an update leaves to the stored object is put back."""
    meta, before = obj.setdefault("metadata", {}), old["metadata"]
    if namespaced and not meta.get("namespace") and before.get("namespace"):
        meta["namespace"] = before["namespace"]
    if not meta.get("uid"):
        meta["uid"] = before.get("uid", "")
    if before.get("creationTimestamp"):
        meta["creationTimestamp"] = before["creationTimestamp"]
    if before.get("deletionTimestamp"):
        meta["deletionTimestamp"] = before["deletionTimestamp"]
    elif "deletionTimestamp" in meta:
        meta.pop("deletionTimestamp")
    if before.get("deletionGracePeriodSeconds") is not None and meta.get("deletionGracePeriodSeconds") is None:
        meta["deletionGracePeriodSeconds"] = before["deletionGracePeriodSeconds"]
    if "generation" in before:
        meta["generation"] = before["generation"]
    else:
        meta.pop("generation", None)
    meta.pop("selfLink", None)


def validate_labels(labels: Object | None, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for key, value in (labels or {}).items():
        if bad := formats.qualified_name(key):
            errors += [invalid_value(field, key, m) for m in bad]
        if bad := formats.label_value(value):
            errors += [invalid_value(field, value, m) for m in bad]
    return errors


def validate_annotations(annotations: Object | None, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    size = 0
    for key, value in (annotations or {}).items():
        size += len(key) + len(value)
        if bad := formats.qualified_name(key.lower()):
            errors += [invalid_value(field, key, m) for m in bad]
    # The exact size counts bytes: asked for only where it can matter.
    if size * 4 > ANNOTATIONS_BYTES_MAX and sum(len(k.encode()) + len(v.encode()) for k, v in (annotations or {}).items()) > ANNOTATIONS_BYTES_MAX:
        errors.append(too_long(field, ANNOTATIONS_BYTES_MAX))
    return errors


def validate_finalizers(finalizers: list[str] | None, field: str) -> list[FieldError]:
    errors = [invalid_value(field, name, m) for name in finalizers or () for m in formats.qualified_name(name)]
    if finalizers and ORPHAN in finalizers and FOREGROUND in finalizers:
        errors.append(invalid_value(field, finalizers, f"finalizer {ORPHAN} and {FOREGROUND} cannot be both set"))
    return errors


def validate_owners(owners: list[Object] | None, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    controller = ""
    for ref in owners or ():
        group, _, version = (ref.get("apiVersion") or "").rpartition("/")
        for key, value, text in (
            ("apiVersion", version, "version"),
            ("kind", ref.get("kind"), "kind"),
            ("name", ref.get("name"), "name"),
            ("uid", ref.get("uid"), "uid"),
        ):
            if not value:
                errors.append(invalid_value(f"{field}.{key}", ref.get(key) or "", f"{text} must not be empty"))
        if (group, version, ref.get("kind")) == ("", "v1", "Event"):
            errors.append(invalid_value(field, ref, "/v1, Kind=Event is disallowed from being an owner"))
        if ref.get("controller"):
            this = f"{ref.get('kind')}/{ref.get('name')}"
            if controller:
                text = f'Only one reference can have Controller set to true. Found "true" in references for {controller} and {this}'
                errors.append(invalid_value(field, owners, text))
            else:
                controller = this
    return errors


def validate_managed_fields(entries: list[Object] | None, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, entry in enumerate(entries or ()):
        at = f"{field}[{i}]"
        operation = entry.get("operation") or ""
        if operation not in ("Apply", "Update"):
            errors.append(invalid_value(f"{at}.operation", operation, "must be `Apply` or `Update`"))
        if len(entry.get("fieldsType") or "") and entry["fieldsType"] != "FieldsV1":
            errors.append(invalid_value(f"{at}.fieldsType", entry["fieldsType"], "must be `FieldsV1`"))
        manager = entry.get("manager") or ""
        if len(manager.encode()) > 128:
            errors.append(too_long(f"{at}.manager", 128))
        if any(not c.isprintable() for c in manager):
            errors.append(invalid_value(f"{at}.manager", manager, "should only contain printable characters"))
        if len((entry.get("subresource") or "").encode()) > 256:
            errors.append(too_long(f"{at}.subresource", 256))
    return errors


def validate(meta: Object, namespaced: bool, name_rule: str, field: str = "metadata", name_check: Any = None) -> list[FieldError]:
    """An object's metadata at its creation, names generated. Also for the metadata of templates that will be objects."""
    check = name_check or (lambda name, prefix: formats.name_errors(name_rule, name, prefix))
    errors: list[FieldError] = []
    generate, name = meta.get("generateName"), meta.get("name")
    if generate:
        errors += [invalid_value(f"{field}.generateName", generate, m) for m in check(generate, True)]
    if not name:
        errors.append(required(f"{field}.name", "name or generateName is required"))
    elif bad := check(name, False):
        errors += [invalid_value(f"{field}.name", name, m) for m in bad]
    if namespaced:
        namespace = meta.get("namespace")
        if not namespace:
            errors.append(required(f"{field}.namespace"))
        elif bad := formats.label(namespace):
            errors += [invalid_value(f"{field}.namespace", namespace, m) for m in bad]
    elif meta.get("namespace"):
        errors.append(forbidden_field(f"{field}.namespace", "not allowed on this type"))
    if meta.get("generation", 0) < 0:
        errors.append(invalid_value(f"{field}.generation", meta["generation"], "must be greater than or equal to 0"))
    errors += _validate_maps(meta, field)
    if "finalizers" in meta:
        errors += validate_finalizers(meta["finalizers"], f"{field}.finalizers")
    if "managedFields" in meta:
        errors += validate_managed_fields(meta["managedFields"], f"{field}.managedFields")
    return errors


def _validate_maps(meta: Object, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if "labels" in meta:
        errors += validate_labels(meta["labels"], f"{field}.labels")
    if "annotations" in meta:
        errors += validate_annotations(meta["annotations"], f"{field}.annotations")
    if "ownerReferences" in meta:
        errors += validate_owners(meta["ownerReferences"], f"{field}.ownerReferences")
    return errors


def validate_create(rules: Kind, obj: Object, namespaced: bool) -> list[FieldError]:
    """The errors of a new object's metadata under its kind's naming rule."""
    return validate(obj["metadata"], namespaced, rules.name_rule, name_check=rules.name_errors)


def version_missing(rules: Kind, obj: Object) -> list[FieldError]:
    """Kinds whose updates need a resourceVersion: the one error (upstream looks at nothing else then) of an object without it."""
    if rules.unconditional_update or obj["metadata"].get("resourceVersion"):
        return []
    return [invalid_value("metadata.resourceVersion", 0, "must be specified for an update")]


def validate_update(obj: Object, old: Object) -> list[FieldError]:
    """What an update may not do to metadata (`prepare_update` was called before)."""
    meta, before = obj["metadata"], old["metadata"]
    errors: list[FieldError] = []
    if before.get("deletionTimestamp"):
        extra = sorted(set(meta.get("finalizers") or ()) - set(before.get("finalizers") or ()))
        if extra:
            listed = ", ".join(f'"{name}"' for name in extra)
            text = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}"
            errors.append(forbidden_field("metadata.finalizers", text))
    if not meta.get("resourceVersion"):
        errors.append(invalid_value("metadata.resourceVersion", "", "must be specified for an update"))
    if meta.get("generation", 0) < before.get("generation", 0):
        errors.append(invalid_value("metadata.generation", meta.get("generation", 0), "must not be decremented"))
    for key in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        if (meta.get(key) or None) != (before.get(key) or None):
            empty: Any = "" if key in ("name", "namespace", "uid") else None
            errors.append(invalid_value(f"metadata.{key}", meta.get(key, empty), IMMUTABLE))
    errors += _validate_maps(meta, "metadata")
    if "finalizers" in meta and meta["finalizers"] != before.get("finalizers"):
        errors += validate_finalizers(meta["finalizers"], "metadata.finalizers")
    if "managedFields" in meta:
        errors += validate_managed_fields(meta["managedFields"], "metadata.managedFields")
    return errors


def check_name(obj: Object, name: str) -> None:
    """The object's name agrees with the URL's (filled in when it has none). Raises ApiError 400."""
    meta = obj.setdefault("metadata", {})
    if not meta.get("name"):
        meta["name"] = name
    elif meta["name"] != name:
        raise ApiError(400, "BadRequest", f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")


def check_update_name(obj: Object, name: str) -> None:
    """An update's body names its object as the URL does: one that names none would replace whatever is there. Raises ApiError 400."""
    if not (obj.get("metadata") or {}).get("name"):
        raise ApiError(400, "BadRequest", f"the name of the object ({name} based on URL) was undeterminable: name must be provided")
    check_name(obj, name)
