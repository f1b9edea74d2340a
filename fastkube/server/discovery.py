"""Discovery: which groups, versions and resources are served (/api, /apis, /api/v1, /apis/GROUP, /apis/GROUP/VERSION).

In the old form, one document per question, and aggregated, everything in one document per root (KEP-3352), with an ETag that clients save asking by.
Documents are made when first asked for and kept until what is served changes: `Discovery` is told so by `changed()`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from fastkube.api.resources import Resource, Subresource
from fastkube.http.message import Response

Object = dict[str, Any]

AGGREGATED_VERSIONS = ("v2", "v2beta1")
_AGGREGATED_TYPE = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"
_JSON = "application/json"

_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")


def version_order(version: str) -> tuple[int, int, int, str]:
    """Sort key that puts v2 before v1 before v2beta1 before v1alpha1 before names that are no versions (apimachinery CompareKubeAwareVersionStrings)."""
    m = _VERSION.fullmatch(version)
    if not m:
        return (3, 0, 0, version)
    return ({None: 0, "beta": 1, "alpha": 2}[m[2]], -int(m[1]), -int(m[3] or 0), version)


def storage_version_hash(resource: Resource) -> str:
    """Says by its change that objects are stored in another version from now on."""
    group, _, version = resource.storage_version.rpartition("/")
    return base64.b64encode(hashlib.sha256(f"{group}/{version}/{resource.kind}".encode()).digest()[:8]).decode()


def accepts_aggregated(accept: str) -> str:
    """The version of the aggregated form that an Accept header asks for first; "" when it wants the old form."""
    for clause in accept.split(","):
        media, *parameters = [p.strip() for p in clause.split(";")]
        given = dict(p.split("=", 1) for p in parameters if "=" in p)
        if media == _JSON and given.get("as") == "APIGroupDiscoveryList":
            if given.get("g") == "apidiscovery.k8s.io" and given.get("v") in AGGREGATED_VERSIONS:
                return given["v"]
        elif media in (_JSON, "*/*", "application/*") and "as" not in given:
            return ""
    return ""


def _kind_reference(group: str, version: str, kind: str, of: Resource) -> Object:
    """A responseKind; group and version are left empty where they are the resource's own."""
    same = (group, version) == (of.group, of.version)
    return {"group": "" if same else group, "version": "" if same else version, "kind": kind}


def aggregated_resource(resource: Resource) -> Object:
    """One APIResourceDiscovery."""
    out: Object = {
        "resource": resource.plural,
        "responseKind": _kind_reference(resource.group, resource.version, resource.kind, resource),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        out["shortNames"] = list(resource.short_names)
    if resource.categories:
        out["categories"] = list(resource.categories)
    if resource.subresources:
        out["subresources"] = [
            {"subresource": s.name, "responseKind": _kind_reference(s.group, s.version, s.kind, resource), "verbs": list(s.verbs)}
            for s in sorted(resource.subresources.values(), key=lambda s: s.name)
        ]
    return out


def legacy_resources(resource: Resource) -> list[Object]:
    """The APIResources of a resource and its subresources, as the old form lists them."""
    out: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        out["shortNames"] = list(resource.short_names)
    if resource.categories:
        out["categories"] = list(resource.categories)
    if "list" in resource.verbs and resource.plural != "componentstatuses":
        out["storageVersionHash"] = storage_version_hash(resource)
    return [out, *(_legacy_subresource(resource, s) for s in resource.subresources.values())]


def _legacy_subresource(resource: Resource, sub: Subresource) -> Object:
    out: Object = {"name": f"{resource.plural}/{sub.name}", "singularName": "", "namespaced": resource.namespaced, "kind": sub.kind, "verbs": list(sub.verbs)}
    if (sub.group, sub.version) != (resource.group, resource.version):
        out |= {"group": sub.group, "version": sub.version}
    return out


Groups = dict[str, dict[str, list[Resource]]]


def grouped(served: Iterable[Resource]) -> Groups:
    """group -> version -> resources. Built-in groups in their own order, custom ones after them by name; versions with the preferred one first."""
    out: Groups = {}
    for r in sorted(served, key=lambda r: (r.custom, r.group if r.custom else "")):
        out.setdefault(r.group, {}).setdefault(r.version, []).append(r)
    for group, versions in out.items():
        out[group] = {v: sorted(versions[v], key=lambda r: r.plural) for v in sorted(versions, key=version_order)}
    return out


class Discovery:
    """Answers what the module is about. `served` gives the resources served now; `address` is where clients reach the server."""

    def __init__(self, served: Callable[[], Iterable[Resource]], address: str = "") -> None:
        self._served = served
        self._address = address
        self.remote: list[tuple[str, str, Any]] = []  # (group, version, aggregation.Remote) of extension servers
        self._groups: Groups | None = None
        self._kept: dict[tuple[str, str], Response] = {}

    def changed(self) -> None:
        """What is served has changed."""
        self._groups = None
        self._kept.clear()

    def answer(self, path: str, accept: str = "", if_none_match: str = "") -> Response | None:
        """The answer to GET `path` (without a trailing slash); None when nothing is discovered there."""
        form = accepts_aggregated(accept) if path in ("/api", "/apis") else ""
        kept = self._kept.get((path, form))
        if kept is None:
            made = self._make(path, form)
            if made is None:
                return None
            kept = self._kept[path, form] = made
        etag = dict(kept.headers).get("ETag", "")
        if etag and etag in [tag.strip() for tag in if_none_match.split(",")]:
            return Response(304, b"", kept.content_type, kept.headers)
        return kept

    @property
    def groups(self) -> Groups:
        if self._groups is None:
            self._groups = grouped(self._served())
        return self._groups

    def _make(self, path: str, form: str) -> Response | None:
        if form:
            body = orjson.dumps(self._aggregated(form, core=path == "/api"))
            etag = f'"{hashlib.sha512(body).hexdigest().upper()}"'
            return Response(200, body, _AGGREGATED_TYPE.format(form), (("ETag", etag), ("Vary", "Accept"), ("Cache-Control", "public")))
        document = self._document(path.strip("/").split("/"))
        return None if document is None else Response(200, orjson.dumps(document), _JSON, (("Vary", "Accept"), ("Cache-Control", "no-cache, private")))

    def _document(self, parts: list[str]) -> Object | None:
        match parts:
            case ["api"]:
                return self._versions()
            case ["apis"]:
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self._group(g) for g in self._names()]}
            case ["api", version] if version in self.groups.get("", {}):
                return {"kind": "APIResourceList", "groupVersion": version, "resources": self._resources("", version)}
            case ["apis", group] if group in self._names():
                return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group)}
            case ["apis", group, version] if group and version in self.groups.get(group, {}):
                return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/{version}", "resources": self._resources(group, version)}
        return None

    def _versions(self) -> Object:
        clients = [{"clientCIDR": "0.0.0.0/0", "serverAddress": self._address}]
        return {"kind": "APIVersions", "versions": list(self.groups.get("", {})), "serverAddressByClientCIDRs": clients}

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*(g for g in self.groups if g), *(g for g, _, _ in self.remote)]))

    def _group(self, group: str) -> Object:
        remote = sorted((v for g, v, _ in self.remote if g == group), key=version_order)
        versions = [{"groupVersion": f"{group}/{v}", "version": v} for v in (*self.groups.get(group, ()), *remote)]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def _resources(self, group: str, version: str) -> list[Object]:
        return sorted((item for r in self.groups[group][version] for item in legacy_resources(r)), key=lambda item: item["name"])

    def _aggregated(self, form: str, core: bool) -> Object:
        items: list[Object] = []
        for group, versions in self.groups.items():
            if (group == "") == core:
                listed = [{"version": v, "resources": [aggregated_resource(r) for r in of], "freshness": "Current"} for v, of in versions.items()]
                items.append({"metadata": {"name": group} if group else {}, "versions": listed})
        for group, version, of in self.remote if not core else ():
            item = next((i for i in items if i["metadata"].get("name") == group), None)
            if item is None:
                items.append(item := {"metadata": {"name": group}, "versions": []})
            item["versions"].append({"version": version, "resources": of.resources, "freshness": "Current" if of.available else "Stale"})
        return {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{form}", "metadata": {}, "items": items}
