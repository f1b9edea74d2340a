"""What files a configMap, secret, downwardAPI or projected volume holds: pure functions from the objects to `atomic.File`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastkube.node import env, podspec
from fastkube.node.volumes.atomic import BadPath, File

Object = dict[str, Any]

MODE_DEFAULT = 0o644
TOKEN_SECONDS_DEFAULT = 3600


class VolumeError(Exception):
    """The volume cannot be set up; the text follows `MountVolume.SetUp failed for volume "NAME" : `."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where contents come from. `lookup(kind, name)` gives a ConfigMap or Secret of the pod's namespace or None; `token(audience,
    seconds)` a service-account token that was fetched before."""

    lookup: Callable[[str, str], Object | None]
    token: Callable[[str, int], str]
    status: Mapping[str, Any]
    allocatable: Mapping[str, float]


def of_volume(pod: Object, volume: Object, sources: Sources) -> dict[str, File]:
    """The files of a volume; VolumeError when something that is not optional is missing."""
    namespace = pod["metadata"].get("namespace", "default")
    if "configMap" in volume:
        source = volume["configMap"]
        return _keyed("configmap", source, source.get("name", ""), source.get("defaultMode"), sources, namespace)
    if "secret" in volume:
        source = volume["secret"]
        return _keyed("secret", source, source.get("secretName", ""), source.get("defaultMode"), sources, namespace)
    if "downwardAPI" in volume:
        return _downward(pod, volume["downwardAPI"], volume["downwardAPI"].get("defaultMode"), sources)
    return _projected(pod, volume["projected"], sources, namespace)


def token_requests(volume: Object) -> list[tuple[str, int]]:
    """(audience, seconds) of each service-account token in a projected volume."""
    return [
        (s["serviceAccountToken"].get("audience", ""), s["serviceAccountToken"].get("expirationSeconds") or TOKEN_SECONDS_DEFAULT)
        for s in (volume.get("projected") or {}).get("sources") or ()
        if "serviceAccountToken" in s
    ]


def references(pod: Object) -> set[tuple[str, str]]:
    """Every ("configmaps"|"secrets", name) that a pod's volumes, variables and image pulls refer to."""
    out: set[tuple[str, str]] = set()
    spec = pod["spec"]

    def add(kind: str, name: str | None) -> None:
        if name:
            out.add((kind, name))

    for volume in spec.get("volumes") or ():
        add("configmaps", (volume.get("configMap") or {}).get("name"))
        add("secrets", (volume.get("secret") or {}).get("secretName"))
        for source in (volume.get("projected") or {}).get("sources") or ():
            add("configmaps", (source.get("configMap") or {}).get("name"))
            add("secrets", (source.get("secret") or {}).get("name"))
    for where in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(where) or ():
            for source in container.get("envFrom") or ():
                add("configmaps", (source.get("configMapRef") or {}).get("name"))
                add("secrets", (source.get("secretRef") or {}).get("name"))
            for variable in container.get("env") or ():
                origin = variable.get("valueFrom") or {}
                add("configmaps", (origin.get("configMapKeyRef") or {}).get("name"))
                add("secrets", (origin.get("secretKeyRef") or {}).get("name"))
    for secret in spec.get("imagePullSecrets") or ():
        add("secrets", secret.get("name"))
    return out


def _mode(item: Object, default: int | None) -> int:
    mode = item.get("mode")
    return mode if mode is not None else MODE_DEFAULT if default is None else default


def _keyed(word: str, source: Object, name: str, default: int | None, sources: Sources, namespace: str) -> dict[str, File]:
    """The keys of a ConfigMap or Secret: all, or those named in `items`."""
    obj = sources.lookup(word + "s", name)
    if obj is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f'{word} "{name}" not found')
    values = env.binary_data(obj)
    items = source.get("items")
    if not items:
        return {key: File(data, _mode({}, default)) for key, data in values.items()}
    out = {}
    for item in items:
        if item["key"] not in values:
            if source.get("optional"):
                continue
            raise VolumeError(f"{word} references non-existent {'config' if word == 'configmap' else 'secret'} key: {item['key']}")
        out[item["path"]] = File(values[item["key"]], _mode(item, default))
    return out


def _downward(pod: Object, source: Object, default: int | None, sources: Sources) -> dict[str, File]:
    out = {}
    try:
        for item in source.get("items") or ():
            if "fieldRef" in item:
                value = env.field_value(pod, item["fieldRef"]["fieldPath"], sources.status)
            else:
                value = env.resource_value(pod, item["resourceFieldRef"], None, sources.allocatable)
            out[item["path"]] = File(value.encode(), _mode(item, default))
    except env.ConfigError as e:
        raise VolumeError(str(e)) from None
    return out


def _common_user(pod: Object, context: Object) -> int | None:
    """The uid that all containers run as, when the spec says one: a token file then belongs to it alone."""
    users = {(c.get("securityContext") or {}).get("runAsUser", context.get("runAsUser")) for c in [*podspec.init_containers(pod), *podspec.containers(pod)]}
    return users.pop() if len(users) == 1 else None


def _projected(pod: Object, source: Object, sources: Sources, namespace: str) -> dict[str, File]:
    out: dict[str, File] = {}
    default = source.get("defaultMode")
    context = pod["spec"].get("securityContext") or {}
    owner = _common_user(pod, context)
    private = owner is not None or context.get("fsGroup") is not None
    for part in source.get("sources") or ():
        if "configMap" in part:
            out |= _keyed("configmap", part["configMap"], part["configMap"].get("name", ""), default, sources, namespace)
        elif "secret" in part:
            out |= _keyed("secret", part["secret"], part["secret"].get("name", ""), default, sources, namespace)
        elif "downwardAPI" in part:
            out |= _downward(pod, part["downwardAPI"], default, sources)
        elif "serviceAccountToken" in part:
            token = part["serviceAccountToken"]
            data = sources.token(token.get("audience", ""), token.get("expirationSeconds") or TOKEN_SECONDS_DEFAULT)
            out[token["path"]] = File(data.encode(), 0o600 if private else _mode({}, default), owner)
        else:
            raise VolumeError(f"projected volume source {next(iter(part), 'none')} is not supported by this node")
    return out


__all__ = ["BadPath", "Sources", "VolumeError", "of_volume", "references", "token_requests"]
