"""endpointslice-controller: the addresses behind each Service, in slices of at most 100, one write per changed slice.

Between full looks (the Service changed, somebody else touched a slice, a write failed, a restart) the controller works from its own layout
of each Service's slices and the pods that changed since: cost is that of the change, not of the Service. Bursts of changes are gathered (Pace).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastkube.api.errors import ApiError
from fastkube.client.informer import key_of, split_key
from fastkube.controllers import backends, slices
from fastkube.controllers.meta import Labels, Object, deleting, is_ready, is_terminal, uid, version
from fastkube.controllers.runtime import Controller, Pace
from fastkube.controllers.slices import Layout, Plan, Ports, Slice

SLICES = "discovery.k8s.io/v1/endpointslices"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
HEADLESS = "service.kubernetes.io/headless"
ZONE = "topology.kubernetes.io/zone"
INTERVAL_SECONDS = 0.1
BURST = 10
BEHIND_RETRY_SECONDS = 0.05

Change = tuple[Ports, Object] | None


@dataclass(slots=True)
class _Service:
    """What is known of one Service between reconciles."""

    layout: Layout | None = None  # None: look at everything
    dirty: set[str] = field(default_factory=set)  # pod keys
    written: dict[str, int] = field(default_factory=dict)  # slice key -> version of our last write; 0: deleted by us
    labels: Labels = field(default_factory=dict)
    writing: bool = False  # events of our own writes may come before their answers:
    held: dict[str, int] = field(default_factory=dict)  # slice key -> version of an event seen meanwhile, judged afterwards; -1: deleted


class EndpointSliceController(Controller):
    name = "endpointslice-controller"

    def setup(self) -> None:
        self._states: dict[str, _Service] = {}
        self.pace = Pace(INTERVAL_SECONDS, BURST)
        self.services = self.informer("v1/services")
        self.nodes = self.informer("v1/nodes")
        self.nodes.add_handler(on_add=self._node_changed, on_update=self._node_updated)
        self.informer("v1/pods")
        self.backends = self.context.backends()
        self.backends.listen(self._changed)
        self.slices = self.informer(SLICES)
        self.slices.add_index("service", _service_keys)
        self.slices.add_handler(self._slice_changed, lambda old, new: self._slice_changed(new), self._slice_deleted)

    # --- events ---

    def _changed(self, service_key: str, pod_key: str | None) -> None:
        state = self._states.setdefault(service_key, _Service())
        if pod_key is None:
            state.layout = None
            self.queue.add(service_key)
        else:
            state.dirty.add(pod_key)
            self.queue.add_after(service_key, self.pace.wait(service_key))

    def _slice_changed(self, one: Object) -> None:
        for service_key in _service_keys(one):
            self._slice_seen(service_key, key_of(one), version(one))

    def _slice_deleted(self, one: Object) -> None:
        for service_key in _service_keys(one):
            self._slice_seen(service_key, key_of(one), -1)

    def _slice_seen(self, service_key: str, slice_key: str, seen: int) -> None:
        """An event of a slice: ours when it is of a version we wrote or a deletion we asked for; else look at everything."""
        state = self._states.setdefault(service_key, _Service())
        if state.writing:
            state.held[slice_key] = seen
            return
        if seen < 0:
            ours = state.written.pop(slice_key, -1) == 0
        else:
            ours = seen <= state.written.get(slice_key, -1)
        if not ours:
            state.layout = None
            self.queue.add(service_key)

    def _node_changed(self, node: Object) -> None:
        if not self.nodes.has_synced:
            return
        name = node["metadata"]["name"]
        for service in self.services.list():
            key = key_of(service)
            if any(p["spec"].get("nodeName") == name for p in self.backends.of(key).values()):
                self._changed(key, None)

    def _node_updated(self, old: Object, new: Object) -> None:
        zone = lambda node: (node["metadata"].get("labels") or {}).get(ZONE)  # noqa: E731
        if zone(old) != zone(new):
            self._node_changed(new)

    # --- reconcile ---

    async def reconcile(self, key: str) -> float | None:
        service = self.services.by_key(key)
        state = self._states.setdefault(key, _Service())
        if service is None or deleting(service):
            await self._forget(key)
            return None
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return None  # its endpoints, if any, are somebody else's
        wait = self.pace.wait(key)
        if wait > 0:
            return wait
        if state.layout is None:
            if not self._caught_up(key, state):
                return BEHIND_RETRY_SECONDS
            changes = self._look_at_everything(key, service, state)
        else:
            dirty, state.dirty = state.dirty, set()
            changes = self._changes(key, service, dirty)
        assert state.layout is not None
        labels = _labels(service)
        plan = state.layout.apply(changes, backends.families(service), self.options.max_endpoints_per_slice)
        if labels != state.labels:  # every slice carries the Service's labels
            had = {s.name for s in plan.update}
            plan.update += [s for s in state.layout.slices if s.name and s.name not in had and not self._has_labels(key, s, labels)]
        if plan:
            self.pace.spend(key)
            state.writing = True
            try:
                await self._carry_out(key, service, state, plan, labels)
            except BaseException:
                state.layout = None
                raise
            finally:
                state.writing = False
                held, state.held = state.held, {}
                for slice_key, seen in held.items():
                    self._slice_seen(key, slice_key, seen)
        state.labels = labels
        return None

    async def _forget(self, key: str) -> None:
        """The Service is gone; the garbage collector takes its slices, but a new Service of that name must not inherit them."""
        for one in self._own(key):
            try:
                await self.client.delete(SLICES, one["metadata"]["name"], one["metadata"]["namespace"])
            except ApiError as e:
                if e.code != 404:
                    raise
        self._states.pop(key, None)
        self.pace.forget(key)

    def _own(self, key: str) -> list[Object]:
        return [s for s in self.slices.by_index("service", key) if not deleting(s)]

    def _caught_up(self, key: str, state: _Service) -> bool:
        """The informer shows all of our own writes."""
        for slice_key, wrote in list(state.written.items()):
            seen = self.slices.by_key(slice_key)
            if (wrote == 0 and seen is not None) or (wrote > 0 and (seen is None or version(seen) < wrote)):
                return False
        return True

    def _look_at_everything(self, key: str, service: Object, state: _Service) -> dict[tuple[str, str], Change]:
        own = self._own(key)
        namespace = split_key(key)[0]
        layout = state.layout = Layout(_as_slice(one, namespace or "") for one in own)
        state.dirty = set()
        state.labels = {} if any((s["metadata"].get("labels") or {}) != _labels(service) for s in own) else _labels(service)
        changes: dict[tuple[str, str], Change] = dict.fromkeys(layout.keys())
        changes.update(self._changes(key, service, self.backends.of(key)))
        return changes

    def _changes(self, key: str, service: Object, pod_keys: object) -> dict[tuple[str, str], Change]:
        selected = self.backends.of(key)
        families = backends.families(service)
        changes: dict[tuple[str, str], Change] = {}
        for pod_key in pod_keys:  # type: ignore[attr-defined]
            pod = selected.get(pod_key)
            shown = self._endpoints(service, pod) if pod is not None else {}
            for family in ("IPv4", "IPv6"):
                changes[family, pod_key] = shown.get(family) if family in families else None
        return changes

    def _endpoints(self, service: Object, pod: Object) -> dict[str, tuple[Ports, Object]]:
        """Per address type: the ports and the endpoint that stand for the pod; nothing when it has no address or is over."""
        if is_terminal(pod):
            return {}
        by_family: dict[str, list[str]] = {}
        for address in backends.addresses(pod):
            by_family.setdefault(backends.family_of(address), []).append(address)
        if not by_family:
            return {}
        ports = slices.canonical(_ports(service, pod))
        node = pod["spec"].get("nodeName")
        shared = endpoint(service, pod, self._zone(node))
        return {family: (ports, {"addresses": found, **shared}) for family, found in by_family.items()}

    def _zone(self, node: str | None) -> str | None:
        found = self.nodes.get(None, node) if node else None
        return (found["metadata"].get("labels") or {}).get(ZONE) if found else None

    # --- writing ---

    def _has_labels(self, key: str, one: Slice, labels: Labels) -> bool:
        stored = self.slices.get(split_key(key)[0], one.name)
        return stored is not None and (stored["metadata"].get("labels") or {}) == labels

    async def _carry_out(self, key: str, service: Object, state: _Service, plan: Plan, labels: Labels) -> None:
        namespace = service["metadata"]["namespace"]
        for one in plan.create:
            made = await self.client.create(SLICES, _as_object(service, one, labels), namespace)
            one.name = made["metadata"]["name"]
            state.written[f"{namespace}/{one.name}"] = version(made)
        for one in plan.update:
            slice_key = f"{namespace}/{one.name}"
            stored = self.slices.by_key(slice_key)
            if stored is not None and not stored.get("addressType") == one.group[0]:
                raise ApiError(409, "Conflict", f"EndpointSlice {slice_key} changed its address type")
            obj = _as_object(service, one, labels)
            obj["metadata"]["name"] = one.name
            obj["metadata"]["resourceVersion"] = str(max(state.written.get(slice_key, 0), version(stored) if stored else 0))
            state.written[slice_key] = version(await self.client.update(SLICES, obj))
        for one in plan.delete:
            state.written[f"{namespace}/{one.name}"] = 0
            try:
                await self.client.delete(SLICES, one.name, namespace)
            except ApiError as e:
                if e.code != 404:
                    raise


def _service_keys(one: Object) -> list[str]:
    """The Service that a slice of this controller belongs to."""
    meta = one["metadata"]
    labels = meta.get("labels") or {}
    if labels.get(MANAGED_BY) != MANAGER or SERVICE_NAME not in labels:
        return []
    return [f"{meta['namespace']}/{labels[SERVICE_NAME]}"]


def endpoint(service: Object, pod: Object, zone: str | None) -> Object:
    """An Endpoint without its addresses. ready: serving and staying, or the Service does not care."""
    serving, terminating = is_ready(pod), deleting(pod)
    ready = backends.publishes_unready(service) or (serving and not terminating)
    meta, spec = pod["metadata"], pod["spec"]
    out: Object = {
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": uid(pod)},
    }
    if spec.get("nodeName"):
        out["nodeName"] = spec["nodeName"]
    if zone:
        out["zone"] = zone
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        out["hostname"] = spec["hostname"]
    hints = _hints(service, out, zone) if ready else {}
    if hints:
        out["hints"] = hints
    return out


def _hints(service: Object, shown: Object, zone: str | None) -> Object:
    """trafficDistribution: who should prefer this endpoint."""
    wish = service["spec"].get("trafficDistribution")
    hints: Object = {}
    if wish in ("PreferClose", "PreferSameZone", "PreferSameNode") and zone:
        hints["forZones"] = [{"name": zone}]
    if wish == "PreferSameNode" and "nodeName" in shown:
        hints["forNodes"] = [{"name": shown["nodeName"]}]
    return hints


def _ports(service: Object, pod: Object) -> list[Object]:
    out = []
    for port in service["spec"].get("ports") or ():
        number = backends.port_number(pod, port)
        if number is not None:
            out.append({"name": port.get("name", ""), "port": number, "protocol": port.get("protocol") or "TCP", "appProtocol": port.get("appProtocol")})
    return out


def _labels(service: Object) -> Labels:
    own = {k: v for k, v in (service["metadata"].get("labels") or {}).items() if k not in (SERVICE_NAME, MANAGED_BY, HEADLESS)}
    if backends.is_headless(service):
        own[HEADLESS] = ""
    return {**own, SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: MANAGER}


def _as_slice(obj: Object, namespace: str) -> Slice:
    """A stored slice as the layout sees it; endpoints are known by their pod, others by their address (they will be taken out)."""
    endpoints = {}
    for one in obj.get("endpoints") or ():
        ref = one.get("targetRef") or {}
        key = f"{ref.get('namespace', namespace)}/{ref['name']}" if ref.get("kind") == "Pod" else f"address/{one['addresses'][0]}"
        endpoints[key] = one
    return Slice(obj["metadata"]["name"], (obj["addressType"], slices.canonical(obj.get("ports"))), endpoints)


def _as_object(service: Object, one: Slice, labels: Labels) -> Object:
    meta = service["metadata"]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": f"{meta['name']}-",
            "namespace": meta["namespace"],
            "labels": labels,
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": uid(service), "controller": True, "blockOwnerDeletion": True}
            ],
        },
        "addressType": one.group[0],
        "endpoints": list(one.endpoints.values()),
        "ports": slices.ports_of(one.group),
    }
