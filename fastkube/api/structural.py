"""What the schema of a custom resource may say: OpenAPI v3 as far as apiextensions takes it, and structural (every place has a type, so that pruning, defaults and
server-side apply know what stands where; see kubernetes.io "Specifying a structural schema").

Errors in upstream's order and words: first what single values may be, then what makes it structural, then CEL rules and defaults.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from fastkube.api import rules, values
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required

Schema = dict[str, Any]

TYPES = ("array", "boolean", "integer", "number", "object", "string")
_MAX_DEPTH = 100
_CORE_IN_LOGIC = (
    "type",
    "default",
    "description",
    "title",
    "nullable",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
)
_REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_LIST_TYPES = ("atomic", "set", "map")
_MAP_TYPES = ("granular", "atomic")


def validate(schema: Schema, at: str, has_status: bool = False) -> list[FieldError]:
    """What is wrong with a version's openAPIV3Schema; `at` is its path in the definition."""
    errors: list[FieldError] = []
    if has_status and schema.get("type") not in (None, "", "object"):
        text = 'only "object" is allowed as the type at the root of the schema if the status subresource is enabled'
        errors.append(invalid_value(f"{at}.type", schema["type"], text))
    _openapi(schema, at, errors, 0)
    structural: list[FieldError] = []
    _structural(schema, at, structural, 0)
    sound = not structural and not errors
    errors += structural
    if not structural:
        _defaults(schema, at, errors, root=True)
    if sound:
        _rules(schema, at, errors)
    _types(schema, at, errors, 0)
    return errors


def _types(schema: Schema, at: str, errors: list[FieldError], depth: int) -> None:
    if (type_ := schema.get("type")) and type_ not in TYPES:
        errors.append(not_supported(f"{at}.type", type_, TYPES))
    if depth <= _MAX_DEPTH:
        for path, inner in (*((p, i) for p, i, _ in _children(schema, at)), *_logical(schema, at)):
            _types(inner, path, errors, depth + 1)


def _children(schema: Schema, at: str) -> list[tuple[str, Schema, str]]:
    """(path, schema, how it hangs) of what lies directly below."""
    out = [(f"{at}.properties[{name}]", inner, "property") for name, inner in sorted((schema.get("properties") or {}).items()) if isinstance(inner, dict)]
    if isinstance(schema.get("additionalProperties"), dict):
        out.append((f"{at}.additionalProperties", schema["additionalProperties"], "map"))
    if isinstance(schema.get("items"), dict):
        out.append((f"{at}.items", schema["items"], "items"))
    return out


def _logical(schema: Schema, at: str) -> list[tuple[str, Schema]]:
    out = [(f"{at}.{word}[{i}]", inner) for word in ("allOf", "anyOf", "oneOf") for i, inner in enumerate(schema.get(word) or ())]
    return [*out, (f"{at}.not", schema["not"])] if isinstance(schema.get("not"), dict) else out


def _openapi(schema: Schema, at: str, errors: list[FieldError], depth: int) -> None:
    """Single values, place by place."""
    if depth > _MAX_DEPTH:
        return
    type_ = schema.get("type") or ""
    for word, text in (
        ("definitions", "definitions is not supported"),
        ("$ref", "$ref is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("id", "id is not supported"),
        ("patternProperties", "patternProperties is not supported"),
    ):
        if schema.get(word):
            errors.append(forbidden_field(f"{at}.{word}", text))
    if schema.get("uniqueItems"):
        errors.append(forbidden_field(f"{at}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"))
    if isinstance(schema.get("items"), list):
        errors.append(forbidden_field(f"{at}.items", "items must be a schema object and not an array"))
    if schema.get("properties") and isinstance(schema.get("additionalProperties"), dict) and type_:
        errors.append(forbidden_field(f"{at}.additionalProperties", "additionalProperties and properties are mutual exclusive"))
    if schema.get("pattern"):
        errors.extend(_pattern_errors(schema["pattern"], f"{at}.pattern"))
    if "x-kubernetes-preserve-unknown-fields" in schema and schema["x-kubernetes-preserve-unknown-fields"] is not True:
        errors.append(invalid_value(f"{at}.x-kubernetes-preserve-unknown-fields", False, "must be true or undefined"))
    if type_ == "array" and not isinstance(schema.get("items"), dict):
        errors.append(required(f"{at}.items", "must be specified"))
    errors.extend(_list_type_errors(schema, at))
    for path, inner, _ in _children(schema, at):
        _openapi(inner, path, errors, depth + 1)
    for path, inner in _logical(schema, at):
        _openapi(inner, path, errors, depth + 1)


def _pattern_errors(text: str, at: str) -> list[FieldError]:
    try:
        values.pattern(text)
    except (re.error, RecursionError, OverflowError) as e:
        words = {
            "missing ), unterminated subpattern": "missing closing )",
            "unbalanced parenthesis": "unexpected )",
            "nothing to repeat": "missing argument to repetition operator",
        }
        said = next((to for word, to in words.items() if word in str(e)), str(e))
        return [invalid_value(at, text, f"must be a valid regular expression, but isn't: error parsing regexp: {said}: `{text}`")]
    return []


def _list_type_errors(schema: Schema, at: str) -> list[FieldError]:
    errors: list[FieldError] = []
    type_, kind, keys = schema.get("type") or "", schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys") or []
    if kind is not None:
        if type_ != "array":
            where = f"{at}.type"
            errors.append(
                required(where, "must be array if x-kubernetes-list-type is specified")
                if not type_
                else invalid_value(where, type_, "must be array if x-kubernetes-list-type is specified")
            )
        if kind not in _LIST_TYPES:
            errors.append(not_supported(f"{at}.x-kubernetes-list-type", kind, _LIST_TYPES))
    if kind == "map":
        items = schema.get("items") or {}
        if not keys:
            errors.append(required(f"{at}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map"))
        if items.get("type") and items["type"] != "object":
            errors.append(invalid_value(f"{at}.items.type", items["type"], "must be object if parent array's x-kubernetes-list-type is map"))
        for i, key in enumerate(keys):
            found = (items.get("properties") or {}).get(key)
            if found is None:
                errors.append(invalid_value(f"{at}.x-kubernetes-list-map-keys[{i}]", key, "entries must all be names of item properties"))
            else:
                where = f"{at}.items.properties[{key}]"
                if found.get("type") in ("array", "object"):
                    errors.append(invalid_value(f"{where}.type", found["type"], "must be a scalar type if parent array's x-kubernetes-list-type is map"))
                if found.get("nullable"):
                    errors.append(forbidden_field(f"{where}.nullable", "this property is in x-kubernetes-list-map-keys, so it cannot be nullable"))
                if "default" not in found and key not in (items.get("required") or ()):
                    errors.append(
                        required(f"{where}.default", "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property")
                    )
    elif keys:
        errors.append(
            invalid_value(f"{at}.x-kubernetes-list-type", kind or "", "must be map if x-kubernetes-list-map-keys is non-empty")
            if kind
            else required(f"{at}.x-kubernetes-list-type", "must be map if x-kubernetes-list-map-keys is non-empty")
        )
    if kind == "set" and isinstance(items := schema.get("items"), dict):
        if items.get("nullable"):
            errors.append(forbidden_field(f"{at}.items.nullable", "cannot be nullable when x-kubernetes-list-type is set"))
        if items.get("type") == "array" and items.get("x-kubernetes-list-type") not in (None, "atomic"):
            errors.append(
                invalid_value(
                    f"{at}.items.x-kubernetes-list-type", items["x-kubernetes-list-type"], "must be atomic as item of a list with x-kubernetes-list-type=set"
                )
            )
        if items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
            errors.append(
                invalid_value(
                    f"{at}.items.x-kubernetes-map-type", items.get("x-kubernetes-map-type"), "must be atomic as item of a list with x-kubernetes-list-type=set"
                )
            )
    if (map_type := schema.get("x-kubernetes-map-type")) is not None:
        if type_ != "object":
            errors.append(invalid_value(f"{at}.type", type_, "must be object if x-kubernetes-map-type is specified"))
        if map_type not in _MAP_TYPES:
            errors.append(not_supported(f"{at}.x-kubernetes-map-type", map_type, _MAP_TYPES))
    return errors


def _structural(schema: Schema, at: str, errors: list[FieldError], depth: int) -> None:
    """Every place has a type, and logic says nothing about structure."""
    if depth > _MAX_DEPTH:
        errors.append(forbidden_field(at, f"schema is nested deeper than {_MAX_DEPTH} levels"))
        return
    type_, root = schema.get("type") or "", depth == 0
    mixed, preserving, embedded = (bool(schema.get(f"x-kubernetes-{w}")) for w in ("int-or-string", "preserve-unknown-fields", "embedded-resource"))
    if root and type_ not in ("object",):
        errors.append(
            required(f"{at}.type", "must not be empty at the root") if not type_ else invalid_value(f"{at}.type", type_, "must be object at the root")
        )
    elif not root and not type_ and not mixed and not preserving:
        errors.append(required(f"{at}.type", _TYPELESS.get(at.rpartition(".")[2].partition("[")[0], "must not be empty for specified object fields")))
    if mixed and type_:
        errors.append(forbidden_field(f"{at}.type", "must be empty if x-kubernetes-int-or-string is true"))
    if embedded and type_ != "object":
        errors.append(invalid_value(f"{at}.type", type_, "must be object if x-kubernetes-embedded-resource is true"))
    if embedded and not preserving and not schema.get("properties"):
        errors.append(required(f"{at}.properties", "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"))
    if (root or embedded) and isinstance(named := (schema.get("properties") or {}).get("metadata"), dict):
        _metadata_errors(named, f"{at}.properties[metadata]", errors)
    for path, inner, _ in _children(schema, at):
        if not ((root or embedded) and path.endswith(".properties[metadata]")):
            _structural(inner, path, errors, depth + 1)
    for path, inner in _logical(schema, at):
        _in_logic(inner, path, schema, errors, depth + 1)


_TYPELESS = {"items": "must not be empty for specified array items", "additionalProperties": "must not be empty for specified object fields"}


def _metadata_errors(schema: Schema, at: str, errors: list[FieldError]) -> None:
    if set(schema.get("properties") or ()) - {"name", "generateName"} or set(schema) - {"type", "properties", "description"}:
        errors.append(forbidden_field(at, "must not specify anything other than name and generateName, but metadata is implicitly specified"))


def _in_logic(schema: Schema, at: str, outer: Schema, errors: list[FieldError], depth: int) -> None:
    """Below allOf, anyOf, oneOf and not only values may be spoken of, not structure."""
    mixed = bool(outer.get("x-kubernetes-int-or-string"))
    for word in _CORE_IN_LOGIC:
        if word == "type" and mixed and schema.get("type") in ("integer", "string") and set(schema) == {"type"}:
            continue
        value = schema.get(word)
        if value not in (None, "", False):
            errors.append(
                forbidden_field(
                    f"{at}.{word}",
                    "must be empty to be structural"
                    if word in ("type", "title", "description")
                    else f"must be {'undefined' if word == 'default' else 'false'} to be structural",
                )
            )
    for path, inner, _ in _children(schema, at):
        if depth < _MAX_DEPTH:
            _in_logic(inner, path, {}, errors, depth + 1)
    for path, inner in _logical(schema, at):
        if depth < _MAX_DEPTH:
            _in_logic(inner, path, outer, errors, depth + 1)


def _rules(schema: Schema, at: str, errors: list[FieldError]) -> None:
    """Each CEL rule must be one."""
    for i, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
        where = f"{at}.x-kubernetes-validations[{i}]"
        text = rule.get("rule", "")
        if not text.strip():
            errors.append(required(f"{where}.rule", "rule is not specified"))
            continue
        shown = {
            "Rule": text, "Message": rule.get("message", ""), "MessageExpression": rule.get("messageExpression", ""), "Reason": rule.get("reason"),
            "FieldPath": rule.get("fieldPath", ""), "OptionalOldSelf": rule.get("optionalOldSelf"),
        }  # fmt: skip
        if problem := rules.problem(text, schema):
            errors.append(invalid_value(f"{where}.rule", shown, f"compilation failed: {problem}"))
        if (expression := rule.get("messageExpression")) and (problem := rules.problem(expression, schema, "string")):
            errors.append(invalid_value(f"{where}.messageExpression", shown, f"messageExpression compilation failed: {problem}"))
        message = rule.get("message")
        if message and not message.strip():
            errors.append(invalid_value(f"{where}.message", message, "message must be non-empty if specified"))
        elif "\n" in (message or ""):
            errors.append(invalid_value(f"{where}.message", message, "message must not contain line breaks"))
        elif "\n" in text.strip() and not message:
            errors.append(required(f"{where}.message", "message must be specified if rule contains line breaks"))
        if rule.get("reason") and rule["reason"] not in _REASONS:
            errors.append(not_supported(f"{where}.reason", rule["reason"], _REASONS))
    for path, inner, _ in _children(schema, at):
        _rules(inner, path, errors)


def _defaults(schema: Schema, at: str, errors: list[FieldError], root: bool = False) -> None:
    """A default must be what its own schema asks for."""
    if "default" in schema:
        where = f"{at}.default"
        if root:
            errors.append(forbidden_field(where, "must not be set at the root"))
        value = orjson.loads(orjson.dumps(schema["default"]))
        values.default(value, schema)
        for e in values.validate(value, schema):
            errors.append(FieldError(e.reason, where + (f".{e.field}" if e.field and not e.field.startswith("[") else e.field), e.message))
    for path, inner, _ in _children(schema, at):
        _defaults(inner, path, errors)


def published(schema: Schema) -> Schema:
    """The schema as OpenAPI documents show it: without what they cannot say (null types, rules)."""
    out = {k: v for k, v in schema.items() if k not in ("nullable", "x-kubernetes-validations", "oneOf", "anyOf", "allOf", "not")}
    if "properties" in out:
        out["properties"] = {name: published(inner) for name, inner in out["properties"].items()}
    for word in ("items", "additionalProperties"):
        if isinstance(out.get(word), dict):
            out[word] = published(out[word])
    return out
