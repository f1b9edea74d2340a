"""Strategic merge patch: a merge patch that knows, from the schema, which lists merge item by item and by which key.

Directives (kubernetes/community: contributors/devel/sig-api-machinery/strategic-merge-patch.md):
  $patch: replace | delete | merge       in an object, or as an item of a merging list
  $deleteFromPrimitiveList/FIELD: [..]   values to take out of a merging list of scalars
  $setElementOrder/FIELD: [..]           the order of a merging list's items (scalars, or objects with just the merge key)
  $retainKeys: [..]                      the only fields of this object that stay
"""

from __future__ import annotations

from typing import Any

from fastkube.api.errors import ApiError
from fastkube.api.patch import Object, bounded, decode
from fastkube.api.schema import Node

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_DELETE_FROM = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


@bounded
def apply(obj: Object, patch: bytes, schema: Node) -> Object:
    """`obj` (owned) with `patch` merged in, by the schema of its kind. ApiError 400 (malformed), 422 (what cannot be merged)."""
    return _merge_map(obj, decode(patch, dict, "map[string]interface {}"), schema)


def _bad_format(directive: str) -> ApiError:
    return ApiError(400, "BadRequest", f"invalid patch format of {directive} list")


def _unprocessable(message: str) -> ApiError:
    return ApiError(422, "Invalid", message, {})


def _child(schema: Node | None, key: str) -> Node | None:
    """The schema of member `key`: a property's, or that of a map's values."""
    if schema is None:
        return None
    return (schema.properties or {}).get(key) or schema.additional


def _merges(field: Node | None) -> bool:
    return field is not None and "merge" in field.patch_strategy.split(",")


def _replaces(field: Node | None) -> bool:
    return field is not None and "replace" in field.patch_strategy.split(",")


def _merge_map(target: Object, patch: Object, schema: Node | None) -> Object:
    """`target` and `patch` merged; which of the two is returned is not said."""
    if _PATCH in patch:
        directive = patch.pop(_PATCH)
        if directive == "replace":
            return patch
        if directive == "delete":
            return {}
        if directive != "merge":
            raise _unprocessable(f"unknown patch type found: {directive}")
    _retain_keys(target, patch)
    _ordered_lists(target, patch, schema)
    for key, value in patch.items():
        if key.startswith(_DELETE_FROM):
            _delete_scalars(target, key.removeprefix(_DELETE_FROM), value)
            continue
        if value is None:
            target.pop(key, None)
            continue
        field = _child(schema, key)
        before = target.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and not _replaces(field):
            target[key] = _merge_map(before, value, field)
        elif isinstance(value, list) and isinstance(before, list) and field is not None and _merges(field):
            target[key] = _merge_list(before, value, field)
        else:
            target[key] = _plain(value)
    return target


def _retain_keys(target: Object, patch: Object) -> None:
    if _RETAIN not in patch:
        return
    retained = patch.pop(_RETAIN)
    if not isinstance(retained, list):
        raise _bad_format("retainKeys")
    if any(v is not None and k not in retained and not k.startswith((_DELETE_FROM, _ORDER)) for k, v in patch.items()):
        raise _bad_format("retainKeys")
    for key in [k for k in target if k not in retained]:
        del target[key]


def _delete_scalars(target: Object, key: str, values: Any) -> None:
    if not isinstance(values, list):
        raise _bad_format("primitive")
    if isinstance(before := target.get(key), list):
        target[key] = [item for item in before if item not in values]


def _plain(value: Any) -> Any:
    """A patch's value where nothing stands to merge it with: directives and nulls fall away, and an object with $patch is empty (upstream's quirk)."""
    if isinstance(value, dict):
        return (
            {} if _PATCH in value else {k: _plain(v) for k, v in value.items() if v is not None and k != _RETAIN and not k.startswith((_DELETE_FROM, _ORDER))}
        )
    if isinstance(value, list):
        return [_plain(item) for item in value if not (isinstance(item, dict) and _PATCH in item)]
    return value


def _ordered_lists(target: Object, patch: Object, schema: Node | None) -> None:
    """Merge each list that comes with $setElementOrder, order it, and take both out of `patch`."""
    for directive in [k for k in patch if k.startswith(_ORDER)]:
        order, key = patch.pop(directive), directive.removeprefix(_ORDER)
        before, change = target.get(key), patch.pop(key, None)
        if not isinstance(order, list) or not isinstance(before, list | None) or not isinstance(change, list | None):
            raise _bad_format("setElementOrder")
        field = _child(schema, key)
        merge_key = field.merge_key if field is not None else ""
        _check_order(change or [], order, merge_key)
        if before is None and change is None:
            continue
        if change is None:
            merged = before
        elif before is None:
            merged = _plain(change)
        else:
            merged = _merge_list(list(before), change, field) if field is not None and _merges(field) else change
        target[key] = _in_order(merged or [], order, before or [], merge_key)


def _check_order(change: list[Any], order: list[Any], merge_key: str) -> None:
    """The items of a patched list must come in the order that $setElementOrder gives."""
    wanted = iter([_identity(item, merge_key) for item in order])
    kept = [item for item in change if not (isinstance(item, dict) and _PATCH in item)]
    if not all(any(_identity(item, merge_key) == w for w in wanted) for item in kept):
        raise ApiError(400, "BadRequest", f"The order in patch list:\n{kept}\n doesn't match $setElementOrder list:\n{order}\n")


def _identity(item: Any, merge_key: str) -> Any:
    """What makes two items of a merging list the same: the merge key's value, or the scalar itself."""
    if not merge_key:
        return item
    if not isinstance(item, dict):
        raise _bad_format("setElementOrder")
    if merge_key not in item:
        raise _unprocessable(f"map: {item} does not contain declared merge key: {merge_key}")
    return item[merge_key]


def _merge_list(before: list[Any], change: list[Any], field: Node) -> list[Any]:
    if any(isinstance(item, list) for item in (*before, *change)):
        raise _unprocessable("lists of lists are not supported")
    if len({isinstance(item, dict) for item in (*before, *change)}) > 1:
        raise _unprocessable("list element types are not identical")
    if not any(isinstance(item, dict) for item in (*before, *change)):
        merged = list(dict.fromkeys([*before, *change]))
        return _in_order(merged, change, before, "")
    key = field.merge_key
    if not key:
        raise _unprocessable("cannot merge lists without merge key")
    before, change = _list_directives(before, change, key)
    merged = list(before)
    for item in change:
        identity = _identity(item, key)
        at = next((i for i, old in enumerate(merged) if old.get(key) == identity), -1)
        if at < 0:
            item.pop(_PATCH, None)
            merged.append(_plain(item))
        else:
            merged[at] = _merge_map(merged[at], item, field.items)
    return _in_order(merged, change, before, key)


def _list_directives(before: list[Any], change: list[Any], key: str) -> tuple[list[Any], list[Any]]:
    """Carry out the items of `change` that are directives: -> (what stands, what is to be merged into it)."""
    plain, replace = [], False
    for item in change:
        directive = item.get(_PATCH)
        if _PATCH not in item or (directive == "merge" and key in item):
            plain.append(item)
        elif directive == "delete":
            identity = _identity(item, key)
            before = [old for old in before if old.get(key) != identity]
        elif directive == "replace":
            replace = True
        else:
            raise _unprocessable(f"unknown patch type found: {directive}")
    return ([], plain) if replace else (before, plain)


def _in_order(merged: list[Any], order: list[Any], live: list[Any], merge_key: str) -> list[Any]:
    """The items that `order` names in its order, the others in the order of `live`, interleaved so that both orders hold and an item
    of `live` alone stands before the first ordered one that follows it in `live`."""
    rank = {_hashable(_identity(item, merge_key)): i for i, item in reversed(list(enumerate(order)))}
    place = {_hashable(_identity(item, merge_key)): i for i, item in reversed(list(enumerate(live)))}
    ids = [_hashable(_identity(item, merge_key)) for item in merged]
    asked = sorted((i for i in range(len(merged)) if ids[i] in rank), key=lambda i: rank[ids[i]])
    others = sorted((i for i in range(len(merged)) if ids[i] not in rank), key=lambda i: place.get(ids[i], len(live)))
    out, at = [], 0
    for i in asked:
        here = place.get(ids[i])
        while here is not None and at < len(others) and place.get(ids[others[at]], len(live)) < here:
            out.append(others[at])
            at += 1
        out.append(i)
    return [merged[i] for i in (*out, *others[at:])]


def _hashable(value: Any) -> Any:
    return value if not isinstance(value, (dict, list)) else repr(value)
