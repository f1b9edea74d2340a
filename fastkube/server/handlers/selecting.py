"""namespace, name, labelSelector and fieldSelector of a request -> `Selected`: which keys, and which of the versions there.

metadata.name and metadata.namespace narrow the key range; all else is decided by the `Selection` kernel on digests.
"""

from __future__ import annotations

from typing import Any

from fastkube._ext.selection import Selection
from fastkube.api import selectors
from fastkube.http.message import Request
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.registry.indexes import Term


class Selected:
    """Keys in [start, end), or the one `key`; of them those that the selectors take."""

    __slots__ = ("_selection", "end", "everything", "field", "key", "start", "term")

    def __init__(
        self, start: bytes, end: bytes, key: bytes = b"", selection: Selection | None = None, field: tuple[str, str] | None = None, term: Term | None = None
    ) -> None:
        self.start = start
        self.end = end
        self.key = key
        self.field = field  # (name, value) of a field that must have one value, where the range is all of the resource
        self.term = term  # a requirement that an index can answer
        self._selection = selection
        self.everything = selection is None

    def takes(self, kv: Any) -> bool:
        return self._selection is None or self._selection.matches(kv)

    def filter(self, kvs: list[Any]) -> list[Any]:
        return kvs if self._selection is None else self._selection.filter(kvs)


def select(endpoint: Endpoint, request: Request) -> Selected:
    """ApiError 400 when a selector cannot be parsed or names a field that the kind does not have."""
    info = request.info
    namespace = info.namespace if endpoint.resource.namespaced else ""
    requirements: list[tuple[bool, str, str, Any]] = []
    if info.label_selector:
        requirements += [(False, r.operator, r.key, r.values) for r in selectors.parse_labels(info.label_selector).requirements]
    name, only = "", None
    if info.field_selector:
        for field, value, equal in selectors.parse_fields(info.field_selector, endpoint.selectable).terms:
            if equal and field == "metadata.name" and not name and value:
                name = value
            elif equal and field == "metadata.namespace" and not namespace and value and endpoint.resource.namespaced:
                namespace = value
                requirements.append((True, "in", field, (value,)))
            else:
                requirements.append((True, "in" if equal else "notin", field, (value,)))
                if equal and only is None:
                    only = (field, value)
    elif info.name:  # the old form /watch/.../NAME
        name = info.name
    start, end = endpoint.range(namespace)
    key = b""
    if name:
        if namespace or not endpoint.resource.namespaced:
            key = endpoint.resource.key(namespace, name)
        else:
            requirements.append((True, "in", "metadata.name", (name,)))
    return Selected(
        start, end, key, Selection(requirements, endpoint.digest_of) if requirements else None, None if key or namespace else only, _term(requirements)
    )


def _term(requirements: list[tuple[bool, str, str, Any]]) -> Term | None:
    """The requirement that names values to have, if there is one."""
    for on_fields, operator, name, values in requirements:
        if operator == "in" and name != "metadata.namespace":
            return on_fields, name, frozenset(values)
    return None
