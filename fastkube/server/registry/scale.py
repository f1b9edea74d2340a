"""The scale subresource: Scale objects made out of, and written back into, workloads (upstream's ScaleREST of each)."""

from __future__ import annotations

from typing import Any

from fastkube.api import errors, selectors
from fastkube.server.registry.endpoint import Endpoint

Object = dict[str, Any]


def of(endpoint: Endpoint, obj: Object, paths: tuple[str, str, str] = (".spec.replicas", ".status.replicas", "")) -> Object:
    """The Scale of a stored object (served version). `paths`: where a custom kind keeps desired, observed replicas and its selector."""
    meta = obj["metadata"]
    spec_path, status_path, selector_path = paths
    scale: Object = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp") if k in meta},
        "spec": {},
        "status": {"replicas": _at(obj, status_path) or 0},
    }
    replicas = _at(obj, spec_path)
    if replicas:
        scale["spec"]["replicas"] = replicas
    if endpoint.resource.custom:
        selector = _at(obj, selector_path) if selector_path else ""
    elif endpoint.plural == "replicationcontrollers":
        selector = str(selectors.from_set(obj["spec"].get("selector")))
    else:
        selector = str(selectors.from_object(obj["spec"].get("selector")))
    if selector:
        scale["status"]["selector"] = selector
    return scale


def write(endpoint: Endpoint, obj: Object, scale: Object, spec_path: str = ".spec.replicas") -> Object:
    """The object with the Scale's wish in it (a copy). ApiError 422."""
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        raise errors.invalid(
            "Scale", "autoscaling", obj["metadata"]["name"], [errors.invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")]
        )
    keys = spec_path.lstrip(".").split(".")
    out = place = dict(obj)
    for key in keys[:-1]:
        place[key] = place = dict(place.get(key) or {})
    place[keys[-1]] = replicas
    meta = out["metadata"] = dict(out["metadata"])
    version = (scale.get("metadata") or {}).get("resourceVersion")
    meta.pop("resourceVersion", None)
    if version:
        meta["resourceVersion"] = version
    return out


def _at(obj: Object, path: str) -> Any:
    value: Any = obj
    for key in path.lstrip(".").split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
