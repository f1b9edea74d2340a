"""Backends: which pods stand behind which Services, kept by events and shared by the endpoints and endpointslice controllers.

A pod event is matched against the few Services that could select it (an index by one pair of each selector), never against all; events that
change nothing an endpoint shows (a restart count, a condition of the scheduler) go no further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastkube.client.informer import Informer, key_of
from fastkube.controllers.meta import Object, deleting, is_ready, is_subset, is_terminal

Listener = Callable[[str, str | None], None]  # (service key, pod key; None: the service itself changed)


def addresses(pod: Object) -> list[str]:
    """The pod's IPs, the primary one first."""
    status = pod.get("status") or {}
    ips = [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")]
    return ips or ([status["podIP"]] if status.get("podIP") else [])


def shown(pod: Object) -> tuple[Any, ...]:
    """What endpoints can show of a pod: two versions with the same value need no work."""
    spec = pod.get("spec") or {}
    return (
        addresses(pod),
        is_terminal(pod),
        deleting(pod),
        is_ready(pod),
        spec.get("nodeName"),
        spec.get("hostname"),
        spec.get("subdomain"),
        pod["metadata"].get("uid"),
    )


class Backends:
    def __init__(self, services: Informer, pods: Informer) -> None:
        self.services = services
        self.pods = pods
        self._selected: dict[str, dict[str, Object]] = {}  # service key -> pod key -> pod
        self._index: dict[tuple[str, str, str], set[str]] = {}  # namespace and one pair of the selector -> service keys
        self._listeners: list[Listener] = []
        services.add_handler(self._service_added, self._service_updated, self._service_deleted)
        pods.add_handler(self._pod_added, self._pod_updated, self._pod_deleted)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def of(self, service_key: str) -> dict[str, Object]:
        """The pods that the Service selects, by key; read only."""
        return self._selected.get(service_key, {})

    def _tell(self, service_key: str, pod_key: str | None) -> None:
        for listener in self._listeners:
            listener(service_key, pod_key)

    # --- services ---

    @staticmethod
    def _index_key(service: Object) -> tuple[str, str, str] | None:
        selector = service.get("spec", {}).get("selector")
        if not selector:
            return None
        key = min(selector)
        return service["metadata"]["namespace"], key, selector[key]

    def _service_added(self, service: Object) -> None:
        index_key = self._index_key(service)
        key = key_of(service)
        if index_key is not None:
            self._index.setdefault(index_key, set()).add(key)
            selector = service["spec"]["selector"]
            pods = self.pods.list(service["metadata"]["namespace"])
            self._selected[key] = {key_of(p): p for p in pods if is_subset(selector, p["metadata"].get("labels") or {})}
        self._tell(key, None)

    def _service_updated(self, old: Object, new: Object) -> None:
        if old.get("spec", {}).get("selector") != new.get("spec", {}).get("selector"):
            self._drop(old)
            self._service_added(new)
        else:
            self._tell(key_of(new), None)

    def _service_deleted(self, service: Object) -> None:
        self._drop(service)
        self._tell(key_of(service), None)

    def _drop(self, service: Object) -> None:
        index_key, key = self._index_key(service), key_of(service)
        self._selected.pop(key, None)
        if index_key is not None and index_key in self._index:
            self._index[index_key].discard(key)
            if not self._index[index_key]:
                del self._index[index_key]

    # --- pods ---

    def _selecting(self, pod: Object) -> set[str]:
        """Keys of the Services whose selector matches the pod."""
        meta = pod["metadata"]
        labels, namespace = meta.get("labels"), meta["namespace"]
        if not labels or not self._index:
            return set()
        found: set[str] = set()
        for pair in labels.items():
            for key in self._index.get((namespace, *pair), ()):
                service = self.services.by_key(key)
                if service is not None and is_subset(service["spec"]["selector"], labels):
                    found.add(key)
        return found

    def _pod_added(self, pod: Object) -> None:
        key = key_of(pod)
        for service in self._selecting(pod):
            self._selected.setdefault(service, {})[key] = pod
            self._tell(service, key)

    def _pod_updated(self, old: Object, new: Object) -> None:
        key = key_of(new)
        changed = shown(old) != shown(new)
        if old["metadata"].get("labels") == new["metadata"].get("labels"):
            for service in self._selecting(new):
                self._selected.setdefault(service, {})[key] = new
                if changed:
                    self._tell(service, key)
            return
        before, after = self._selecting(old), self._selecting(new)
        for service in before - after:
            self._selected.get(service, {}).pop(key, None)
            self._tell(service, key)
        for service in after:
            self._selected.setdefault(service, {})[key] = new
            if changed or service not in before:
                self._tell(service, key)

    def _pod_deleted(self, pod: Object) -> None:
        key = key_of(pod)
        for service in self._selecting(pod):
            self._selected.get(service, {}).pop(key, None)
            self._tell(service, key)


# --- pure: a pod as an endpoint ---


def port_number(pod: Object, service_port: Object) -> int | None:
    """The pod's port that a Service port leads to; None when its name is not among the pod's ports."""
    target = service_port.get("targetPort")
    if not isinstance(target, str):
        return target or service_port["port"]
    if target.isdigit():
        return int(target)
    protocol = service_port.get("protocol") or "TCP"
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*spec.get("containers", ()), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == target and (port.get("protocol") or "TCP") == protocol:
                return port["containerPort"]
    return None


def is_headless(service: Object) -> bool:
    return service["spec"].get("clusterIP") == "None"


def publishes_unready(service: Object) -> bool:
    return bool(service["spec"].get("publishNotReadyAddresses"))


def families(service: Object) -> list[str]:
    """Address types of the Service, `IPv4` before `IPv6` as its spec says."""
    return list(service["spec"].get("ipFamilies") or ["IPv4"])


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"
