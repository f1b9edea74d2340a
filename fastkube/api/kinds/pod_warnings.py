"""What a write of a pod or a pod template is warned of (upstream: pkg/api/pod/warnings.go): deprecated fields and suspicious ones."""

from __future__ import annotations

from typing import Any

from fastkube.api import quantity

Object = dict[str, Any]

_DEPRECATED_NODE_LABELS = {
    "beta.kubernetes.io/arch": 'deprecated since v1.14; use "kubernetes.io/arch" instead',
    "beta.kubernetes.io/os": 'deprecated since v1.14; use "kubernetes.io/os" instead',
    "failure-domain.beta.kubernetes.io/region": 'deprecated since v1.17; use "topology.kubernetes.io/region" instead',
    "failure-domain.beta.kubernetes.io/zone": 'deprecated since v1.17; use "topology.kubernetes.io/zone" instead',
    "beta.kubernetes.io/instance-type": 'deprecated since v1.17; use "node.kubernetes.io/instance-type" instead',
}


def node_label(label: str) -> str:
    """The warning that a deprecated node label earns, "" for others."""
    return _DEPRECATED_NODE_LABELS.get(label, "")


def pod(meta: Object, spec: Object, old: Object | None, at: str = "spec", template: bool = False) -> list[str]:
    """Warnings of a pod spec; none for a spec that an update leaves alone."""
    if old is not None and old == spec:
        return []
    out: list[str] = []
    for key in spec.get("nodeSelector") or ():
        if text := node_label(key):
            out.append(f"{at}.nodeSelector[{key}]: {text}")
    for i, constraint in enumerate(spec.get("topologySpreadConstraints") or ()):
        if text := node_label(constraint.get("topologyKey") or ""):
            out.append(f"{at}.topologySpreadConstraints[{i}].topologyKey: {constraint['topologyKey']} is {text}")
        out += _selector_labels(
            constraint.get("labelSelector"), f"{at}.topologySpreadConstraints[{i}].labelSelector", "a null labelSelector results in matching no pod"
        )
    names: set[str] = set()
    for i, secret in enumerate(spec.get("imagePullSecrets") or ()):
        if not secret.get("name"):
            out.append(f'{at}.imagePullSecrets[{i}].name: invalid empty name ""')
        elif secret["name"] in names:
            out.append(f'{at}.imagePullSecrets[{i}].name: duplicate name "{secret["name"]}"')
        names.add(secret.get("name") or "")
    out += _aliases(spec.get("hostAliases") or (), f"{at}.hostAliases")
    for i, volume in enumerate(spec.get("volumes") or ()):
        out += _volume(volume, f"{at}.volumes[{i}]")
    out += _overlaps(spec.get("volumes") or [])
    grace = spec.get("terminationGracePeriodSeconds")
    for key in ("initContainers", "containers"):
        for i, container in enumerate(spec.get(key) or ()):
            out += _container(container, f"{at}.{key}[{i}]")
    if grace is not None and grace < 0:
        out.append(f"{at}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1")
    out += _affinity(spec.get("affinity") or {}, f"{at}.affinity")
    return out


def _selector_labels(selector: Object | None, at: str, absent: str) -> list[str]:
    if selector is None:
        return [f"{at}: {absent}"]
    return []


def _aliases(aliases: Any, at: str) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for i, alias in enumerate(aliases):
        ip = alias.get("ip")
        if ip in seen:
            out.append(f'{at}[{i}].ip: duplicate ip "{ip}"')
        seen[ip] = i
    return out


_VOLUME_WARNINGS = {
    "gitRepo": "deprecated in v1.11",
    "photonPersistentDisk": "deprecated in v1.11, non-functional in v1.16+",
    "scaleIO": "deprecated in v1.16, non-functional in v1.22+",
    "storageos": "deprecated in v1.22, non-functional in v1.25+",
    "glusterfs": "deprecated in v1.25, non-functional in v1.26+",
    "rbd": "deprecated in v1.28, non-functional in v1.31+",
    "cephfs": "deprecated in v1.28, non-functional in v1.31+",
}


def _volume(volume: Object, at: str) -> list[str]:
    out = []
    for key, text in _VOLUME_WARNINGS.items():
        if volume.get(key) is not None:
            out.append(f"{at}.{key}: {text}")
    claim = ((volume.get("ephemeral") or {}).get("volumeClaimTemplate") or {}).get("spec")
    if claim is not None:
        from fastkube.api.kinds.storage import claim_warnings

        out += claim_warnings(claim, f"{at}.ephemeral.volumeClaimTemplate.spec")
    return out


def _overlaps(volumes: list[Object]) -> list[str]:
    """Paths inside one volume that hide one another."""
    out: list[str] = []
    for volume in volumes:
        name = volume.get("name")
        for key, label in (("configMap", "ConfigMap"), ("secret", "Secret"), ("downwardAPI", "DownwardAPI")):
            taken: list[tuple[str, str]] = []
            for item in (volume.get(key) or {}).get("items") or ():
                for other, _ in _collisions(taken, item.get("path") or ""):
                    out.append(f'volume "{name}" ({label}): overlapping path "{(item.get("path") or "").rstrip("/")}" with "{other}"')
                taken.append(((item.get("path") or "").rstrip("/"), ""))
        if volume.get("projected") is not None:
            out += _projected(name or "", volume["projected"].get("sources") or [])
    return out


def _collisions(taken: list[tuple[str, str]], path: str) -> list[tuple[str, str]]:
    path = path.rstrip("/")
    return [(p, s) for p, s in taken if p == path or p.startswith(path + "/") or path.startswith(p + "/")]


def _projected(name: str, sources: list[Object]) -> list[str]:
    out: list[str] = []
    taken: list[tuple[str, str]] = []
    for source in sources:
        if not source:
            out.append(f'volume "{name}" (Projected) has no sources provided')
            continue
        for path, origin in _source_paths(source):
            path = path.rstrip("/")
            for other, theirs in _collisions(taken, path):
                out.append(f'volume "{name}" (Projected): overlapping path "{path}" (from {origin}) with "{other}" (from {theirs})')
            taken.append((path, origin))
    return out


def _source_paths(source: Object) -> list[tuple[str, str]]:
    for key, label in (("configMap", "ConfigMap"), ("secret", "Secret")):
        if source.get(key) is not None:
            return [(i.get("path") or "", f'{label} "{source[key].get("name", "")}"') for i in source[key].get("items") or ()]
    if source.get("downwardAPI") is not None:
        return [(i.get("path") or "", "DownwardAPI") for i in source["downwardAPI"].get("items") or ()]
    if source.get("serviceAccountToken") is not None:
        return [(source["serviceAccountToken"].get("path") or "", "ServiceAccountToken")]
    bundle = source.get("clusterTrustBundle")
    if bundle is not None:
        return [(bundle.get("path") or "", f'ClusterTrustBundle "{bundle.get("name") or bundle.get("signerName") or ""}"')]
    return []


def _container(container: Object, at: str) -> list[str]:
    out = []
    for key in ("limits", "requests"):
        for name, amount in ((container.get("resources") or {}).get(key) or {}).items():
            nano = quantity.nanos(amount)
            if name in ("memory", "ephemeral-storage") and nano % quantity.NANO:
                out.append(f'{at}.resources.{key}[{name}]: fractional byte value "{amount}" is invalid, must be an integer')
    names: set[str] = set()
    for i, variable in enumerate(container.get("env") or ()):
        name = variable.get("name") or ""
        if name in names and variable.get("value") is not None and f"$({name})" not in variable["value"]:
            out.append(f'{at}.env[{i}]: hides previous definition of "{name}", which may be dropped when using apply')
        names.add(name)
    out += _ports(container.get("ports") or (), at)
    return out


def _ports(ports: Any, at: str) -> list[str]:
    out = []
    seen: dict[tuple[Any, ...], int] = {}
    for i, port in enumerate(ports):
        key = (port.get("containerPort"), port.get("protocol"), port.get("hostPort"), port.get("hostIP"))
        if key in seen:
            out.append(f"{at}.ports[{i}]: duplicate port definition with {at}.ports[{seen[key]}]")
        else:
            seen[key] = i
    return out


def _affinity(affinity: Object, at: str) -> list[str]:
    out: list[str] = []
    node = affinity.get("nodeAffinity") or {}
    terms = [
        (f"{at}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{i}]", t)
        for i, t in enumerate((node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ())
    ] + [
        (f"{at}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{i}].preference", t.get("preference") or {})
        for i, t in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution") or ())
    ]
    for place, term in terms:
        for j, expression in enumerate(term.get("matchExpressions") or ()):
            if text := node_label(expression.get("key") or ""):
                out.append(f"{place}.matchExpressions[{j}].key: {expression['key']} is {text}")
    for key in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(key) or {}
        for i, term in enumerate(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
            if term.get("labelSelector") is None:
                out.append(f"{at}.{key}.requiredDuringSchedulingIgnoredDuringExecution[{i}].labelSelector: a null labelSelector results in matching no pod")
        for i, term in enumerate(part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
            if (term.get("podAffinityTerm") or {}).get("labelSelector") is None:
                out.append(
                    f"{at}.{key}.preferredDuringSchedulingIgnoredDuringExecution[{i}].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod"
                )
    return out
