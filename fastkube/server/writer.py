"""How the server's own parts (bootstrap, quota) write: through the pipeline's registry, as the server itself, past authentication and authorization.

Defaults, validation, allocation of addresses and durable storage apply as for anybody; admission does not (the server's own objects must be there
before admission can work). Every method returns once the write is durable and visible; ApiError on refusal.
"""

from __future__ import annotations

from typing import Any, Protocol

from fastkube.api.resources import Resource

Object = dict[str, Any]


class Writer(Protocol):
    async def create(self, resource: Resource, obj: Object) -> Object:
        """409 AlreadyExists when it is there."""
        ...

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        """Holds the object to its metadata.resourceVersion when it has one: 409 Conflict."""
        ...

    async def delete(self, resource: Resource, namespace: str | None, name: str) -> None: ...
