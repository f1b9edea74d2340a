"""Pure readings of a pod's spec that several parts share: its containers, policies, QoS class, requests, ports."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from fastkube.api import quantity

Object = dict[str, Any]

SOURCE_ANNOTATION = "kubernetes.io/config.source"
HASH_ANNOTATION = "kubernetes.io/config.hash"
SEEN_ANNOTATION = "kubernetes.io/config.seen"
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"

GRACE_SECONDS_DEFAULT = 30
CRITICAL_PRIORITY = 2_000_000_000


def uid_of(pod: Object) -> str:
    return pod["metadata"]["uid"]


def key_of(pod: Object) -> str:
    """NAMESPACE/NAME."""
    return f"{pod['metadata'].get('namespace', 'default')}/{pod['metadata']['name']}"


def full_name(pod: Object) -> str:
    """NAME_NAMESPACE, how upstream's messages name a pod (`pod=NAME_NAMESPACE(UID)`)."""
    meta = pod["metadata"]
    return f"{meta['name']}_{meta.get('namespace', 'default')}({meta['uid']})"


def is_static(pod: Object) -> bool:
    """Whether it comes from a file or a URL rather than from the API."""
    return (pod["metadata"].get("annotations") or {}).get(SOURCE_ANNOTATION, "api") != "api"


def is_mirror(pod: Object) -> bool:
    return MIRROR_ANNOTATION in (pod["metadata"].get("annotations") or {})


def is_critical(pod: Object) -> bool:
    return is_static(pod) or (pod["spec"].get("priority") or 0) >= CRITICAL_PRIORITY


def is_sidecar(container: Object) -> bool:
    """An init container that keeps running (restartPolicy Always)."""
    return container.get("restartPolicy") == "Always"


def init_containers(pod: Object) -> list[Object]:
    return pod["spec"].get("initContainers") or []


def containers(pod: Object) -> list[Object]:
    return pod["spec"].get("containers") or []


def ephemeral_containers(pod: Object) -> list[Object]:
    return pod["spec"].get("ephemeralContainers") or []


def all_containers(pod: Object) -> Iterator[Object]:
    yield from init_containers(pod)
    yield from containers(pod)
    yield from ephemeral_containers(pod)


def find(pod: Object, name: str) -> Object | None:
    return next((c for c in all_containers(pod) if c["name"] == name), None)


def field_path(pod: Object, name: str) -> str:
    """`spec.containers{name}`: where events of a container point."""
    for where in ("initContainers", "containers", "ephemeralContainers"):
        if any(c["name"] == name for c in pod["spec"].get(where) or ()):
            return f"spec.{where}{{{name}}}"
    return ""


def restart_policy(pod: Object) -> str:
    return pod["spec"].get("restartPolicy") or "Always"


def container_restarts(pod: Object, container: Object, exit_code: int) -> bool:
    """Whether a container that ended with `exit_code` is to run again: its own rules, its own policy, the pod's policy, in this order."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        inside = exit_code in (codes.get("values") or ())
        if rule.get("action") == "Restart" and (inside if codes.get("operator") == "In" else not inside):
            return True
    policy = container.get("restartPolicy") or restart_policy(pod)
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def host_network(pod: Object) -> bool:
    return bool(pod["spec"].get("hostNetwork"))


def grace_seconds(pod: Object) -> int:
    """How long the pod may take to end: what its deletion says, else what its spec says."""
    grace = pod["metadata"].get("deletionGracePeriodSeconds")
    if grace is None:
        grace = pod["spec"].get("terminationGracePeriodSeconds")
    return GRACE_SECONDS_DEFAULT if grace is None else int(grace)


def container_hash(container: Object) -> str:
    """Changes when the container has to be made anew. Only the image of a container may change in place."""
    return hashlib.sha256(orjson.dumps([container["name"], container.get("image", "")])).hexdigest()[:8]


@functools.lru_cache(4096)
def amount(value: str | int | float) -> float:
    """A quantity's value in base units (CPU cores, bytes)."""
    return quantity.nanos(value) / 1e9


def requests(container: Object) -> dict[str, float]:
    return {k: amount(v) for k, v in ((container.get("resources") or {}).get("requests") or {}).items()}


def limits(container: Object) -> dict[str, float]:
    return {k: amount(v) for k, v in ((container.get("resources") or {}).get("limits") or {}).items()}


def pod_requests(pod: Object, what: str = "requests") -> dict[str, float]:
    """Effective requests (or limits) of a pod: the sum of its containers and sidecars, or what its init phase needs at once if that is more;
    pod-level resources override; plus overhead."""
    total: dict[str, float] = {}
    for c in containers(pod):
        _add(total, _resources(c, what))
    sidecars: dict[str, float] = {}
    peak: dict[str, float] = {}
    for c in init_containers(pod):
        need = _resources(c, what)
        if is_sidecar(c):
            _add(total, need)
            _add(sidecars, need)
            need = dict(sidecars)
        else:
            _add(need, sidecars)
        for k, v in need.items():
            peak[k] = max(peak.get(k, 0.0), v)
    for k, v in peak.items():
        total[k] = max(total.get(k, 0.0), v)
    for k, v in ((pod["spec"].get("resources") or {}).get(what) or {}).items():
        total[k] = amount(v)
    for k, v in (pod["spec"].get("overhead") or {}).items():
        if what == "requests" or k in total:
            total[k] = total.get(k, 0.0) + amount(v)
    return total


def _resources(container: Object, what: str) -> dict[str, float]:
    return requests(container) if what == "requests" else limits(container)


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for k, v in more.items():
        total[k] = total.get(k, 0.0) + v


def qos_class(pod: Object) -> str:
    """Guaranteed, Burstable or BestEffort (of CPU and memory only)."""
    known = (pod.get("status") or {}).get("qosClass")
    if known:
        return known
    sources = [pod["spec"]] if pod["spec"].get("resources") else [*containers(pod), *init_containers(pod)]
    any_set = False
    guaranteed = True
    for c in sources:
        asked = {k: v for k, v in requests(c).items() if k in ("cpu", "memory") and v}
        limit = {k: v for k, v in limits(c).items() if k in ("cpu", "memory") and v}
        any_set = any_set or bool(asked or limit)
        if set(limit) != {"cpu", "memory"} or any(asked.get(k, limit[k]) != limit[k] for k in limit):
            guaranteed = False
    return "BestEffort" if not any_set else "Guaranteed" if guaranteed else "Burstable"


def port_of(container: Object, port: int | str) -> int | None:
    """A probe's or hook's port: a number, or the name of one of the container's ports."""
    if isinstance(port, int):
        return port
    for p in container.get("ports") or ():
        if p.get("name") == port:
            return p["containerPort"]
    return int(port) if port.isdecimal() else None
