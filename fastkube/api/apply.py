"""Server-side apply: an applier says what it wants of an object, the server merges it in and remembers who owns which field.

`apply` is pure. Its laws (structured-merge-diff; kubernetes.io/docs/reference/using-api/server-side-apply):

1. What the configuration holds is the applier's from here on, and nothing else is.
2. A field that it changes and somebody else owns is a conflict: 409 naming field and owner, unless forced, which takes the field over.
   A field of somebody else's that it sets to the value it has is shared.
3. A field that this applier owned and no longer applies goes, unless another applier holds it too.
4. What is owned as a whole (scalars, atomic lists and maps) is replaced, list maps merge by key, sets by value, objects by name.
"""

from __future__ import annotations

from typing import Any

import orjson

from fastkube._ext import fieldset
from fastkube.api import managedfields
from fastkube.api.errors import ApiError
from fastkube.api.managedfields import AtVersion, Conflict, Manager, Managers, Object, Owned, Set
from fastkube.api.patch import bounded
from fastkube.api.schema import Node

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
ANNOTATIONS_BYTES_MAX = 256 * 1024
_BEFORE = "before-first-apply"


@bounded
def apply(
    live: Object | None,
    applied: Object,
    manager: str,
    force: bool,
    schema: Node | None,
    *,
    api_version: str,
    time: str,
    subresource: str = "",
    ignore: Set | None = None,
    at_version: AtVersion | None = None,
) -> Object:
    """The object that `applied` makes of `live` (None: there is none), with its managedFields; not yet decoded nor defaulted.

    `applied` is the request's document as it was sent (no defaults). ApiError 400 (not applicable) or 409 (conflicts). Neither argument
    is changed; the result shares parts with both.
    """
    _check(applied, api_version, schema)
    if live is None:
        live = {"apiVersion": applied.get("apiVersion"), "kind": applied.get("kind"), "metadata": {}}
        managers: Managers = {}
    else:
        managers = managedfields.decode(live.get("metadata", {}).get("managedFields") or [])
        if not managers:
            before, _ = fieldset.compare(managedfields.zero(schema), live, schema)
            managers = {Manager(_BEFORE, "Update", api_version, ""): Owned(before, api_version, time)} if before else {}
    fields = _fields(applied, schema)
    if ignore:
        fields = fieldset.recursive_difference(fields, ignore)
    me = Manager(manager, "Apply", "", subresource)
    last = managers.get(me)
    managers[me] = Owned(fields, api_version, last.time if last else "")
    merged = _merge_fields(live, applied, schema)
    if last and last.fields:
        merged = _prune(merged, applied, managers, last, schema)
    changed, removed = fieldset.compare(live, merged, schema)
    if ignore:
        changed, removed = fieldset.recursive_difference(changed, ignore), fieldset.recursive_difference(removed, ignore)
    if not force:
        _refuse_conflicts(live, managers, me, changed, schema)
    managers = managedfields.disown(
        managers, fieldset.union(changed, removed), api_version, managedfields.elsewhere(live, merged, managers, api_version, at_version), keep=me
    )
    if changed or removed or merged != live:
        managers[me] = managers[me]._replace(time=time)
    meta = {k: v for k, v in (merged.get("metadata") or {}).items() if k != "managedFields"}
    if entries := managedfields.encode(managers):
        meta["managedFields"] = entries
    if manager == "kubectl" and LAST_APPLIED in (live.get("metadata", {}).get("annotations") or {}):
        meta["annotations"] = _with_last_applied(meta.get("annotations") or {}, applied)
    return {**merged, "metadata": meta}


def _check(applied: Object, api_version: str, schema: Node | None) -> None:
    if applied.get("apiVersion") != api_version:
        message = f"Incorrect version specified in apply patch. Specified patch version: {applied.get('apiVersion') or ''}, expected: {api_version}"
        raise ApiError(400, "BadRequest", message)
    meta = applied.get("metadata")
    if isinstance(meta, dict) and meta.get("managedFields") is not None:
        raise ApiError(400, "BadRequest", "metadata.managedFields must be nil")
    if schema is not None and (problem := _misfit(applied, schema, "")):
        raise _untyped(applied, problem)


def _untyped(applied: Object, problem: str) -> ApiError:
    meta = applied.get("metadata") or {}
    where = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {applied.get('apiVersion')}, Kind={applied.get('kind')}"
    return ApiError(400, "BadRequest", f"failed to create typed patch object ({where}): {problem}")


def _misfit(value: Any, node: Node | None, path: str) -> str:
    """The first place of a configuration that its schema does not know or that is of another type; "" when it fits."""
    if node is None or value is None or node.preserve_unknown or (not node.type and node.properties is None):
        return ""
    if node.properties is not None or node.additional is not None:
        if not isinstance(value, dict):
            return f"{path or '.'}: expected map, got {_shown(value)}"
        for key, item in value.items():
            child = (node.properties or {}).get(key) or node.additional
            if child is None and not node.embedded_resource and not (not path and key in ("apiVersion", "kind", "metadata")):
                return f"{path}.{key}: field not declared in schema"
            if problem := _misfit(item, child, f"{path}.{key}"):
                return problem
    elif node.items is not None:
        if not isinstance(value, list):
            return f"{path}: expected list, got {_shown(value)}"
        for i, item in enumerate(value):
            if problem := _misfit(item, node.items, f"{path}[{i}]"):
                return problem
    elif isinstance(value, (dict, list)) and node.type in ("string", "integer", "number", "boolean"):
        return f"{path}: expected {node.type}, got {_shown(value)}"
    return ""


def _shown(value: Any) -> str:
    return f"&{{{orjson.dumps(value).decode()}}}"


def _fields(applied: Object, schema: Node | None) -> Set:
    try:
        return fieldset.of(applied, schema)
    except ValueError as e:
        raise _untyped(applied, str(e)) from None


def _refuse_conflicts(live: Object, managers: Managers, me: Manager, changed: Set, schema: Node | None) -> None:
    """Raise the 409 when `changed` touches what others own. What kubectl applied client-side before counts as kubectl's own."""
    allowed: Set = {}
    if me.name == "kubectl":
        allowed = _applied_before(live, schema)
    conflicts = []
    for who, owned in managers.items():
        if who != me:
            taken = fieldset.difference(fieldset.intersection(owned.fields, changed), allowed)
            conflicts += [Conflict(who, owned.version, path) for path in managedfields.paths(taken)]
    if conflicts:
        raise managedfields.conflict_error(sorted(conflicts, key=lambda c: c.described()))


def _applied_before(live: Object, schema: Node | None) -> Set:
    """The fields that kubectl's last client-side apply set and that still are as it set them."""
    text = (live.get("metadata", {}).get("annotations") or {}).get(LAST_APPLIED)
    try:
        before = orjson.loads(text or "null")
        if not isinstance(before, dict):
            return {}
        held = fieldset.of(before, schema)
        changed, removed = fieldset.compare(before, live, schema)
    except (ValueError, TypeError):
        return {}
    return fieldset.difference(held, fieldset.union(changed, removed))


def _with_last_applied(annotations: Object, applied: Object) -> Object:
    """kubectl's annotation kept true, so that a client-side apply after this one still knows what was applied; dropped when too big."""
    kept = {k: v for k, v in annotations.items() if k != LAST_APPLIED}
    text = orjson.dumps(applied, option=orjson.OPT_SORT_KEYS).decode() + "\n"
    if sum(len(k.encode()) + len(str(v).encode()) for k, v in kept.items()) + len(LAST_APPLIED) + len(text.encode()) <= ANNOTATIONS_BYTES_MAX:
        kept[LAST_APPLIED] = text
    return kept


# Merging.


def _child(node: Node | None, key: str) -> Node | None:
    return None if node is None else (node.properties or {}).get(key) or node.additional


def _merge_fields(live: Object, applied: Object, node: Node | None) -> Object:
    out = dict(live)
    for key, value in applied.items():
        out[key] = _merge(live[key], value, _child(node, key)) if key in live else value
    return out


def _merge(live: Any, applied: Any, node: Node | None) -> Any:
    how = fieldset.form(node, applied if applied is not None else live)
    if how == "leaf" or (not live and not applied):
        return applied
    if applied is None or live is None:
        return live if applied is None else applied
    if type(live) is not type(applied):
        return applied
    if how == "fields":
        return _merge_fields(live, applied, node)
    assert node is not None  # only a schema makes a list more than a leaf
    return _merge_items(live, applied, node)


def _merge_items(live: list[Any], applied: list[Any], node: Node) -> list[Any]:
    """Items of both, merged where they are the same. The applied order holds among the applied; what is only in `live` keeps its place
    relative to those around it."""
    old = [fieldset.element(node, item) for item in live]
    new = [fieldset.element(node, item) for item in applied]
    of_old = {name: item for name, item in zip(old, live, strict=True) if old.count(name) == 1}
    wanted, standing = set(new), set(old)
    shared = [name for name in new if name in standing]
    done: set[str] = set()
    out: list[Any] = []

    def take(at: int) -> None:
        name, item = new[at], applied[at]
        done.add(name)
        out.append(_merge(of_old[name], item, node.items) if node.list_type == "map" and name in of_old else item)
        if shared and shared[0] == name:
            shared.pop(0)

    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new):
            if old[i] == new[j]:
                take(j)
                i, j = i + 1, j + 1
                continue
            if old[i] in wanted and shared and shared[0] != old[i]:
                i += 1  # its turn comes in the applied order
                continue
        if i < len(old):
            if old[i] not in wanted:
                out.append(live[i])
                i += 1
                continue
            if old[i] in done:
                i += 1
        if j < len(new):
            take(j)
            j += 1
    return out


# Pruning.


def _prune(merged: Object, config: Object, managers: Managers, last: Owned, schema: Node | None) -> Object:
    """`merged` without what this applier held at its last apply and nobody applies now."""

    def everything(obj: Object) -> Set:
        return _with_structs(fieldset.of(obj, schema, False, False), schema)

    held, whole, applied = _with_structs(last.fields, schema), everything(merged), everything(config)
    for who, owned in managers.items():
        if who.operation == "Apply":
            applied = fieldset.union(applied, _with_structs(owned.fields, schema))
    bare = everything(_without(merged, held, schema))
    kept = everything(_without(merged, fieldset.difference(whole, fieldset.union(bare, applied)), schema, applied))
    return _without(merged, fieldset.intersection(fieldset.difference(whole, kept), held), schema, applied)


def _with_structs(fields: Set, node: Node | None) -> Set:
    """`fields` with each named field that has children as a member too."""
    out: Set = {}
    properties = node.properties if node is not None else None
    for name, inner in fields.items():
        if name == "." or not inner:
            out[name] = inner
            continue
        child = None
        if node is not None:
            child = _child(node, name[2:]) if name.startswith("f:") else node.items
        deeper = _with_structs(inner, child)
        if "." not in deeper and properties is not None and name.startswith("f:") and name[2:] in properties:
            deeper["."] = {}
        out[name] = deeper
    return out


def _without(value: Any, fields: Set, node: Node | None, applied: Set | None = None) -> Any:
    """`value` without the members of `fields`; an object that loses all it had goes too, unless it is a member of `applied`."""
    applied = applied or {}
    if isinstance(value, dict):
        out = {}
        for key, item in value.items():
            inner = fields.get("f:" + key)
            if inner is None:
                out[key] = item
            elif inner and "." not in inner:
                still = applied.get("f:" + key)
                rest = _without(item, inner, _child(node, key), still)
                if rest or not item or (still is not None and (not still or "." in still)):
                    out[key] = rest
        return out
    if isinstance(value, list) and node is not None and fieldset.form(node, value) != "leaf":
        items = []
        for item in value:
            name = fieldset.element(node, item)
            inner = fields.get(name)
            if inner is None:
                items.append(item)
            elif inner and "." not in inner:
                items.append(_without(item, inner, node.items, applied.get(name)))
        return items
    return value
