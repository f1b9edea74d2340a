"""CustomResourceDefinitions: defaults, strategy, validation of what a definition says, and its status (accepted names, conditions).

The order and the words of the errors are upstream's (apiextensions-apiserver pkg/apis/apiextensions/validation). What schemas may say is in `api.structural`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastkube.api import formats, structural
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.tables import custom
from fastkube.runtime import clock

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
_SCOPES = ("Cluster", "Namespaced")
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("binary", "bool", "byte", "date", "date-time", "double", "float", "int32", "int64", "password")


class CustomResourceDefinition(Kind):
    group = "apiextensions.k8s.io"
    kind = "CustomResourceDefinition"
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj.get("spec") or {}
        names = spec.get("names")
        if isinstance(names, dict):
            if not names.get("singular") and names.get("kind"):
                names["singular"] = names["kind"].lower()
            if not names.get("listKind") and names.get("kind"):
                names["listKind"] = names["kind"] + "List"
        conversion = spec.setdefault("conversion", {})
        conversion.setdefault("strategy", "None")
        service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
        if isinstance(service, dict):
            service.setdefault("port", 443)

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        stored = list(dict.fromkeys(v["name"] for v in obj["spec"].get("versions") or () if v.get("storage")))
        obj["status"] = {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored or None}

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        status = obj["status"] = dict(obj.get("status") or {})
        held = list(status.get("storedVersions") or ())
        status["storedVersions"] = held + [v["name"] for v in obj["spec"].get("versions") or () if v.get("storage") and v["name"] not in held]

    def prepare_delete(self, obj: Object) -> None:
        """A definition goes after its objects: the first deletion adds the finalizer that sees to them."""
        meta = obj["metadata"]
        if not meta.get("deletionTimestamp") and CLEANUP not in (meta.get("finalizers") or ()):
            meta["finalizers"] = [*(meta.get("finalizers") or ()), CLEANUP]
            text = "CustomResourceDefinition marked for deletion; CustomResource deletion will be initiated soon"
            obj["status"] = with_condition(obj.get("status") or {}, "Terminating", "True", "InstanceDeletionPending", text)

    def validate_create(self, obj: Object) -> list[FieldError]:
        return [*_name_errors(obj), *_spec_errors(obj["spec"]), *_stored_errors(obj)]

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        spec, before = obj["spec"], old["spec"]
        errors = [*_name_errors(obj), *_spec_errors(spec), *_stored_errors(obj)]
        if is_true(old, "Established"):
            immutable = [("spec.scope", spec.get("scope"), before.get("scope")), ("spec.names.kind", spec["names"].get("kind"), before["names"].get("kind"))]
            errors += [invalid_value(path, now, "field is immutable") for path, now, then in immutable if now != then]
        immutable = [("spec.group", spec.get("group"), before.get("group")), ("spec.names.plural", spec["names"].get("plural"), before["names"].get("plural"))]
        return errors + [invalid_value(path, now, "field is immutable") for path, now, then in immutable if now != then]

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return _stored_errors(obj)


def _name_errors(obj: Object) -> list[FieldError]:
    spec = obj["spec"]
    name, wanted = obj["metadata"].get("name", ""), f"{(spec.get('names') or {}).get('plural', '')}.{spec.get('group', '')}"
    return [] if name == wanted or not name else [invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group')]


def _spec_errors(spec: Object) -> list[FieldError]:
    errors: list[FieldError] = []
    group, scope = spec.get("group", ""), spec.get("scope", "")
    if not group:
        errors.append(required("spec.group"))
    elif problems := formats.subdomain(group):
        errors.append(invalid_value("spec.group", group, ",".join(problems)))
    elif len(group.split(".")) < 2:
        errors.append(invalid_value("spec.group", group, "should be a domain with at least one dot"))
    if not scope:
        errors.append(required("spec.scope"))
    elif scope not in _SCOPES:
        errors.append(not_supported("spec.scope", scope, _SCOPES))
    errors += _versions_errors(spec)
    errors += _names_errors(spec.get("names") or {}, "spec.names")
    errors += _conversion_errors(spec)
    return errors


def _version_shown(version: Object) -> Object:
    """A version as Go prints it in errors (what upstream folds into the top level is gone)."""
    return {
        "Name": version.get("name", ""), "Served": version.get("served", False), "Storage": version.get("storage", False), "Deprecated": version.get("deprecated", False),
        "DeprecationWarning": version.get("deprecationWarning"), "Schema": None, "Subresources": None, "AdditionalPrinterColumns": None, "SelectableFields": None,
    }  # fmt: skip


def _versions_errors(spec: Object) -> list[FieldError]:
    errors: list[FieldError] = []
    versions = spec.get("versions") or []
    shown: Any = [_version_shown(v) for v in versions] if spec.get("versions") is not None else None
    folded = foldable(versions)
    for i, version in enumerate(versions):
        at = f"spec.versions[{i}]"
        if problems := formats.label_1035(version.get("name", "")):
            errors.append(invalid_value(f"{at}.name", version.get("name", ""), ",".join(problems)))
        if (warning := version.get("deprecationWarning")) is not None:
            errors += _deprecation_errors(version, warning, f"{at}.deprecationWarning")
        where = "spec" if folded else at
        errors += _version_errors(version, where, folded, i)
    names = [v.get("name", "") for v in versions]
    if len(set(names)) != len(names):
        errors.append(invalid_value("spec.versions", shown, "must contain unique version names"))
    if sum(bool(v.get("storage")) for v in versions) != 1:
        errors.append(invalid_value("spec.versions", shown, "must have exactly one version marked as storage version"))
    if versions and (problems := formats.label_1035(versions[0].get("name", ""))):
        errors.append(invalid_value("spec.version", versions[0].get("name", ""), ",".join(problems)))
    return errors


def foldable(versions: list[Object]) -> bool:
    """Whether all versions say the same of schema, subresources and columns: upstream then speaks of them as the definition's own."""
    parts = [[v.get(k) for k in ("schema", "subresources", "additionalPrinterColumns", "selectableFields")] for v in versions]
    return bool(parts) and all(p == parts[0] for p in parts)


def _deprecation_errors(version: Object, warning: str, at: str) -> list[FieldError]:
    if not version.get("deprecated"):
        return [invalid_value(at, warning, "can only be set for deprecated versions")]
    if not warning:
        return [invalid_value(at, warning, "must not be empty string")]
    if len(warning) > 256:
        return [invalid_value(at, warning, "must be <= 256 characters long")]
    return [] if warning.isprintable() else [invalid_value(at, warning, "must only contain printable UTF-8 characters; non-printable character found")]


def _version_errors(version: Object, where: str, folded: bool, i: int) -> list[FieldError]:
    if folded and i:
        return []
    errors: list[FieldError] = []
    given = (version.get("schema") or {}).get("openAPIV3Schema")
    subresources = version.get("subresources") or {}
    if given is None:
        errors.append(required(f"spec.versions[{i}].schema.openAPIV3Schema"))
    else:
        at = f"{where}.validation.openAPIV3Schema" if folded else f"{where}.schema.openAPIV3Schema"
        errors += structural.validate(given, at, "status" in subresources)
    errors += _subresource_errors(subresources, f"{where}.subresources")
    for j, column in enumerate(version.get("additionalPrinterColumns") or ()):
        errors += _column_errors(column, f"{where}.additionalPrinterColumns[{j}]")
    for j, field in enumerate(version.get("selectableFields") or ()):
        errors += _json_path_errors(field.get("jsonPath", ""), f"{where}.selectableFields[{j}].jsonPath")
    return errors


def _json_path_errors(path: str, at: str) -> list[FieldError]:
    if not path:
        return [required(at)]
    if not path.startswith("."):
        return [invalid_value(at, path, "must be a simple json path starting with .")]
    try:
        custom.compile_path(path)
    except ValueError as e:
        return [invalid_value(at, path, str(e))]
    return []


def _subresource_errors(subresources: Object, at: str) -> list[FieldError]:
    scale = subresources.get("scale")
    if not isinstance(scale, dict):
        return []
    errors: list[FieldError] = []
    for name, root in (("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")):
        path = scale.get(name, "")
        if not path:
            errors.append(required(f"{at}.scale.{name}"))
        elif problem := _constrained(path):
            errors.append(invalid_value(f"{at}.scale.{name}", path, problem))
        elif not path.startswith(root):
            errors.append(invalid_value(f"{at}.scale.{name}", path, f"should be a json path under {root[:-1]}"))
    path = scale.get("labelSelectorPath")
    if path:
        if problem := _constrained(path):
            errors.append(invalid_value(f"{at}.scale.labelSelectorPath", path, problem))
        elif not path.startswith((".spec.", ".status.")):
            errors.append(invalid_value(f"{at}.scale.labelSelectorPath", path, "should be a json path under either .spec or .status"))
    return errors


def _constrained(path: str) -> str:
    """Scale paths are fields only: no arrays, no escapes."""
    if not path.startswith("."):
        return "must be a simple json path starting with ."
    return "" if all(part and part.replace("-", "").replace("_", "").isalnum() for part in path[1:].split(".")) else "must be a simple json path: .spec.field"


def _column_errors(column: Object, at: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if not column.get("name"):
        errors.append(required(f"{at}.name"))
    if not column.get("type"):
        errors.append(required(f"{at}.type", f"must be one of {','.join(_COLUMN_TYPES)}"))
    elif column["type"] not in _COLUMN_TYPES:
        errors.append(invalid_value(f"{at}.type", column["type"], f"must be one of {','.join(_COLUMN_TYPES)}"))
    if column.get("format") and column["format"] not in _COLUMN_FORMATS:
        errors.append(invalid_value(f"{at}.format", column["format"], f"must be one of {','.join(_COLUMN_FORMATS)}"))
    return errors + _json_path_errors(column.get("jsonPath", ""), f"{at}.JSONPath")


def _names_errors(names: Object, at: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for name in ("plural", "singular", "kind", "listKind"):
        value = names.get(name, "")
        if not value:
            errors.append(required(f"{at}.{name}"))
        elif name in ("kind", "listKind"):
            if problems := formats.label_1035(value.lower()):
                errors.append(invalid_value(f"{at}.{name}", value, "may have mixed case, but should otherwise match: " + ",".join(problems)))
        elif problems := formats.label_1035(value):
            errors.append(invalid_value(f"{at}.{name}", value, ",".join(problems)))
    for i, value in enumerate(names.get("shortNames") or ()):
        if problems := formats.label_1035(value):
            errors.append(invalid_value(f"{at}.shortNames[{i}]", value, ",".join(problems)))
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        errors.append(invalid_value(f"{at}.listKind", names["listKind"], "kind and listKind may not be the same"))
    for i, value in enumerate(names.get("categories") or ()):
        if problems := formats.label_1035(value):
            errors.append(invalid_value(f"{at}.categories[{i}]", value, ",".join(problems)))
    return errors


def _conversion_errors(spec: Object) -> list[FieldError]:
    conversion = spec.get("conversion") or {}
    strategy, webhook = conversion.get("strategy", ""), conversion.get("webhook")
    if not strategy:
        return [required("spec.conversion.strategy")]
    if strategy not in ("None", "Webhook"):
        return [not_supported("spec.conversion.strategy", strategy, ["None", "Webhook"])]
    errors: list[FieldError] = []
    if strategy == "None":
        if webhook:
            errors.append(forbidden_field("spec.conversion.webhookClientConfig", "should not be set when strategy is not set to Webhook"))
        return errors
    client = (webhook or {}).get("clientConfig")
    if client is None:
        errors.append(required("spec.conversion.webhookClientConfig", "required when strategy is set to Webhook"))
    elif bool(client.get("url")) == bool(client.get("service")):
        errors.append(required("spec.conversion.webhookClientConfig", "exactly one of url or service is required"))
    if not (webhook or {}).get("conversionReviewVersions"):
        errors.append(required("spec.conversion.conversionReviewVersions"))
    return errors


def _stored_errors(obj: Object) -> list[FieldError]:
    """status.storedVersions must hold the storage version and only versions there are."""
    at = "status.storedVersions"
    stored = (obj.get("status") or {}).get("storedVersions")
    if not stored:
        return [invalid_value(at, stored, "must have at least one stored version")]
    versions = obj["spec"].get("versions") or []
    errors: list[FieldError] = []
    for v in versions:
        if v.get("storage") and (v["name"] not in stored or len([w for w in versions if w.get("storage")]) != 1):
            return [invalid_value(at, stored, f"must have the storage version {v['name']}")]
    names = [v.get("name") for v in versions]
    for i, name in enumerate(stored):
        if name not in names:
            errors.append(invalid_value(f"{at}[{i}]", name, "must appear in spec.versions"))
    return errors


# Status.


def condition(obj: Object, type_: str) -> Object | None:
    return next((c for c in (obj.get("status") or {}).get("conditions") or () if c.get("type") == type_), None)


def is_true(obj: Object, type_: str) -> bool:
    return (condition(obj, type_) or {}).get("status") == "True"


def with_condition(status: Object, type_: str, value: str, reason: str, message: str) -> Object:
    """`status` with that condition; its transition time moves only when its value does."""
    conditions = [dict(c) for c in status.get("conditions") or ()]
    for c in conditions:
        if c["type"] == type_:
            if c.get("status") != value:
                c["lastTransitionTime"] = clock.rfc3339()
            c.update(status=value, reason=reason, message=message)
            break
    else:
        conditions.append({"type": type_, "status": value, "lastTransitionTime": clock.rfc3339(), "reason": reason, "message": message})
    return {**status, "conditions": conditions}


def accept_names(crd: Object, others: Iterable[Object]) -> tuple[Object, Object | None]:
    """-> (the status that says which of its names are its own, the names it may be served under or None).

    A name in use by another definition of the group is refused; those accepted before stay (upstream's naming controller). `others`: the group's
    other definitions.
    """
    spec, status = crd["spec"], crd.get("status") or {}
    asked = spec["names"]
    accepted = {k: v for k, v in (status.get("acceptedNames") or {}).items() if v}
    taken, kinds = set(), set()
    for other in others:
        held = (other.get("status") or {}).get("acceptedNames") or {}
        taken |= {held.get("plural"), held.get("singular"), *(held.get("shortNames") or ())}
        kinds |= {held.get("kind"), held.get("listKind")}
    problems: list[tuple[str, str]] = []

    def settle(name: str, in_use: set[Any], reason: str) -> None:
        value = asked.get(name)
        clash = [v for v in (value if isinstance(value, list) else [value]) if v in in_use and v]
        if clash:
            problems.append((reason, ", ".join(f'"{v}" is already in use' for v in clash)))
        elif value:
            accepted[name] = value
        else:
            accepted.pop(name, None)

    settle("plural", taken, "PluralConflict")
    settle("singular", taken, "SingularConflict")
    settle("shortNames", taken, "ShortNamesConflict")
    settle("kind", kinds, "KindConflict")
    settle("listKind", kinds, "ListKindConflict")
    settle("categories", set(), "")
    new = {**status, "acceptedNames": {"plural": "", "kind": "", **accepted}, "storedVersions": status.get("storedVersions") or []}
    if problems:
        new = with_condition(new, "NamesAccepted", "False", problems[-1][0], problems[-1][1])
        if not is_true(crd, "Established"):
            new = with_condition(new, "Established", "False", "NotAccepted", "not all names are accepted")
            return new, None
    else:
        new = with_condition(new, "NamesAccepted", "True", "NoConflicts", "no conflicts found")
        new = with_condition(new, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
    return new, new["acceptedNames"]


# OpenAPI.


def openapi_part(crd: Object, version: Object) -> Object:
    """The v2 paths and definitions of a served version."""
    spec = crd["spec"]
    group, names, of = spec["group"], spec["names"], version["name"]
    name = f"{'.'.join(reversed(group.split('.')))}.{of}.{names['kind']}"
    gvk = {"group": group, "version": of, "kind": names["kind"]}
    raw = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    body = {k: v for k, v in structural.published(raw).items() if not k.startswith("x-kubernetes-validations")}
    meta = {"$ref": f"{_META}.ObjectMeta", "description": "Standard object's metadata."}
    if raw.get("x-kubernetes-preserve-unknown-fields"):
        definition: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    else:
        texts = {"apiVersion": "The version of the API that this document is written in.", "kind": "The kind of the object."}
        envelope = {k: {"type": "string", "description": text} for k, text in texts.items()} | {"metadata": meta}
        definition = {**body, "properties": {**(body.get("properties") or {}), **envelope}}
    definition["x-kubernetes-group-version-kind"] = [gvk]
    items = {"type": "array", "items": {"$ref": f"#/definitions/{name}"}}
    whole: Object = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"$ref": f"{_META}.ListMeta"}, "items": items}
    listed: Object = {"type": "object", "required": ["items"], "properties": whole}
    listed["x-kubernetes-group-version-kind"] = [{**gvk, "kind": names.get("listKind") or names["kind"] + "List"}]
    return {"paths": _paths(spec, version, name, gvk), "definitions": {name: definition, f"{name}List": listed}}


_META = "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1"
_SCALE = "#/definitions/io.k8s.api.autoscaling.v1.Scale"
_QUERY = {
    "create": ("dryRun", "fieldManager", "fieldValidation"), "update": ("dryRun", "fieldManager", "fieldValidation"),
    "patch": ("dryRun", "fieldManager", "fieldValidation", "force"), "delete": ("dryRun", "gracePeriodSeconds", "propagationPolicy"),
    "list": ("continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "watch"), "get": ("resourceVersion",),
}  # fmt: skip
_PATCHES = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]


def _paths(spec: Object, version: Object, name: str, gvk: Object) -> Object:
    plural, namespaced = spec["names"]["plural"], spec.get("scope") == "Namespaced"
    root = f"/apis/{spec['group']}/{version['name']}"
    collection = f"{root}/namespaces/{{namespace}}/{plural}" if namespaced else f"{root}/{plural}"
    words = "".join(p.capitalize() for p in [*spec["group"].split("."), version["name"]])
    whole: list[Object] = [{"name": "namespace", "in": "path", "required": True, "type": "string", "uniqueItems": True}] if namespaced else []
    one = [{"name": "name", "in": "path", "required": True, "type": "string", "uniqueItems": True}, *whole]

    def operation(action: str, schema: str, suffix: str = "") -> Object:
        given = [{"name": q, "in": "query", "type": "string", "uniqueItems": True} for q in _QUERY[action]]
        if action in ("create", "update", "patch"):
            body = {"type": "object"} if action == "patch" else {"$ref": schema}
            given.append({"name": "body", "in": "body", "required": True, "schema": body})
        answer = {"description": "OK", "schema": {"$ref": schema if action != "delete" else f"{_META}.Status"}}
        return {
            "operationId": f"{action}{words}{'Namespaced' if namespaced else ''}{gvk['kind']}{suffix}", "tags": [f"{words[0].lower()}{words[1:]}"], "schemes": ["https"],
            "consumes": _PATCHES if action == "patch" else ["application/json", "application/yaml"], "produces": ["application/json", "application/yaml"],
            "parameters": given, "responses": {"200": answer, "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": {"create": "post", "update": "put"}.get(action, action), "x-kubernetes-group-version-kind": gvk,
        }  # fmt: skip

    one_list, name = f"#/definitions/{name}List", f"#/definitions/{name}"
    item = {"get": operation("get", name), "put": operation("update", name), "patch": operation("patch", name), "delete": operation("delete", name)}
    paths: Object = {
        collection: {"get": operation("list", one_list), "post": operation("create", name), "parameters": whole},
        f"{collection}/{{name}}": {**item, "parameters": one},
    }
    if namespaced:
        paths[f"{root}/{plural}"] = {"get": operation("list", one_list, "ForAllNamespaces")}
    for sub in version.get("subresources") or ():
        updates = {
            "get": operation("get", name, sub.capitalize()),
            "put": operation("update", name, sub.capitalize()),
            "patch": operation("patch", name, sub.capitalize()),
        }
        paths[f"{collection}/{{name}}/{sub}"] = {**updates, "parameters": one}
    return paths
