"""Values against an OpenAPI v3 schema: what custom resources hold must be what their definition says.

Errors are upstream's (kube-openapi's validator as apiextensions words its results): type, null, enum, length, pattern, range, count, required,
allOf/anyOf/oneOf/not, and the invariants of list types. `default` fills in what the schema gives a default.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import ipaddress
import re
import uuid
from typing import Any
from urllib.parse import urlsplit

import orjson

from fastkube.api.errors import FieldError, duplicate, invalid_value, not_supported, required, too_long, too_many
from fastkube.api.quantity import QuantityError
from fastkube.api.quantity import parse as parse_quantity

Schema = dict[str, Any]
PATTERNS_MAX = 4096  # compiled patterns that are remembered

_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", type(None): "null"}


@functools.lru_cache(maxsize=PATTERNS_MAX)
def pattern(text: str) -> re.Pattern[str]:
    """A Go regular expression as Python's; re.error when it is none."""
    text = re.sub(r"\\z", r"\\Z", text)
    text = re.sub(r"\[\[:(\w+):\]\]", lambda m: "[" + _POSIX.get(m[1], "") + "]", text)
    return re.compile(text)


def _matches(text: str, value: str) -> bool:
    try:
        return pattern(text).search(value) is not None
    except (re.error, RecursionError, OverflowError):
        return True  # no expression at all: said where the schema itself is checked (structural)


_POSIX = {"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z", "space": r"\s", "word": r"\w", "xdigit": "0-9A-Fa-f"}


def default(value: Any, schema: Schema) -> None:
    """Fill in the defaults below `value`, in place; a null where null is not allowed counts as absent."""
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        for name, inner in properties.items():
            if "default" in inner and (name not in value or (value[name] is None and not inner.get("nullable"))):
                value[name] = orjson.loads(orjson.dumps(inner["default"]))
            if name in value:
                default(value[name], inner)
        additional = schema.get("additionalProperties")
        if isinstance(additional, dict):
            for name, item in value.items():
                if name not in properties:
                    if item is None and "default" in additional and not additional.get("nullable"):
                        item = value[name] = orjson.loads(orjson.dumps(additional["default"]))
                    default(item, additional)
    elif isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        for i, item in enumerate(value):
            if item is None and "default" in items and not items.get("nullable"):
                item = value[i] = orjson.loads(orjson.dumps(items["default"]))
            default(item, items)


def validate(value: Any, schema: Schema, path: str = "") -> list[FieldError]:
    """What is wrong with `value`; [] when it is as the schema says."""
    errors: list[FieldError] = []
    _value(value, schema, path, errors)
    return errors


def _says(path: str, value: Any, what: str) -> FieldError:
    return invalid_value(path, value, f"{path} in body {what}")


def _wrong_type(path: str, value: Any, wanted: str) -> FieldError:
    got = _TYPES.get(type(value), "null")
    return FieldError("FieldValueTypeInvalid", path, f'Invalid value: "{got}": {path} in body must be of type {wanted}: "{got}"')


def _is(value: Any, type_: str) -> bool:
    got = _TYPES.get(type(value))
    if got == type_ or (type_ == "number" and got == "integer"):
        return True
    return type_ == "integer" and isinstance(value, float) and value.is_integer()


def _value(value: Any, schema: Schema, path: str, errors: list[FieldError]) -> None:
    if value is None:
        if not schema.get("nullable") and (schema.get("type") or schema.get("x-kubernetes-int-or-string")):
            errors.append(_wrong_type(path, value, schema.get("type") or "integer,string"))
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            errors.append(_wrong_type(path, value, "integer,string"))
            return
    elif schema.get("type") and not _is(value, schema["type"]):
        errors.append(_wrong_type(path, value, schema["type"]))
        return
    if (allowed := schema.get("enum")) and not any(type(a) is type(value) and a == value for a in allowed):
        errors.append(not_supported(path, value, [a if isinstance(a, str) else orjson.dumps(a).decode() for a in allowed]))
    if isinstance(value, str):
        _string(value, schema, path, errors)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _number(value, schema, path, errors)
    elif isinstance(value, list):
        _list(value, schema, path, errors)
    elif isinstance(value, dict):
        _object(value, schema, path, errors)
    _combined(value, schema, path, errors)


def _string(value: str, schema: Schema, path: str, errors: list[FieldError]) -> None:
    longest, shortest = schema.get("maxLength"), schema.get("minLength")
    if longest is not None and len(value) > longest:
        errors.append(too_long(path, longest))
    if shortest is not None and len(value) < shortest:
        errors.append(_says(path, value, f"should be at least {shortest} chars long"))
    if (text := schema.get("pattern")) and not _matches(text, value):
        errors.append(_says(path, value, f"should match '{text}'"))
    if (format_ := schema.get("format")) and (check := _FORMATS.get(format_)) and not check(value):
        errors.append(_says(path, value, f"must be of type {format_}: {orjson.dumps(value).decode()}"))


def _shown(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _number(value: float, schema: Schema, path: str, errors: list[FieldError]) -> None:
    most, least, step = schema.get("maximum"), schema.get("minimum"), schema.get("multipleOf")
    if most is not None and (value >= most if schema.get("exclusiveMaximum") else value > most):
        errors.append(_says(path, value, f"should be less than {'' if schema.get('exclusiveMaximum') else 'or equal to '}{_shown(most)}"))
    if least is not None and (value <= least if schema.get("exclusiveMinimum") else value < least):
        errors.append(_says(path, value, f"should be greater than {'' if schema.get('exclusiveMinimum') else 'or equal to '}{_shown(least)}"))
    if step and value % step:
        errors.append(_says(path, value, f"should be a multiple of {_shown(step)}"))
    bits = {"int32": 31, "int64": 63}.get(schema.get("format", ""))
    if bits and not -(2**bits) <= value < 2**bits:
        errors.append(_says(path, value, f"must be of type {schema['format']}"))


def _list(value: list[Any], schema: Schema, path: str, errors: list[FieldError]) -> None:
    most, least = schema.get("maxItems"), schema.get("minItems")
    if isinstance(items := schema.get("items"), dict):
        for i, item in enumerate(value):
            _value(item, items, f"{path}[{i}]", errors)
    if most is not None and len(value) > most:
        errors.append(too_many(path, len(value), most))
    if least is not None and len(value) < least:
        errors.append(_says(path, len(value), f"should have at least {least} items"))


def _object(value: dict[str, Any], schema: Schema, path: str, errors: list[FieldError]) -> None:
    most, least = schema.get("maxProperties"), schema.get("minProperties")
    if most is not None and len(value) > most:
        errors.append(too_many(path, len(value), most))
    if least is not None and len(value) < least:
        errors.append(_says(path, len(value), f"should have at least {least} properties"))
    for name in schema.get("required") or ():
        if name not in value:
            errors.append(required(_at(path, name)))
    properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
    for name in sorted(value):
        inner = properties.get(name, additional)
        if isinstance(inner, dict):
            _value(value[name], inner, _at(path, name), errors)


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _combined(value: Any, schema: Schema, path: str, errors: list[FieldError]) -> None:
    for inner in schema.get("allOf") or ():
        _value(value, inner, path, errors)
    for word, name in (("anyOf", "at least one"), ("oneOf", "one and only one")):
        if not (schemas := schema.get(word)):
            continue
        failures = [validate(value, inner, path) for inner in schemas]
        valid = sum(not f for f in failures)
        if valid == 0:
            errors.append(invalid_value(path, value, f'"{path}" must validate {name} schema ({word})' + (". Found none valid" if word == "oneOf" else "")))
            errors += failures[0]
        elif word == "oneOf" and valid > 1:
            errors.append(invalid_value(path, value, f'"{path}" must validate {name} schema ({word}). Found {valid} valid alternatives'))
    if (refused := schema.get("not")) is not None and not validate(value, refused, path):
        errors.append(invalid_value(path, value, f'"{path}" must not validate the schema (not)'))


def validate_list_types(value: Any, schema: Schema, path: str = "") -> list[FieldError]:
    """The errors of items that stand twice in sets and list maps."""
    errors: list[FieldError] = []
    _list_types(value, schema, path, errors)
    return errors


def _list_types(value: Any, schema: Schema, path: str, errors: list[FieldError]) -> None:
    if isinstance(value, list):
        kind = schema.get("x-kubernetes-list-type")
        if kind in ("set", "map"):
            seen: set[bytes] = set()
            for i, item in enumerate(value):
                identity = (
                    {k: item.get(k) for k in schema.get("x-kubernetes-list-map-keys") or () if item.get(k) is not None}
                    if kind == "map" and isinstance(item, dict)
                    else item
                )
                raw = orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)
                if raw in seen:
                    errors.append(duplicate(f"{path}[{i}]", identity))
                seen.add(raw)
        if isinstance(items := schema.get("items"), dict):
            for i, item in enumerate(value):
                _list_types(item, items, f"{path}[{i}]", errors)
    elif isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        for name, item in value.items():
            inner = properties.get(name, additional)
            if isinstance(inner, dict):
                _list_types(item, inner, _at(path, name), errors)


# Formats that upstream checks (apiextensions' supported ones); others mean nothing.


def _parses(parse: Any) -> Any:
    def check(value: str) -> bool:
        try:
            parse(value)
        except (ValueError, TypeError, binascii.Error, QuantityError):
            return False
        return True

    return check


_DURATION = re.compile(r"[-+]?(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h|d|w|y))+|0")
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:?\d\d)")
_HOSTNAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


def _uri(value: str) -> None:
    parts = urlsplit(value)
    if not parts.scheme and not value.startswith("/"):
        raise ValueError(value)


_FORMATS: dict[str, Any] = {
    "date": _parses(datetime.date.fromisoformat),
    "date-time": lambda v: bool(_DATE_TIME.fullmatch(v)),
    "datetime": lambda v: bool(_DATE_TIME.fullmatch(v)),
    "duration": lambda v: bool(_DURATION.fullmatch(v)),
    "byte": _parses(lambda v: base64.b64decode(v, validate=True)),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "ip": _parses(ipaddress.ip_address),
    "cidr": _parses(lambda v: ipaddress.ip_network(v, strict=False) if "/" in v else ipaddress.ip_address("")),
    "mac": lambda v: bool(re.fullmatch(r"(?:[0-9A-Fa-f]{2}[:-]){5,7}[0-9A-Fa-f]{2}", v)),
    "uuid": _parses(uuid.UUID),
    "hostname": lambda v: bool(_HOSTNAME.fullmatch(v)),
    "email": lambda v: bool(re.fullmatch(r"[^@\s]+@[^@\s]+", v)),
    "uri": _parses(_uri),
    "quantity": _parses(parse_quantity),
}
