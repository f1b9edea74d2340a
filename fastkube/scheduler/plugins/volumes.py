"""VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone: what a pod's claims and disks ask of a node.

`Volumes` holds claims, PersistentVolumes, classes and CSI limits as told by informers, and counts per row what is attached there. Pure: the claims
that a decision must bind come back from `to_bind`; the driver does it. Source: https://kubernetes.io/docs/concepts/storage/persistent-volumes/
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastkube.api import quantity, selectors
from fastkube.scheduler import filters
from fastkube.scheduler.plugins import reasons
from fastkube.scheduler.podinfo import PodInfo

SELECTED_NODE = "volume.kubernetes.io/selected-node"
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
ZONE_LABELS = (
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
)
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

Object = dict[str, Any]


def is_bound(claim: Object) -> bool:
    return bool((claim.get("spec") or {}).get("volumeName")) and BIND_COMPLETED in (claim["metadata"].get("annotations") or {})


def node_allowed(pv: Object, node: Object) -> bool:
    """Whether the volume can be used on the node (spec.nodeAffinity.required)."""
    required = ((pv.get("spec") or {}).get("nodeAffinity") or {}).get("required")
    if not required:
        return True
    meta = node["metadata"]
    return any(filters.matches_term(t, meta["name"], meta.get("labels") or {}) for t in required.get("nodeSelectorTerms") or ())


def zones_allow(pv: Object, node: Object) -> bool:
    """VolumeZone: a volume's zone and region labels (several joined by "__") hold for nodes that have any of these labels."""
    labels = node["metadata"].get("labels") or {}
    if not any(key in labels for key in ZONE_LABELS):
        return True
    wanted = pv["metadata"].get("labels") or {}
    return all(labels.get(key) in wanted[key].split("__") for key in ZONE_LABELS if key in wanted)


def class_allows(storage_class: Object, node: Object) -> bool:
    """StorageClass.allowedTopologies."""
    labels = node["metadata"].get("labels") or {}
    topologies = storage_class.get("allowedTopologies") or ()
    return not topologies or any(all(labels.get(e.get("key", "")) in (e.get("values") or ()) for e in t.get("matchLabelExpressions") or ()) for t in topologies)


def disks_of(pod: PodInfo) -> list[tuple[str, str, bool]]:
    """(kind, identity, read only) of disks that a node can hold once only."""
    found = []
    for v in pod.template.volumes:
        if d := v.get("gcePersistentDisk"):
            found.append(("gce", d.get("pdName", ""), bool(d.get("readOnly"))))
        elif d := v.get("awsElasticBlockStore"):
            found.append(("ebs", d.get("volumeID", ""), False))
        elif d := v.get("iscsi"):
            found.append(("iscsi", d.get("iqn", ""), bool(d.get("readOnly"))))
        elif d := v.get("rbd"):
            found.append(("rbd", f"{','.join(sorted(d.get('monitors') or ()))}/{d.get('pool') or 'rbd'}/{d.get('image')}", bool(d.get("readOnly"))))
    return found


class Volumes:
    def __init__(self) -> None:
        self.claims: dict[str, Object] = {}  # NAMESPACE/NAME
        self.volumes: dict[str, Object] = {}
        self.classes: dict[str, Object] = {}
        self.limits: dict[str, dict[str, int]] = {}  # node name -> CSI driver -> volumes at most
        self.assumed: dict[str, str] = {}  # volume name -> claim key it is being bound to
        self._pods: dict[int, dict[str, PodInfo]] = {}  # row -> pods with volumes
        self._users: Counter[str] = Counter()  # claim key -> pods that use it

    # what is told

    def set_claim(self, claim: Object, gone: bool = False) -> None:
        meta = claim["metadata"]
        key = f"{meta['namespace']}/{meta['name']}"
        self.claims.pop(key, None) if gone else self.claims.__setitem__(key, claim)
        if gone or is_bound(claim):
            for name in [n for n, k in self.assumed.items() if k == key]:
                del self.assumed[name]

    def set_volume(self, pv: Object, gone: bool = False) -> None:
        name = pv["metadata"]["name"]
        self.volumes.pop(name, None) if gone else self.volumes.__setitem__(name, pv)

    def set_class(self, storage_class: Object, gone: bool = False) -> None:
        name = storage_class["metadata"]["name"]
        self.classes.pop(name, None) if gone else self.classes.__setitem__(name, storage_class)

    def set_csi_node(self, node: Object, gone: bool = False) -> None:
        name = node["metadata"]["name"]
        drivers = (node.get("spec") or {}).get("drivers") or ()
        limits = {d.get("name", ""): d["allocatable"]["count"] for d in drivers if (d.get("allocatable") or {}).get("count") is not None}
        self.limits.pop(name, None) if gone or not limits else self.limits.__setitem__(name, limits)

    def count(self, pod: PodInfo, row: int, sign: int) -> None:
        """A pod with volumes comes to `row` or goes."""
        on = self._pods.setdefault(row, {})
        if sign > 0:
            on[pod.key] = pod
        else:
            on.pop(pod.key, None)
            if not on:
                del self._pods[row]
        for name in pod.template.claims or ():
            key = f"{pod.namespace}/{name}"
            self._users[key] += sign
            if not self._users[key]:
                del self._users[key]

    def check(self, pods: list[tuple[PodInfo, int]]) -> None:
        with_volumes = [(p, row) for p, row in pods if p.template.claims is not None]
        assert sorted((row, key) for row, on in self._pods.items() for key in on) == sorted((row, p.key) for p, row in with_volumes)
        assert self._users == Counter(f"{p.namespace}/{name}" for p, _ in with_volumes for name in p.template.claims or ())

    # filters

    def _class_of(self, claim: Object) -> Object | None:
        name = (claim.get("spec") or {}).get("storageClassName")
        return self.classes.get(name) if name else None

    def prefilter(self, pod: PodInfo) -> tuple[str, str] | None:
        """(plugin, why) when no node can help."""
        ephemeral = {f"{pod.name}-{v.get('name')}" for v in pod.template.volumes if "ephemeral" in v}
        unbound = False
        for name in pod.template.claims or ():
            claim = self.claims.get(f"{pod.namespace}/{name}")
            if claim is None:
                if name in ephemeral:
                    return "VolumeBinding", f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{name}"'
                return "VolumeBinding", f'persistentvolumeclaim "{name}" not found'
            if (claim.get("status") or {}).get("phase") == "Lost":
                return (
                    "VolumeBinding",
                    f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{(claim.get("spec") or {}).get("volumeName", "")}"',
                )
            if "deletionTimestamp" in claim["metadata"]:
                return "VolumeBinding", f'persistentvolumeclaim "{name}" is being deleted'
            storage_class = self._class_of(claim)
            late = storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
            unbound |= not is_bound(claim) and not (late and not (claim.get("spec") or {}).get("volumeName"))
        return ("VolumeBinding", "pod has unbound immediate PersistentVolumeClaims") if unbound else None

    def filter(self, pod: PodInfo, nodes: list[Object | None], codes: bytearray, first: int, last: int, enabled: frozenset[str]) -> None:
        claims = [self.claims[key] for name in pod.template.claims or () if (key := f"{pod.namespace}/{name}") in self.claims]
        if "VolumeRestrictions" in enabled:
            self._restrict(pod, claims, codes, first, last)
        if "NodeVolumeLimits" in enabled and self.limits:
            self._limit(pod, nodes, codes, first, last)
        bound = [(c, self.volumes.get(c["spec"]["volumeName"])) for c in claims if is_bound(c)]
        late = [c for c in claims if not is_bound(c)]
        if "VolumeBinding" in enabled:
            self._bind(bound, late, nodes, codes, first, last)
        zoned = [pv for _, pv in bound if pv is not None and any(k in (pv["metadata"].get("labels") or {}) for k in ZONE_LABELS)]
        if zoned and "VolumeZone" in enabled:
            for row in range(first, last):
                node = nodes[row]
                if not codes[row] and node is not None and not all(zones_allow(pv, node) for pv in zoned):
                    codes[row] = reasons.VOLUME_ZONE

    def _restrict(self, pod: PodInfo, claims: list[Object], codes: bytearray, first: int, last: int) -> None:
        single = {c["metadata"]["name"] for c in claims if "ReadWriteOncePod" in ((c.get("spec") or {}).get("accessModes") or ())}
        single = {name for name in single if self._users[f"{pod.namespace}/{name}"]}
        disks = disks_of(pod)
        if not single and not disks:
            return
        for row in self._pods:
            if first <= row < last and not codes[row]:
                others = self._pods[row].values()
                if any(a[:2] == b[:2] and not (a[2] and b[2]) for o in others for b in disks_of(o) for a in disks):
                    codes[row] = reasons.DISK_CONFLICT
                elif any(o.namespace == pod.namespace and not single.isdisjoint(o.template.claims or ()) for o in others):
                    codes[row] = reasons.ACCESS_MODE

    def _handles(self, pod: PodInfo) -> set[tuple[str, str]]:
        """(CSI driver, volume) that the pod attaches; a claim that is to be provisioned counts by its own name."""
        found = set()
        for name in pod.template.claims or ():
            claim = self.claims.get(f"{pod.namespace}/{name}")
            if claim is None:
                continue
            pv = self.volumes.get((claim.get("spec") or {}).get("volumeName") or "")
            if pv is not None:
                csi = (pv.get("spec") or {}).get("csi")
                if csi:
                    found.add((csi.get("driver", ""), csi.get("volumeHandle", "")))
            elif (storage_class := self._class_of(claim)) is not None:
                found.add((storage_class.get("provisioner", ""), f"{pod.namespace}/{name}"))
        return found

    def _limit(self, pod: PodInfo, nodes: list[Object | None], codes: bytearray, first: int, last: int) -> None:
        wanted = self._handles(pod)
        if not wanted:
            return
        for row in range(first, last):
            node = nodes[row]
            if codes[row] or node is None or not (limits := self.limits.get(node["metadata"]["name"])):
                continue
            there = set().union(*(self._handles(o) for o in self._pods.get(row, {}).values()))
            for driver in {d for d, _ in wanted}:
                new = sum(d == driver for d, _ in wanted - there)
                if new and driver in limits and sum(d == driver for d, _ in there) + new > limits[driver]:
                    codes[row] = reasons.VOLUME_LIMITS

    def _bind(self, bound: list[tuple[Object, Object | None]], late: list[Object], nodes: list[Object | None], codes: bytearray, first: int, last: int) -> None:
        if any(pv is None for _, pv in bound):
            for row in range(first, last):
                codes[row] = codes[row] or reasons.NO_PV
            return
        tied = [pv for _, pv in bound if pv is not None and (pv.get("spec") or {}).get("nodeAffinity")]
        if not tied and not late:
            return
        for row in range(first, last):
            node = nodes[row]
            if codes[row] or node is None:
                continue
            if not all(node_allowed(pv, node) for pv in tied):
                codes[row] = reasons.VOLUME_NODE
            elif late and self._match(late, node) is None:
                codes[row] = reasons.VOLUME_BIND

    def _match(self, late: list[Object], node: Object) -> list[tuple[Object, str]] | None:
        """For each unbound claim the volume to bind ("": provision one on this node); None when there is none."""
        found: list[tuple[Object, str]] = []
        taken: set[str] = set()
        for claim in late:
            wanted_node = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
            if wanted_node and wanted_node != node["metadata"]["name"]:
                return None
            name = "" if wanted_node else self._smallest(claim, node, taken)
            if not name:
                storage_class = self._class_of(claim)
                if storage_class is None or storage_class.get("provisioner") == NO_PROVISIONER or not class_allows(storage_class, node):
                    return None
            taken.add(name)
            found.append((claim, name))
        return found

    def _smallest(self, claim: Object, node: Object, taken: set[str]) -> str:
        """The smallest free volume that satisfies the claim on the node; "" when none does."""
        spec, meta = claim.get("spec") or {}, claim["metadata"]
        key = f"{meta['namespace']}/{meta['name']}"
        size = quantity.value(((spec.get("resources") or {}).get("requests") or {}).get("storage", 0))
        selector = selectors.from_object(spec["selector"]) if spec.get("selector") else selectors.EVERYTHING
        best, best_size = "", -1
        for name, pv in self.volumes.items():
            have = pv.get("spec") or {}
            owner = have.get("claimRef") or {}
            own = owner.get("name") == meta["name"] and owner.get("namespace") == meta["namespace"] and owner.get("uid", meta.get("uid")) == meta.get("uid")
            capacity = quantity.value((have.get("capacity") or {}).get("storage", 0))
            if name in taken or self.assumed.get(name, key) != key or (owner and not own) or "deletionTimestamp" in pv["metadata"]:
                continue
            if (have.get("storageClassName") or "") != (spec.get("storageClassName") or "") or capacity < size:
                continue
            if (have.get("volumeMode") or "Filesystem") != (spec.get("volumeMode") or "Filesystem"):
                continue
            if not set(spec.get("accessModes") or ()) <= set(have.get("accessModes") or ()) or not selector.matches(pv["metadata"].get("labels") or {}):
                continue
            if not own and (pv.get("status") or {}).get("phase") not in ("Available", None):
                continue
            if node_allowed(pv, node) and (not best or capacity < best_size):
                best, best_size = name, capacity
        return best

    def to_bind(self, pod: PodInfo, node: Object) -> list[tuple[Object, str]]:
        """What must be bound before `pod` goes to `node`: (claim, volume name or "" to provision). The volumes count as taken from here on."""
        claims = [self.claims[key] for name in pod.template.claims or () if (key := f"{pod.namespace}/{name}") in self.claims]
        late = [c for c in claims if not is_bound(c)]
        matched = (self._match(late, node) or []) if late else []
        for claim, name in matched:
            if name:
                self.assumed[name] = f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"
        return matched
