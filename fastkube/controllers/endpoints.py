"""endpoints-controller: the v1 Endpoints object of each Service with a selector, for clients that do not read EndpointSlices yet.

One object holds all addresses, so it is written whole; at most ADDRESSES_MAX of them (then annotated as truncated, upstream's rule), at a bounded
rate (Pace).
"""

from __future__ import annotations

from collections.abc import Mapping

from fastkube.api.errors import ApiError
from fastkube.client.informer import split_key
from fastkube.controllers import backends
from fastkube.controllers.meta import Object, deleting, is_ready, is_terminal, uid
from fastkube.controllers.runtime import Controller, Pace

ENDPOINTS = "v1/endpoints"
ADDRESSES_MAX = 1000
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
MANAGED_BY = "endpoints.kubernetes.io/managed-by"
HEADLESS = "service.kubernetes.io/headless"
INTERVAL_SECONDS = 0.2
BURST = 5


class EndpointsController(Controller):
    name = "endpoints-controller"
    account = "endpoint-controller"
    component = "endpoint-controller"

    def setup(self) -> None:
        self.pace = Pace(INTERVAL_SECONDS, BURST)
        self.services = self.informer("v1/services")
        self.informer("v1/pods")
        self.backends = self.context.backends()
        self.backends.listen(lambda service_key, pod_key: self.queue.add_after(service_key, self.pace.wait(service_key) if pod_key else 0))
        self.endpoints = self.informer(ENDPOINTS)
        self.endpoints.add_handler(*self.enqueue_all())

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        service = self.services.by_key(key)
        stored = self.endpoints.by_key(key)
        if service is None or deleting(service):
            self.pace.forget(key)
            if stored is not None and (stored["metadata"].get("labels") or {}).get(MANAGED_BY):
                await self._delete(name, namespace)
            return None
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return None
        if stored is not None and self.behind(stored):
            return None
        wanted = desired(service, self.backends.of(key))
        if stored is not None and _same(stored, wanted):
            return None
        wait = self.pace.wait(key)
        if wait > 0:
            return wait
        self.pace.spend(key)
        if stored is None:
            self.wrote(await self.client.create(ENDPOINTS, wanted, namespace))
        else:
            meta = {**stored["metadata"], "labels": wanted["metadata"]["labels"], "annotations": _annotations(stored, wanted)}
            self.wrote(await self.client.update(ENDPOINTS, {**wanted, "metadata": meta}))
        return None

    async def _delete(self, name: str, namespace: str | None) -> None:
        try:
            await self.client.delete(ENDPOINTS, name, namespace)
        except ApiError as e:
            if e.code != 404:
                raise


def desired(service: Object, pods: Mapping[str, Object]) -> Object:
    """The Endpoints object: addresses grouped by the ports they serve, ready ones apart, all in a fixed order. Pure."""
    family = backends.families(service)[0]
    unready_too = backends.publishes_unready(service)
    groups: dict[tuple[tuple[str, int, str, str], ...], tuple[list[Object], list[Object]]] = {}
    for _, pod in sorted(pods.items()):
        address = next((a for a in backends.addresses(pod) if backends.family_of(a) == family), None)
        if address is None or is_terminal(pod) or (deleting(pod) and not unready_too):
            continue
        ports = _ports(service, pod)
        if not ports and not backends.is_headless(service):
            continue
        ready = unready_too or is_ready(pod)
        groups.setdefault(ports, ([], []))[0 if ready else 1].append(_address(service, pod, address))
    truncated = _truncate(list(groups.values()))
    subsets = []
    for ports, (ready_ones, others) in sorted(groups.items()):
        subset: Object = {}
        if ready_ones:
            subset["addresses"] = sorted(ready_ones, key=lambda a: (a["ip"], a["targetRef"]["uid"]))
        if others:
            subset["notReadyAddresses"] = sorted(others, key=lambda a: (a["ip"], a["targetRef"]["uid"]))
        if ports:
            subset["ports"] = [{"name": n, "port": p, "protocol": t, "appProtocol": a} for n, p, t, a in ports]
            subset["ports"] = [{k: v for k, v in port.items() if v != ""} for port in subset["ports"]]
        if "addresses" in subset or "notReadyAddresses" in subset:
            subsets.append(subset)
    meta = service["metadata"]
    labels = {**(meta.get("labels") or {}), MANAGED_BY: "endpoint-controller"}
    labels.pop(HEADLESS, None)
    if backends.is_headless(service):
        labels[HEADLESS] = ""
    out: Object = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "labels": labels},
        "subsets": subsets,
    }
    if truncated:
        out["metadata"]["annotations"] = {OVER_CAPACITY: "truncated"}
    return out


def _truncate(groups: list[tuple[list[Object], list[Object]]]) -> bool:
    """Cut the lists down to ADDRESSES_MAX in all, ready ones first to stay; whether anything was cut."""
    room = ADDRESSES_MAX
    cut = False
    for which in (0, 1):
        for group in groups:
            kept = group[which][: max(room, 0)]
            cut = cut or len(kept) < len(group[which])
            group[which][:] = kept
            room -= len(kept)
    return cut


def _ports(service: Object, pod: Object) -> tuple[tuple[str, int, str, str], ...]:
    found = []
    for port in service["spec"].get("ports") or ():
        number = backends.port_number(pod, port)
        if number is not None:
            found.append((port.get("name", ""), number, port.get("protocol") or "TCP", port.get("appProtocol") or ""))
    return tuple(sorted(found))


def _address(service: Object, pod: Object, address: str) -> Object:
    meta, spec = pod["metadata"], pod["spec"]
    out: Object = {"ip": address, "targetRef": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": uid(pod)}}
    if spec.get("nodeName"):
        out["nodeName"] = spec["nodeName"]
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        out["hostname"] = spec["hostname"]
    return out


def _annotations(stored: Object, wanted: Object) -> dict[str, str]:
    kept = {k: v for k, v in (stored["metadata"].get("annotations") or {}).items() if k != OVER_CAPACITY}
    return {**kept, **(wanted["metadata"].get("annotations") or {})}


def _same(stored: Object, wanted: Object) -> bool:
    over = lambda obj: (obj["metadata"].get("annotations") or {}).get(OVER_CAPACITY)  # noqa: E731
    return (
        (stored.get("subsets") or []) == wanted["subsets"]
        and (stored["metadata"].get("labels") or {}) == wanted["metadata"]["labels"]
        and over(stored) == over(wanted)
    )
