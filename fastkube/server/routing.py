"""Method and path -> RequestInfo, as upstream's RequestInfoFactory reads them (k8s.io/apiserver/pkg/endpoints/request).

`Resources` knows what is served: the built-in table and the custom resources that are established now.
"""

from __future__ import annotations

from fastkube.api import resources
from fastkube.api.resources import Resource
from fastkube.http.message import Request
from fastkube.server.request import RequestInfo

PATH_SEGMENTS_MAX = 64

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_SUBRESOURCES = ("status", "finalize")
_NAME_FIELD = "metadata.name="


class Resources:
    """The resources that are served now, by (group, version, plural). `custom` is kept by the custom resource room."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in resources.builtin()}

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._served.get((group, version, plural))

    def by_kind(self, group: str, version: str, kind: str) -> Resource | None:
        return next((r for r in self._served.values() if r.kind == kind and r.version == version and r.group == group and "get" in r.verbs), None)

    def add(self, resource: Resource) -> None:
        self._served[resource.group, resource.version, resource.plural] = resource

    def remove(self, resource: Resource) -> None:
        self._served.pop((resource.group, resource.version, resource.plural), None)

    def all(self) -> list[Resource]:
        return list(self._served.values())

    def groups(self) -> set[tuple[str, str]]:
        """(group, version) of all that is served."""
        return {(g, v) for g, v, _ in self._served}


def parse(request: Request, served: Resources) -> RequestInfo:
    """What `request` asks for. Unknown resources have `spec` None; paths outside /api and /apis are not resources."""
    method, path = request.method, request.path
    parts = path.split("/", PATH_SEGMENTS_MAX)
    del parts[0]
    if parts and not parts[-1]:
        parts.pop()
    count = len(parts)
    if parts and parts[0] == "api" and count >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts and parts[0] == "apis" and count >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return RequestInfo(method.lower(), path)
    verb = _VERBS.get(method, method.lower())
    if rest[0] == "watch" and len(rest) > 1:  # the old form /api/v1/watch/...
        rest = rest[1:]
        verb = "watch"
    namespace = ""
    if rest[0] == "namespaces":
        if len(rest) > 1:
            namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    plural = rest[0]
    depth = len(rest)
    name = rest[1] if depth > 1 else ""
    subresource = rest[2] if depth > 2 else ""
    info = RequestInfo(verb, path, True, group, version, plural, subresource, namespace, name, "", served.find(group, version, plural))
    if depth > 3:
        info.tail = "/" + path.split("/" + subresource + "/", 1)[-1] if subresource == "proxy" else "/".join(rest[3:])
    if request.raw_query and depth <= 2 and verb in ("get", "watch", "delete"):
        info.label_selector = request.param("labelSelector")
        info.field_selector = request.param("fieldSelector")
    if not name and verb in ("get", "watch"):
        if verb == "get":
            info.verb = "watch" if _true(request.param("watch")) else "list"
        if _NAME_FIELD in info.field_selector:
            info.name = next((f.removeprefix("metadata.name=").removeprefix("=") for f in info.field_selector.split(",") if f.startswith(_NAME_FIELD)), "")
    elif not name and verb == "delete":
        info.verb = "deletecollection"
    return info


def _true(text: str) -> bool:
    return text in ("true", "1", "True", "TRUE", "t", "T") if text else False
