"""The one interface of admission plugins."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar

from fastkube.api import errors
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.server.request import AdmissionAttributes

CREATE, UPDATE, DELETE, CONNECT = "CREATE", "UPDATE", "DELETE", "CONNECT"


class Plugin:
    """Override `handles` and one or both of `admit` (may change `attributes.obj` in place) and `validate` (must not).

    Either may be a coroutine function. Both raise ApiError to refuse. `name` is upstream's, for --enable-admission-plugins.
    """

    name: ClassVar[str] = ""
    admit: Any = None
    validate: Any = None
    run: Any = None  # a task body, when the plugin has work of its own

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        """Whether this plugin has a part in such writes; asked once per combination."""
        raise NotImplementedError


Step = Any  # Callable[[AdmissionAttributes], Awaitable[None] | None]
Answer = Awaitable[None] | None


def forbidden(attributes: AdmissionAttributes, why: str) -> ApiError:
    """403 in the words of admission.NewForbidden: names the object by its name, or else its generateName."""
    name = attributes.name
    if not name and attributes.obj:
        meta = attributes.obj.get("metadata") or {}
        name = meta.get("name") or meta.get("generateName") or ""
    return errors.forbidden(attributes.resource.plural, attributes.resource.group, name, why)


def is_a(resource: Resource, group: str, *plurals: str) -> bool:
    return resource.group == group and resource.plural in plurals
