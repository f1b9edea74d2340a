"""What the server serves, custom resources included: aggregated discovery, two requests for everything."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import orjson

from fastkube.api import resources
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource, Subresource
from fastkube.client.rest import Client

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(slots=True)
class Served:
    resources: list[Resource] = field(default_factory=list)  # each in its group's preferred version
    kinds: dict[tuple[str, str], Resource] = field(default_factory=dict)  # (apiVersion, kind) -> resource, every version
    stale: list[str] = field(default_factory=list)  # group versions whose server could not be asked


async def served(client: Client) -> Served:
    """Everything that is served now. Raises ApiError."""
    out = Served()
    preferred: set[tuple[str, str]] = set()
    for path in ("/api", "/apis"):
        status, _, body = await client.raw("GET", path, headers={"Accept": AGGREGATED})
        if status != 200:
            raise ApiError(status, "", f"discovery of {path} failed with status {status}")
        for group in orjson.loads(body).get("items") or ():
            name = group["metadata"].get("name") or ""
            for version in group.get("versions") or ():
                if version.get("freshness") == "Stale":
                    out.stale.append(f"{name}/{version['version']}")
                for item in version.get("resources") or ():
                    resource = _resource(name, version["version"], item)
                    out.kinds.setdefault((resource.api_version, resource.kind), resource)
                    if (name, resource.plural) not in preferred:  # the preferred version comes first
                        preferred.add((name, resource.plural))
                        out.resources.append(resource)
    return out


def _resource(group: str, version: str, item: dict[str, Any]) -> Resource:
    builtin = resources.find(group, version, item["resource"])
    if builtin is not None:
        return builtin
    subresources = tuple((s["subresource"], tuple(s.get("verbs") or ())) for s in item.get("subresources") or ())
    kind = (item.get("responseKind") or {}).get("kind") or ""
    return _custom(
        group,
        version,
        item["resource"],
        item.get("singularResource") or "",
        kind,
        item.get("scope") == "Namespaced",
        tuple(item.get("verbs") or ()),
        subresources,
    )


@functools.lru_cache(maxsize=1024)
def _custom(
    group: str,
    version: str,
    plural: str,
    singular: str,
    kind: str,
    namespaced: bool,
    verbs: tuple[str, ...],
    subresources: tuple[tuple[str, tuple[str, ...]], ...],
) -> Resource:
    """One Resource object for one thing served, however often it is discovered: they compare by identity."""
    subs = {name: Subresource(name, sub_verbs, group, version, kind) for name, sub_verbs in subresources}
    return Resource(group, version, plural, singular, kind, namespaced, (), (), verbs, subs, custom=True)
