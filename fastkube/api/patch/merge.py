"""JSON merge patch (RFC 7386): members of the patch replace, null deletes, objects merge, lists are values."""

from __future__ import annotations

from fastkube.api.patch import Object, bounded, decode


@bounded
def apply(obj: Object, patch: bytes) -> Object:
    """`obj` (owned) with `patch` merged in. ApiError 400 when the patch is no JSON object."""
    merge(obj, decode(patch, dict, "map[string]interface {}"))
    return obj


def merge(target: Object, patch: Object) -> None:
    """Merge `patch` into `target`, both owned."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            inner = target.get(key)
            if not isinstance(inner, dict):
                inner = target[key] = {}
            merge(inner, value)
        else:
            target[key] = value
