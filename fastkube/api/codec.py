"""Between bytes on the wire and objects: JSON and YAML in, stored JSON out.

`read` does all that upstream's decoder does with the body of a write: syntax, group, version and kind, types, unknown and duplicate fields by
the request's fieldValidation; what it refuses is a 400 in upstream's words. `encode` writes the form that is stored and sent: apiVersion, kind,
metadata.resourceVersion first, so that the store puts the revision in without decoding anything.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import yaml

from fastkube._ext.scan import find
from fastkube.api import protobuf, schema
from fastkube.api.errors import ApiError, bad_request, unsupported_media_type
from fastkube.api.schema import DecodeError, Node

__all__ = ["duplicates", "encode", "find", "load", "metadata_of", "read"]

Object = dict[str, Any]

YAML_TYPES = ("application/yaml", "application/apply-patch+yaml", "application/x-yaml", "text/yaml")
YAML_NODES_MAX = 2_000_000  # nodes of a document, aliases expanded: a bomb is refused
DEPTH_MAX = 1000  # of nesting; orjson's own limit is 1024
SUMMARY_BYTES_MAX = 30  # of a body, in an error's text


def encode(obj: Object) -> tuple[bytes, int]:
    """-> (JSON, where in it the decimal revision goes). `obj` is left alone; a resourceVersion in it is not kept."""
    meta = obj.get("metadata") or {}
    api_version, kind = obj["apiVersion"], obj["kind"]
    body: Object = {"apiVersion": api_version, "kind": kind, "metadata": {"resourceVersion": "", **meta}}
    body["metadata"]["resourceVersion"] = ""
    for key, value in obj.items():
        if key != "apiVersion" and key != "kind" and key != "metadata":
            body[key] = value
    return orjson.dumps(body), len(api_version) + len(kind) + 58


def metadata_of(stored: bytes) -> Object:
    """The metadata of a stored object, without decoding the rest of it."""
    raw = find(stored, (b"metadata",))
    return orjson.loads(raw) if raw else {}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: JSON's types only (no dates, `yes` is a string), keys once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o?[0-7]+|0b[01]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _yaml_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    if digits.startswith("0") and len(digits) > 1 and digits[1].isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _yaml_map(loader: Any, node: Any) -> Object:
    loader.flatten_mapping(node)
    out: Object = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, bool):
            key = "true" if key else "false"
        elif isinstance(key, (int, float)):
            key = str(key)
        elif not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "invalid map key", key_node.start_mark)
        if key in out:
            loader.twice.append((key_node.start_mark.line + 1, key))
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_Loader.add_constructor("tag:yaml.org,2002:int", _yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _yaml_map)


def _load_yaml(body: bytes) -> tuple[Any, list[str]]:
    """-> (value, strict errors)."""
    try:
        loader = _Loader(body.decode("utf-8", "replace"))
        loader.twice = []
        try:
            node = loader.get_single_node()
            if node is not None:
                _bounded(node)
            value = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        problem = getattr(e, "problem", None) or str(e)
        raise ValueError("error converting YAML to JSON: yaml: " + (f"line {mark.line + 1}: " if mark else "") + problem) from None
    return value, [f'yaml: line {line}: key "{key}" already set in map' for line, key in loader.twice]


def _bounded(root: Any) -> None:
    """Refuse aliases that expand to a bomb: count the nodes as often as they are reached."""
    left = YAML_NODES_MAX

    def visit(node: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEPTH_MAX:
            raise ValueError("document contains excessive aliasing")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                visit(key, depth + 1)
                visit(value, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                visit(value, depth + 1)

    visit(root, 0)


def load(body: bytes, media_type: str = "application/json") -> Any:
    """A body as plain values. Raises ValueError in upstream's words."""
    if media_type in YAML_TYPES:
        return _load_yaml(body)[0]
    if media_type == protobuf.MEDIA_TYPE:
        return protobuf.decode(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as e:
        return _load_odd(body, e)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"invalid character '{name[0]}' looking for beginning of value")


def _load_odd(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """What orjson refuses but Go's json reads (invalid UTF-8 and lone surrogates become U+FFFD), or a ValueError in Go's words."""
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        return orjson.loads(re.sub("[\ud800-\udfff]", "�", json.dumps(value, ensure_ascii=False)).encode())
    except json.JSONDecodeError as e:
        raise ValueError(_go_syntax(text, e)) from None
    except (RecursionError, orjson.JSONDecodeError):
        raise ValueError("exceeded max depth") from None


def _go_syntax(text: str, error: json.JSONDecodeError) -> str:
    """Go's words for a syntax error, by where Python's parser stopped."""
    at = error.pos
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    if error.msg.startswith("Unterminated") or at >= len(text):
        return "unexpected end of JSON input"
    char = {"'": r"'\''", '"': "'\"'"}.get(text[at], f"'{text[at]}'" if text[at].isprintable() else repr(text[at]))
    where = {
        "Expecting value": "looking for beginning of value",
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after array element" if _in_array(text, at) else "after object key:value pair",
        "Extra data": "after top-level value",
        "Invalid control character at": "in string literal",
        "Invalid \\escape": "in string escape code",
    }.get(error.msg, "looking for beginning of value")
    return f"invalid character {char} {where}"


def _in_array(text: str, end: int) -> bool:
    stack: list[str] = []
    quoted = escaped = False
    for c in text[:end]:
        if quoted:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                quoted = False
        elif c == '"':
            quoted = True
        elif c in "{[":
            stack.append(c)
        elif c in "}]" and stack:
            stack.pop()
    return bool(stack) and stack[-1] == "["


class _Pairs(list):  # type: ignore[type-arg]
    """An object of a JSON document with its members as they stand, duplicates too."""


def duplicates(node: Node, body: bytes) -> list[str]:
    """The strict errors of a JSON body in document order: unknown fields and fields that stand twice."""
    root = json.loads(body.decode("utf-8", "replace"), object_pairs_hook=_Pairs)
    errors: list[str] = []

    def visit(node: Node | None, value: Any, path: str) -> None:
        if isinstance(value, _Pairs):
            named = node is not None and node.properties is not None
            if node is not None and not named and node.additional is None:
                return
            seen: set[str] = set()
            for key, item in value:
                at = f"{path}.{key}" if path else key
                inner = (node.properties or {}).get(key) if named and node is not None else node.additional if node is not None else None
                if inner is None and named:
                    errors.append(f'unknown field "{at}"')
                    continue
                if key in seen:
                    errors.append(f'duplicate field "{at}"')
                seen.add(key)
                visit(inner, item, at)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                visit(node.items if node is not None else None, item, f"{path}[{i}]")

    visit(node, root, "")
    return list(dict.fromkeys(errors))


def _summary(body: bytes) -> str:
    if not body:
        return "<empty>"
    cut = body[:SUMMARY_BYTES_MAX]
    more = " ..." if len(body) > SUMMARY_BYTES_MAX else ""
    return (cut.decode("utf-8", "replace") if body[:1] == b"{" else cut.hex()) + more


def read(
    body: bytes,
    media_type: str,
    group: str,
    version: str,
    kind: str,
    *,
    node: Node | None = None,
    validation: str = "Warn",
) -> tuple[Object, list[str]]:
    """The object of a write's body, in its type's form -> (object, warnings).

    `validation` is the request's fieldValidation: "Strict" refuses unknown and duplicate fields, "Warn" warns of them, "Ignore" drops them in silence.
    `node` defaults to the built-in kind's; pass the tree of a custom kind's version with it. Raises ApiError 400 (415 for an unknown media type).
    """
    twice: list[str] = []
    try:
        if media_type in YAML_TYPES:
            value, twice = _load_yaml(body)
        elif media_type in ("application/json", protobuf.MEDIA_TYPE, ""):
            value = load(body, media_type)
        else:
            raise unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
            )
    except ValueError as e:
        raise bad_request(
            f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {e} ({_summary(body)})"
        ) from None
    if not isinstance(value, dict):
        raise bad_request(
            f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: json: cannot unmarshal {_json_kind(value)} into Go value of type"
            f' struct {{ APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }} ({_summary(body)})'
        )
    quiet = validation == "Ignore"
    again = not quiet and media_type not in (*YAML_TYPES, protobuf.MEDIA_TYPE) and schema.members(body) != schema.held(value)
    _check_kind(value, group, version, kind, body)
    custom = node is not None
    node = node or schema.of(group, version, kind)
    try:
        if custom:
            unknown = schema.prune(node, value)
        else:
            unknown = schema.decode(node, value, not quiet)
    except DecodeError as e:
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {e}') from None
    if quiet:
        return value, []
    strict = duplicates(node, body) if again else twice + [f'unknown field "{path}"' for path in unknown]
    if strict and validation == "Strict":
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: strict decoding error: {", ".join(strict)}')
    return value, strict


def _json_kind(value: Any) -> str:
    return (
        "string"
        if isinstance(value, str)
        else "bool"
        if isinstance(value, bool)
        else "number"
        if isinstance(value, (int, float))
        else "array"
        if isinstance(value, list)
        else "null"
    )


# What is no longer served but still read, as its form is the same: kubectl before 1.22 drains nodes with it (upstream's EvictionREST takes both).
ALSO_READ = {("policy/v1beta1", "Eviction"): "policy/v1"}


def _check_kind(value: Object, group: str, version: str, kind: str, body: bytes) -> None:
    """apiVersion and kind default to the request's; others are refused."""
    api_version = f"{group}/{version}" if group else version
    for field in ("apiVersion", "kind"):
        if value.get(field) is not None and not isinstance(value[field], str):
            raise bad_request(
                f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: json: cannot unmarshal {_json_kind(value[field])}"
                f" into Go struct field .{field} of type string ({_summary(body)})"
            )
    got_version, got_kind = value.get("apiVersion") or api_version, value.get("kind") or kind
    got_version = ALSO_READ.get((got_version, got_kind), got_version)
    value["apiVersion"], value["kind"] = api_version, kind
    got = got_version.rpartition("/")[2]
    if (got_kind, got_version) != (kind, api_version) and not schema.known(got_version, got_kind):
        text = f'no kind "{got_kind}" is registered for version "{got_version}" in scheme "pkg/api/legacyscheme/scheme.go:30"'
        raise bad_request(f'{got_kind} in version "{got}" cannot be handled as a {kind}: {text}')
    if got_kind != kind:
        raise bad_request(
            f'{got_kind} in version "{got}" cannot be handled as a {kind}: converting ({got}.{got_kind}) to ({group.split(".")[0] or "core"}.{kind}): unknown conversion'
        )
    if got_version != api_version:
        raise ApiError(400, "BadRequest", f"the API version in the data ({got_version}) does not match the expected API version ({api_version})")
