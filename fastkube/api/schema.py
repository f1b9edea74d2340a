"""What a kind's objects look like: one tree of `Node`s per type, for built-in kinds and for custom ones.

Everything that has to know the shape of an object reads it here: decoding (`decode`: type check, unknown fields, Go's zero values), pruning,
strategic merge patch (merge keys, patch strategies), server-side apply (list types and map keys). Built-in trees come from a compact
table made out of OpenAPI and the Go types (tools/gen_data.py); a definition becomes nodes only when something walks into it.

A `Node` says of one place (a field, the items of a list, the values of a map):

    type            "string", "integer", "number", "boolean", "object", "array"; "" when anything may stand here
    properties      of an object with named fields: {name: Node}; None otherwise. Types may contain themselves: never recurse over them blindly
    items           of an array: the Node of its elements
    additional      of a map: the Node of its values
    format          "int32", "int64", "double", "byte", "date-time", "micro-time", "quantity", "int-or-string" or what a custom schema says
    list_type       "atomic", "set", "map"; "" when not said (which is atomic)
    map_keys        of a list_type "map": names of the fields that identify an element, ("containerPort", "protocol")
    map_type        "atomic" or "granular"; "" when not said (which is granular)
    merge_key       strategic merge patch: the field that identifies an element, ""
    patch_strategy  strategic merge patch: "merge", "replace", "retainKeys", "merge,retainKeys", ""
    preserve_unknown, nullable, int_or_string, embedded_resource   the x-kubernetes-* extensions of custom schemas (int_or_string: built-in too)
    raw             of a custom schema: the dict it was made of (min, max, pattern, default, validations ... for whoever checks values)
    definition      of a built-in struct: its short name ("core.v1.PodSpec"), ""
    go              what Go calls the type (`v1.Container`, `[]v1.Container`, `int32`), for messages
    pointer, omit_empty, explicit_null   how Go writes the field: a pointer keeps zero values, omit_empty drops them, explicit_null writes null
"""

from __future__ import annotations

import functools
import importlib.resources
import sys
from typing import Any

import orjson

from fastkube._ext.schema import Code, DecodeError, Node, Walker, held, members, prune
from fastkube.api import quantity, times

__all__ = ["DecodeError", "Node", "decode", "definition", "from_openapi", "held", "members", "object_meta", "of", "prune"]

# Lists where upstream tells an empty one from none, though Go leaves both out.
_KEPT_EMPTY = {("autoscaling.v2.HPAScalingRules", "policies"), ("core.v1.PersistentVolumeSpec", "capacity")}
# The same in the metadata of a part: (the part's definition, member of metadata). `kinds.pod_defaults.template` drops it once it cannot be told any more.
_KEPT_EMPTY_METADATA = {("core.v1.PodTemplateSpec", "labels")}

QUANTITIES_MAX = 4096  # texts of quantities whose canonical form is remembered

# code, OpenAPI type and format of the table's type words
_TYPES = {
    "string": (Code.STRING, "string", ""),
    "int32": (Code.INT32, "integer", "int32"),
    "int64": (Code.INT64, "integer", "int64"),
    "bool": (Code.BOOL, "boolean", ""),
    "double": (Code.DOUBLE, "number", "double"),
    "bytes": (Code.BYTES, "string", "byte"),
    "struct": (Code.STRUCT, "object", ""),
    "array": (Code.ARRAY, "array", ""),
    "map": (Code.MAP, "object", ""),
    "quantity": (Code.QUANTITY, "string", "quantity"),
    "time": (Code.TIME, "string", "date-time"),
    "microtime": (Code.MICROTIME, "string", "micro-time"),
    "intstr": (Code.INTSTR, "", "int-or-string"),
    "any": (Code.ANY, "", ""),
    "schemaor": (Code.SCHEMA_OR, "", ""),
}
_GO = {
    "string": "string", "int32": "int32", "int64": "int64", "bool": "bool", "double": "float64", "bytes": "[]uint8", "quantity": "resource.Quantity",
    "time": "v1.Time", "microtime": "v1.MicroTime", "intstr": "intstr.IntOrString", "any": "interface {}", "schemaor": "v1.JSONSchemaProps",
}  # fmt: skip


@functools.cache
def _tables() -> dict[str, Any]:
    return orjson.loads((importlib.resources.files("fastkube.api.data") / "schema.json").read_bytes())


def _place(row: dict[str, Any]) -> Node:
    """The node of one table row."""
    word = row["t"]
    code, type_, format_ = _TYPES[word]
    node = Node(code, type_)
    node.format = format_
    if word == "struct":
        name = row["r"]
        node.definition = name
        node.go = ".".join(name.split(".")[-2:])
        node._loader = functools.partial(_fields, name)
        node.map_type = _tables()["definitions"][name].get("", {}).get("mt", "")
    elif word == "array":
        node.items = _place(row["i"])
        node.go = row.get("g") or f"[]{node.items.go}"
    elif word == "map":
        node.additional = _place(row["v"])
        node.go = row.get("g") or f"map[string]{node.additional.go}"
    else:
        node.go = row.get("g") or _GO[word]
        if word == "schemaor":
            node.additional = definition("apiextensions.v1.JSONSchemaProps")
    node.int_or_string = word == "intstr"
    node.preserve_unknown = word in ("any", "schemaor")
    node.list_type = row.get("lt", "")
    node.map_type = row.get("mt", "") or node.map_type
    node.map_keys = tuple(row.get("lk", ()))
    node.merge_key = row.get("mk", "")
    node.patch_strategy = row.get("ps", "")
    node.embedded = row.get("e", "")
    node.pointer = bool(row.get("p"))
    always = bool(row.get("z"))
    node.omit_empty = not always and not node.pointer and word not in ("struct", "any")
    node.explicit_null = always and (node.pointer or word in ("array", "map", "time", "microtime", "any", "bytes"))
    return node


@functools.cache
def _fields(name: str) -> tuple[dict[str, Node], tuple[tuple[str, Node], ...]]:
    """A definition's fields -> (name -> Node, those that Go always writes). Shared by all places of that type."""
    rows = _tables()["definitions"][name]
    fields = {sys.intern(field): _place(row) for field, row in rows.items() if field}
    for owner, field in _KEPT_EMPTY:
        if owner == name:
            fields[field].omit_empty = False
    for owner, field in _KEPT_EMPTY_METADATA:
        if owner == name:
            fields["metadata"]._loader = functools.partial(_metadata_keeping, field)
    return fields, tuple((field, node) for field, node in fields.items() if rows[field].get("z"))


def _metadata_keeping(field: str) -> tuple[dict[str, Node], tuple[tuple[str, Node], ...]]:
    fields, always = _fields("meta.v1.ObjectMeta")
    own = _place(_tables()["definitions"]["meta.v1.ObjectMeta"][field])
    own.omit_empty = False
    return {**fields, sys.intern(field): own}, always


@functools.cache
def definition(name: str) -> Node:
    """The node of a definition by its short name: "core.v1.PodSpec", "meta.v1.ObjectMeta". KeyError: no built-in kind reaches such a type."""
    _tables()["definitions"][name]
    return _place({"t": "struct", "r": name})


@functools.cache
def of(group: str, version: str, kind: str) -> Node:
    """The node of a built-in kind's objects; KeyError when there is none."""
    return definition(_tables()["kinds"][f"{group}/{version}/{kind}"])


def known(api_version: str, kind: str) -> bool:
    """Whether there is a built-in kind of that name."""
    group, _, version = api_version.rpartition("/")
    return f"{group}/{version}/{kind}" in _tables()["kinds"]


def empty(node: Node) -> Any:
    """What Go writes for a value of this type that nobody has set: a fresh one at each call."""
    return _walker.zero(node)


@functools.cache
def status_of(group: str, kind: str) -> Node | None:
    """The node of a built-in kind's status, where Go always writes one; None otherwise, and for kinds that are not built in."""
    kinds = _tables()["kinds"]
    name = next((kinds[key] for version in ("v2", "v1") if (key := f"{group}/{version}/{kind}") in kinds), None)
    if name is None:
        return None
    return dict(_fields(name)[1]).get("status")


def object_meta() -> Node:
    return definition("meta.v1.ObjectMeta")


def _remember(text: str) -> str:
    try:
        canonical = quantity.canonical(text)
    except quantity.QuantityError as e:
        raise DecodeError(str(e)) from None
    if len(_quantities) >= QUANTITIES_MAX:
        _quantities.clear()
    _quantities[text] = canonical
    return canonical


_quantities: dict[str, str] = {}
_walker = Walker(_remember, _quantities, times.canonical, times.canonical_micro, times.canonical_bytes)


def decode(node: Node, obj: dict[str, Any], strict: bool = True) -> list[str]:
    """Bring `obj` in place into the form Go's decoding into `node`'s type and encoding from it gives -> the strict errors of unknown fields.

    Unknown fields, nulls and empty values that Go leaves out are dropped, values Go always writes are added, quantities, times and bytes
    canonical. Unknown fields are paths (`spec.containers[0].foo`), in document order; [] unless `strict`. Raises DecodeError.
    """
    return _walker.walk(node, obj, strict)


def from_openapi(schema: dict[str, Any]) -> Node:
    """The tree of a structural OpenAPI v3 schema (custom resources). `prune` is for these; `decode` is not: values are checked by `raw`."""
    type_ = schema.get("type") or ""
    node = Node(Code.ANY, type_)
    node.raw = schema
    node.format = schema.get("format") or ""
    node.nullable = bool(schema.get("nullable"))
    node.int_or_string = bool(schema.get("x-kubernetes-int-or-string"))
    node.preserve_unknown = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    node.embedded_resource = bool(schema.get("x-kubernetes-embedded-resource"))
    node.list_type = schema.get("x-kubernetes-list-type") or ""
    node.map_type = schema.get("x-kubernetes-map-type") or ""
    node.map_keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
    properties = schema.get("properties")
    if properties or (type_ == "object" and not isinstance(schema.get("additionalProperties"), (dict, bool))):
        node._properties = {sys.intern(k): from_openapi(v) for k, v in (properties or {}).items()}
    if isinstance(schema.get("items"), dict):
        node.items = from_openapi(schema["items"])
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        node.additional = from_openapi(additional)
    elif additional is True:
        node.preserve_unknown = True
    return node
