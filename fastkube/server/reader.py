"""How the server's own parts (authorizers, admission, allocators) read what is stored: decoded objects, cached with the stored bytes.

Objects handed out are shared: whoever wants to change one copies it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from fastkube.api.resources import Resource

Object = dict[str, Any]


class Reader(Protocol):
    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The stored object at the visible revision; None when there is none. Synchronous: everything is in memory."""
        ...

    def list(self, resource: Resource, namespace: str | None = None) -> Iterator[Object]: ...

    def version(self, resource: Resource) -> int:
        """A number that changes whenever an object of `resource` changes: what caches of derived facts compare."""
        ...

    def on_change(self, resource: Resource, callback: Callable[[Object | None, Object | None], None]) -> None:
        """Call `callback(new, old)` on each commit that touches `resource` (new None: deleted), in revision order, synchronously."""
        ...
