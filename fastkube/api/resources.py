"""Which resources there are: the table of built-in ones, and the type that custom ones share.

A `Resource` is one served (group, version, plural). Where several versions or groups serve the same objects (autoscaling v1 and v2,
core and events.k8s.io events), they share one `storage` version and key prefix (behaviours.md S12, upstream's layout).
"""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass, field

import orjson


@dataclass(frozen=True, slots=True)
class Subresource:
    name: str
    verbs: tuple[str, ...]
    group: str
    version: str
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    group: str
    version: str
    plural: str
    singular: str
    kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    subresources: dict[str, Subresource] = field(default_factory=dict)
    storage_version: str = ""  # the apiVersion under which objects are stored, "autoscaling/v2"
    prefix: str = ""  # "/registry/pods/"; a namespaced object's key goes on with NAMESPACE/NAME
    custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def base_path(self) -> str:
        """`/api/v1` or `/apis/GROUP/VERSION`."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        parts = [self.base_path]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
            if subresource:
                parts.append(subresource)
        return "/".join(parts)

    def key(self, namespace: str | None, name: str) -> bytes:
        return f"{self.prefix}{namespace}/{name}".encode() if self.namespaced else f"{self.prefix}{name}".encode()

    def key_prefix(self, namespace: str | None = None) -> bytes:
        return f"{self.prefix}{namespace}/".encode() if self.namespaced and namespace else self.prefix.encode()

    def __str__(self) -> str:
        return f"{self.api_version}/{self.plural}"


# Upstream keeps these apart from the rule /registry/PLURAL/ (groups with generated storage: /registry/GROUP/PLURAL/).
_PREFIXES = {
    ("", "services"): "/registry/services/specs/",
    ("", "endpoints"): "/registry/services/endpoints/",
    ("", "nodes"): "/registry/minions/",
    ("", "replicationcontrollers"): "/registry/controllers/",
    ("events.k8s.io", "events"): "/registry/events/",
    ("networking.k8s.io", "ingresses"): "/registry/ingress/",
    ("networking.k8s.io", "ingressclasses"): "/registry/ingressclasses/",
    ("apiextensions.k8s.io", "customresourcedefinitions"): "/registry/apiextensions.k8s.io/customresourcedefinitions/",
    ("apiregistration.k8s.io", "apiservices"): "/registry/apiregistration.k8s.io/apiservices/",
}
_STORAGE = {("autoscaling", "horizontalpodautoscalers"): "autoscaling/v2", ("events.k8s.io", "events"): "v1"}


def storage_prefix(group: str, plural: str, custom: bool = False) -> str:
    if custom:
        return f"/registry/{group}/{plural}/"
    return _PREFIXES.get((group, plural), f"/registry/{plural}/")


@functools.cache
def builtin() -> tuple[Resource, ...]:
    """Every built-in resource of the GA API, in discovery's order."""
    rows = orjson.loads((importlib.resources.files("fastkube.api.data") / "resources.json").read_bytes())
    out = []
    for r in rows:
        group, version, plural = r["group"], r["version"], r["plural"]
        api_version = f"{group}/{version}" if group else version
        subs = {
            name: Subresource(name, tuple(s["verbs"]), s.get("group", group), s.get("version", version), s["kind"]) for name, s in r["subresources"].items()
        }
        out.append(
            Resource(
                group, version, plural, r["singular"], r["kind"], r["namespaced"], tuple(r["short_names"]), tuple(r["categories"]), tuple(r["verbs"]),
                subs, _STORAGE.get((group, plural), api_version), storage_prefix(group, plural),
            )
        )  # fmt: skip
    return tuple(out)


@functools.cache
def _by_path() -> dict[tuple[str, str, str], Resource]:
    return {(r.group, r.version, r.plural): r for r in builtin()}


def find(group: str, version: str, plural: str) -> Resource | None:
    """The built-in resource of that name; None when there is none."""
    return _by_path().get((group, version, plural))


@functools.cache
def parse(text: str) -> Resource:
    """`"v1/pods"`, `"apps/v1/deployments"` -> the built-in resource; KeyError when there is none."""
    *group, version, plural = text.split("/")
    return _by_path()[(group[0] if group else "", version, plural)]
