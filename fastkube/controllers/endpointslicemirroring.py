"""endpointslice-mirroring-controller: Endpoints that somebody wrote by hand, for a Service without a selector, also as EndpointSlices.

Endpoints of a Service with a selector are not mirrored (the endpointslice controller makes slices of its own), nor those labelled
`endpointslice.kubernetes.io/skip-mirror: "true"` or used for leader election.
"""

from __future__ import annotations

from fastkube.api.errors import ApiError
from fastkube.controllers import slices
from fastkube.controllers.backends import family_of
from fastkube.controllers.endpointslice import MANAGED_BY, SERVICE_NAME
from fastkube.controllers.meta import Object, deleting, uid
from fastkube.controllers.runtime import Controller
from fastkube.controllers.slices import Layout, Ports, Slice

SLICES = "discovery.k8s.io/v1/endpointslices"
MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"
ADDRESSES_MAX = 1000  # of one subset and address type; more are not mirrored
_NOT_COPIED = ("endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration")


def should_mirror(endpoints: Object, service: Object | None) -> bool:
    meta = endpoints["metadata"]
    if service is None or service["spec"].get("selector") or deleting(endpoints):
        return False
    return (meta.get("labels") or {}).get(SKIP) != "true" and LEADER not in (meta.get("annotations") or {})


def desired(endpoints: Object) -> dict[tuple[str, str], tuple[Ports, Object]]:
    """(address type, address and ports) -> (ports, endpoint) of every address, ready or not. Pure."""
    out: dict[tuple[str, str], tuple[Ports, Object]] = {}
    for subset in endpoints.get("subsets") or ():
        ports = slices.canonical([{"name": "", "protocol": "TCP", **p} for p in subset.get("ports") or ()])
        counts: dict[str, int] = {}
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in subset.get(field) or ():
                family = family_of(address["ip"])
                counts[family] = counts.get(family, 0) + 1
                if counts[family] <= ADDRESSES_MAX:
                    out.setdefault((family, _key(address["ip"], ports)), (ports, _endpoint(address, ready)))
    return out


def _key(ip: str, ports: Ports) -> str:
    return f"{ip} {ports!r}"


def _endpoint(address: Object, ready: bool) -> Object:
    out: Object = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
    return out | {k: address[k] for k in ("hostname", "nodeName", "targetRef") if address.get(k)}


class EndpointSliceMirroring(Controller):
    name = "endpointslice-mirroring-controller"
    account = "endpointslicemirroring-controller"

    def setup(self) -> None:
        self.endpoints = self.informer("v1/endpoints")
        self.endpoints.add_handler(*self.enqueue_all())
        self.services = self.informer("v1/services")
        self.services.add_handler(*self.enqueue_all())
        self.slices = self.informer(SLICES)
        self.slices.add_index("mirrors", _endpoints_keys)
        self.slices.add_handler(self._slice_changed, lambda old, new: self._slice_changed(new), self._slice_changed)

    def _slice_changed(self, one: Object) -> None:
        for key in _endpoints_keys(one):
            self.queue.add(key)

    async def reconcile(self, key: str) -> float | None:
        endpoints, service = self.endpoints.by_key(key), self.services.by_key(key)
        own = [s for s in self.slices.by_index("mirrors", key) if not deleting(s)]
        if any(self.behind(s) for s in own):
            return None
        if endpoints is None or not should_mirror(endpoints, service):
            for one in own:
                await self._delete(one["metadata"]["name"], one["metadata"]["namespace"])
            return None
        layout = Layout(_as_slice(one) for one in own)
        wanted = desired(endpoints)
        plan = layout.apply(dict.fromkeys(layout.keys()) | wanted, [], self.options.max_endpoints_per_slice)
        stored = {s["metadata"]["name"]: s for s in own}
        named = {s.name for s in plan.update}
        template = _template(endpoints)
        plan.update += [s for s in layout.slices if s.name and s.name not in named and _marks(stored[s.name]) != _marks(template)]
        namespace = endpoints["metadata"]["namespace"]
        for planned in plan.create:
            self.wrote(await self.client.create(SLICES, _as_object(template, planned), namespace))
        for planned in plan.update:
            meta = stored[planned.name]["metadata"]
            obj = _as_object(template, planned)
            obj["metadata"] |= {"name": planned.name, "resourceVersion": meta["resourceVersion"]}
            self.wrote(await self.client.update(SLICES, obj))
        for planned in plan.delete:
            await self._delete(planned.name, namespace)
        return None

    async def _delete(self, name: str, namespace: str) -> None:
        try:
            await self.client.delete(SLICES, name, namespace)
        except ApiError as e:
            if e.code != 404:
                raise


def _endpoints_keys(one: Object) -> list[str]:
    labels = one["metadata"].get("labels") or {}
    return [f"{one['metadata']['namespace']}/{labels[SERVICE_NAME]}"] if labels.get(MANAGED_BY) == MANAGER and SERVICE_NAME in labels else []


def _as_slice(obj: Object) -> Slice:
    ports = slices.canonical(obj.get("ports"))
    return Slice(obj["metadata"]["name"], (obj["addressType"], ports), {_key(e["addresses"][0], ports): e for e in obj.get("endpoints") or ()})


def _template(endpoints: Object) -> Object:
    """What every slice of these Endpoints carries: labels, annotations, and who owns it."""
    meta = endpoints["metadata"]
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in _NOT_COPIED}
    out: Object = {
        "generateName": f"{meta['name']}-",
        "namespace": meta["namespace"],
        "labels": {**(meta.get("labels") or {}), SERVICE_NAME: meta["name"], MANAGED_BY: MANAGER},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "Endpoints", "name": meta["name"], "uid": uid(endpoints), "controller": True, "blockOwnerDeletion": True}
        ],
    }
    return {"metadata": out | ({"annotations": annotations} if annotations else {})}


def _marks(obj: Object) -> tuple[Object, Object]:
    return obj["metadata"].get("labels") or {}, obj["metadata"].get("annotations") or {}


def _as_object(template: Object, one: Slice) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": dict(template["metadata"]),
        "addressType": one.group[0],
        "endpoints": list(one.endpoints.values()),
        "ports": slices.ports_of(one.group),
    }
