"""The rules of custom kinds, made from their CustomResourceDefinition: what `api.kinds` has by hand for built-in ones.

Each served version is one `Version`: its schema as a tree (pruning, server-side apply) and as raw OpenAPI (defaults, values), its rules (a `Kind`), its
columns. Strategy as upstream's (apiextensions-apiserver pkg/registry/customresource).
"""

from __future__ import annotations

from fastkube.api import rules, schema, values
from fastkube.api.errors import FieldError, invalid_value
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.resources import Resource, Subresource, storage_prefix
from fastkube.api.tables import Printer, custom

VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_BLOCKING = {"FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"}
_UNCHECKED = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
_ENVELOPE = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}


class CustomKind(Kind):
    """The rules of one version of a custom kind."""

    raw: Object  # the version's openAPIV3Schema
    rules: rules.Rules
    selectable: tuple[tuple[str, str], ...] = ()  # (field, JSONPath)
    replicas_path = ""  # of the scale subresource

    def default(self, obj: Object) -> None:
        values.default(obj, self.raw)

    def prepare_update(self, obj: Object, old: Object) -> None:
        if self.has_status:
            super().prepare_update(obj, old)
            return
        changed = any(obj.get(k) != old.get(k) for k in {*obj, *old} - {"metadata", "kind", "apiVersion"})
        obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + changed

    def prepare_status(self, obj: Object, old: Object) -> None:
        super().prepare_status(obj, old)

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self._checked(obj, None)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self._checked(obj, old)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return self._checked(obj, old)

    def _checked(self, obj: Object, old: Object | None) -> list[FieldError]:
        body = {k: v for k, v in obj.items() if k not in _ENVELOPE}
        errors = values.validate(body, {**self.raw, "required": [r for r in self.raw.get("required") or () if r not in _ENVELOPE]})
        named = (self.raw.get("properties") or {}).get("metadata")
        if named:
            errors += values.validate({k: v for k, v in obj["metadata"].items() if k in (named.get("properties") or {})}, named, "metadata")
        errors += values.validate_list_types(body, self.raw)
        if self.replicas_path:
            errors += self._scale_errors(obj)
        if old is not None and errors:
            errors = self._ratcheted(body, old, errors)
        if not self.rules.empty:
            if any(e.reason in _BLOCKING for e in errors):
                errors.append(invalid_value("<nil>", None, _UNCHECKED))
            else:
                errors += self.rules.check(obj, old)
        return errors

    def _scale_errors(self, obj: Object) -> list[FieldError]:
        found = custom.find(self.replicas_path, obj)
        path = self.replicas_path.lstrip(".")
        if found and isinstance(found[0], int) and found[0] < 0:
            return [invalid_value(path, found[0], "should be a non-negative integer")]
        return []

    def _ratcheted(self, body: Object, old: Object, errors: list[FieldError]) -> list[FieldError]:
        """Without the errors of parts that were as wrong before and have not been touched (CRDValidationRatcheting)."""
        before = {k: v for k, v in old.items() if k not in _ENVELOPE}
        stood = {(e.reason, e.field, e.message) for e in (*values.validate(before, self.raw), *values.validate_list_types(before, self.raw))}
        return [e for e in errors if e.reason == "FieldValueRequired" or (e.reason, e.field, e.message) not in stood]

    def fields(self, obj: Object) -> dict[str, str]:
        out = {}
        for name, path in self.selectable:
            found = custom.find(path, obj)
            value = found[0] if found else ""
            out[name] = ("true" if value else "false") if isinstance(value, bool) else str(value)
        return out


class Version:
    """One served version of a definition."""

    def __init__(self, crd: Object, version: Object) -> None:
        spec = crd["spec"]
        self.name: str = version["name"]
        subresources = version.get("subresources") or {}
        self.scale: Object | None = subresources.get("scale")
        self.resource = resource_of(crd, version)
        self.raw: Object = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        self.node = _tree(self.raw)
        self.kind = _kind(spec["names"]["kind"], self.raw, version, "status" in subresources)
        self.printer: Printer = custom.printer(version.get("additionalPrinterColumns"))
        self.changed = crd["metadata"].get("generation", 1) > 1  # objects may have been stored under another schema
        self.deprecation = ""
        if version.get("deprecated"):
            self.deprecation = version.get("deprecationWarning") or f"{spec['group']}/{self.name} {spec['names']['kind']} is deprecated"

    @property
    def scale_paths(self) -> tuple[str, str, str]:
        scale = self.scale or {}
        return scale.get("specReplicasPath", ".spec.replicas"), scale.get("statusReplicasPath", ".status.replicas"), scale.get("labelSelectorPath") or ""


def _kind(name: str, raw: Object, version: Object, has_status: bool) -> CustomKind:
    selectable = tuple((f["jsonPath"].lstrip("."), f["jsonPath"]) for f in version.get("selectableFields") or ())
    scale = (version.get("subresources") or {}).get("scale") or {}
    members = {
        "kind": name, "has_status": has_status, "raw": raw, "rules": rules.Rules(raw), "selectable": selectable, "field_labels": tuple(f for f, _ in selectable),
        "replicas_path": scale.get("specReplicasPath", ""),
    }  # fmt: skip
    return type(f"Custom{name}", (CustomKind,), members)()


def _tree(raw: Object) -> schema.Node:
    """The version's schema with the envelope that every object has: apiVersion, kind and ObjectMeta."""
    whole = {**raw, "type": "object", "properties": {**(raw.get("properties") or {}), **_ENVELOPE}}
    node = schema.from_openapi(whole)
    assert node.properties is not None
    node.properties["metadata"] = schema.object_meta()
    return node


def resource_of(crd: Object, version: Object) -> Resource:
    """The served Resource of a version, under the names that were accepted."""
    spec = crd["spec"]
    group, names = spec["group"], spec["names"]
    kind, plural = names["kind"], names["plural"]
    stored = next((v["name"] for v in spec["versions"] if v.get("storage")), version["name"])
    subs = {}
    if "status" in (version.get("subresources") or {}):
        subs["status"] = Subresource("status", ("get", "patch", "update"), group, version["name"], kind)
    if "scale" in (version.get("subresources") or {}):
        subs["scale"] = Subresource("scale", ("get", "patch", "update"), "autoscaling", "v1", "Scale")
    return Resource(
        group, version["name"], plural, names.get("singular") or kind.lower(), kind, spec.get("scope") == "Namespaced", tuple(names.get("shortNames") or ()),
        tuple(names.get("categories") or ()), VERBS, subs, f"{group}/{stored}", storage_prefix(group, plural, custom=True), True,
    )  # fmt: skip


def versions_of(crd: Object) -> list[Version]:
    """The served versions of a definition."""
    return [Version(crd, v) for v in crd["spec"]["versions"] if v.get("served")]
