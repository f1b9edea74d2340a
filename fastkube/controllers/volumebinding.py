"""Which PersistentVolume fits which claim: pure (k8s.io/component-helpers storage/volume, pkg/controller/volume/persistentvolume)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastkube.api.quantity import nanos
from fastkube.controllers.meta import Object, deleting, matcher, uid

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
BETA_STORAGE_PROVISIONER = "volume.beta.kubernetes.io/storage-provisioner"
BETA_CLASS = "volume.beta.kubernetes.io/storage-class"
NO_PROVISIONER = "kubernetes.io/no-provisioner"


def annotations_of(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("annotations") or {}


def class_of(obj: Object) -> str:
    """The storage class of a volume or claim; "" for none."""
    return annotations_of(obj).get(BETA_CLASS) or (obj.get("spec") or {}).get("storageClassName") or ""


def size(volume: Object) -> int:
    """Capacity in nano units."""
    return nanos(((volume["spec"].get("capacity") or {}).get("storage")) or "0")


def request(claim: Object) -> int:
    return nanos((((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")) or "0")


def refers_to(volume: Object, claim: Object) -> bool:
    """The volume is bound to, or reserved for, this very claim."""
    ref = volume["spec"].get("claimRef")
    if not ref:
        return False
    meta = claim["metadata"]
    return ref.get("name") == meta["name"] and ref.get("namespace") == meta["namespace"] and ref.get("uid", "") in ("", uid(claim))


def satisfies(volume: Object, claim: Object) -> bool:
    """What a volume must have to be bound to the claim, whoever asked for it: mode, class, access modes, size."""
    modes = lambda obj: obj["spec"].get("volumeMode") or "Filesystem"  # noqa: E731
    return (
        modes(volume) == modes(claim)
        and class_of(volume) == class_of(claim)
        and set(claim["spec"].get("accessModes") or ()) <= set(volume["spec"].get("accessModes") or ())
        and size(volume) >= request(claim)
        and (volume["spec"].get("volumeAttributesClassName") or "") == (claim["spec"].get("volumeAttributesClassName") or "")
    )


def find(claim: Object, volumes: Iterable[Object], delayed: bool) -> Object | None:
    """The volume to bind: one reserved for the claim, else the smallest free one that fits; with `delayed` binding only a reserved one."""
    fitting = [v for v in volumes if not deleting(v) and satisfies(v, claim)]
    reserved = [v for v in fitting if refers_to(v, claim)]
    if reserved or delayed:
        return min(reserved, key=_order, default=None)
    matches = matcher(claim["spec"]["selector"]) if claim["spec"].get("selector") else (lambda labels: True)
    free = [
        v
        for v in fitting
        if not v["spec"].get("claimRef") and (v.get("status") or {}).get("phase") == "Available" and matches(v["metadata"].get("labels") or {})
    ]
    return min(free, key=_order, default=None)


def _order(volume: Object) -> tuple[int, str]:
    return size(volume), volume["metadata"]["name"]


def waits_for_consumer(storage_class: Object | None) -> bool:
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def bound_volume(volume: Object, claim: Object) -> Object:
    """The volume as it is when bound to the claim."""
    meta = claim["metadata"]
    ref = {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": uid(claim),
        "resourceVersion": meta.get("resourceVersion"),
    }
    marks = {} if volume["spec"].get("claimRef") else {BOUND_BY_CONTROLLER: "yes"}
    had = volume["spec"].get("claimRef") or {}
    return {
        **volume,
        "metadata": {**volume["metadata"], "annotations": {**annotations_of(volume), **marks}},
        "spec": {**volume["spec"], "claimRef": had if had.get("uid") == uid(claim) else ref},
    }


def bound_claim(claim: Object, volume: Object) -> Object:
    """The claim as it is when bound to the volume."""
    marks = {BIND_COMPLETED: "yes"} | ({} if claim["spec"].get("volumeName") else {BOUND_BY_CONTROLLER: "yes"})
    return {
        **claim,
        "metadata": {**claim["metadata"], "annotations": {**annotations_of(claim), **marks}},
        "spec": {**claim["spec"], "volumeName": volume["metadata"]["name"]},
    }


def bound_status(claim: Object, volume: Object) -> Object:
    status: dict[str, Any] = {
        **(claim.get("status") or {}),
        "phase": "Bound",
        "accessModes": volume["spec"].get("accessModes"),
        "capacity": volume["spec"].get("capacity"),
    }
    return status


def claim_in_use(claim: Object, pods: Iterable[Object]) -> bool:
    """A pod that is on a node, and not over, mounts it."""
    name = claim["metadata"]["name"]
    return any(name in claims_of(p) and p["spec"].get("nodeName") and (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed") for p in pods)


def claims_of(pod: Object) -> set[str]:
    """Names of the claims that a pod mounts, ephemeral volumes' own included."""
    out = set()
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            out.add(volume["persistentVolumeClaim"]["claimName"])
        elif "ephemeral" in volume:
            out.add(f"{pod['metadata']['name']}-{volume['name']}")
    return out
