"""How an object looks inside upstream's server: its internal Go types, which some error messages print as JSON.

Internal types have no JSON tags, so their members carry Go's names, stand in Go's order and are all there, empty ones too. `data/internal.json` says for
each type "GoName" (where the API's name is the same with a small first letter) or "GoName=name"; "*meta" is an embedded ObjectMeta, which has tags and
lies flat, "^name" a field that the API keeps one level up.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
from typing import Any

import orjson

from fastkube.api import schema
from fastkube.api.schema import Node

Object = dict[str, Any]


@functools.cache
def _tables() -> dict[str, str]:
    return orjson.loads((importlib.resources.files("fastkube.api.data") / "internal.json").read_bytes())


@functools.cache
def _fields(definition: str) -> list[tuple[str, str]] | None:
    """(Go's name, the API's) of a type's members, in Go's order; None for a type that is printed as the API has it (meta/v1)."""
    text = _tables().get(definition)
    if text is None:
        return None
    out = []
    for word in text.split():
        go, _, name = word.partition("=")
        out.append((go, name or go[0].lower() + go[1:]))
    return out


def view(definition: str, value: Any) -> Any:
    """A value of the type `definition` ("core.v1.PodSpec") as its internal Go type would be printed. `value` is left alone."""
    return _struct(definition, schema.definition(definition), value, {}) if isinstance(value, dict) else value


def _struct(definition: str, node: Node, value: Object, outer: Object) -> Any:
    members = _fields(definition)
    if members is None:
        return value
    properties = node.properties or {}
    out: Object = {}
    for go, name in members:
        if go == "*meta":
            out.update({k: v for k, v in (value.get("metadata") or {}).items() if v is not None})
        elif name.startswith("^"):
            given = outer.get(name[1:])
            out[go] = given if given is not None else None if name in ("^shareProcessNamespace", "^hostUsers") else False
        elif name in properties:
            out[go] = _value(properties[name], value.get(name), value)
    return out


def _value(node: Node, value: Any, outer: Object) -> Any:
    if node.definition:
        if value is None:
            return None if node.pointer else _struct(node.definition, node, {}, outer)
        return _struct(node.definition, node, value, outer)
    if value is None:
        return None if node.pointer else {"string": "", "boolean": False, "integer": 0, "number": 0}.get(node.type) if node.format != "quantity" else "0"
    if node.items is not None:
        return [_value(node.items, item, {}) for item in value]
    if node.additional is not None:
        return {k: _value(node.additional, value[k], {}) for k in sorted(value)}
    return value


def _lines(definition: str, value: Object, only: frozenset[str] | None) -> list[str]:
    shown = view(definition, value)
    if only is not None:
        shown = {go: shown[go] for go, name in _fields(definition) or () if name in only}
    text = json.dumps(shown, indent=1, ensure_ascii=False).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return (text + "\n").splitlines(keepends=True)


def difference(definition: str, new: Object, old: Object, only: frozenset[str] | None = None) -> str:
    """What differs between two values of a type (in the members `only`), as a unified diff of their internal form, three lines around each change."""
    return "".join(list(difflib.unified_diff(_lines(definition, old, only), _lines(definition, new, only), n=3))[2:])
