"""Persistent storage: binding claims to volumes, the built-in local-path provisioner, protection in use, claims of ephemeral volumes.

    persistentvolume-binder-controller              binds, provisions, releases and reclaims
    persistentvolumeclaim-protection-controller     a claim that a pod uses is not deleted under it
    persistentvolume-protection-controller          nor a volume under its claim
    ephemeral-volume-controller                     makes the claim of each pod's generic ephemeral volume

Binding is a pointer each way. The volume's comes first (claimRef, guarded by resourceVersion): who gets it there has the volume, and the claim's
pointer follows, also after a crash in between.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import ClassVar

from fastkube.api.errors import ApiError
from fastkube.client.informer import key_of
from fastkube.controllers import volumebinding as binding
from fastkube.controllers.meta import Object, deleting, owner_reference, uid
from fastkube.controllers.runtime import Controller
from fastkube.runtime import logs

VOLUMES, CLAIMS, CLASSES = "v1/persistentvolumes", "v1/persistentvolumeclaims", "storage.k8s.io/v1/storageclasses"
LOCAL_PATH = "fastkube.io/local-path"
PVC_PROTECTION, PV_PROTECTION = "kubernetes.io/pvc-protection", "kubernetes.io/pv-protection"
HOSTNAME_LABEL = "kubernetes.io/hostname"

log = logs.get("persistentvolume")


class Binder(Controller):
    name = "persistentvolume-binder-controller"
    account = "persistent-volume-binder"
    component = "persistentvolume-controller"
    workers = 1  # binding is matching: one at a time takes volumes

    def setup(self) -> None:
        self.volumes = self.informer(VOLUMES)
        self.volumes.add_handler(self._volume_changed, lambda old, new: self._volume_changed(new), self._volume_changed)
        self.claims = self.informer(CLAIMS)
        self.claims.add_handler(self._claim_changed, lambda old, new: self._claim_changed(new), self._claim_gone)
        self.classes = self.informer(CLASSES)
        self.classes.add_handler(lambda c: self._pending_changed(), lambda old, new: self._pending_changed())
        self.nodes = self.informer("v1/nodes")

    # --- events: keys are "volume NAME" and "claim NAMESPACE/NAME" ---

    def _volume_changed(self, volume: Object) -> None:
        self.queue.add(f"volume {volume['metadata']['name']}")
        ref = volume["spec"].get("claimRef")
        if ref:
            self.queue.add(f"claim {ref['namespace']}/{ref['name']}")
        else:
            self._pending_changed()

    def _claim_changed(self, claim: Object) -> None:
        self.queue.add(f"claim {key_of(claim)}")

    def _claim_gone(self, claim: Object) -> None:
        if claim["spec"].get("volumeName"):
            self.queue.add(f"volume {claim['spec']['volumeName']}")
        for volume in self.volumes.list():
            if binding.refers_to(volume, claim):
                self.queue.add(f"volume {volume['metadata']['name']}")

    def _pending_changed(self) -> None:
        for claim in self.claims.list():
            if (claim.get("status") or {}).get("phase", "Pending") == "Pending":
                self._claim_changed(claim)

    async def reconcile(self, key: str) -> float | None:
        what, _, name = key.partition(" ")
        await (self._volume(name) if what == "volume" else self._claim(name))
        return None

    # --- claims ---

    async def _claim(self, key: str) -> None:
        claim = self.claims.by_key(key)
        if claim is None or self.behind(claim) or deleting(claim):
            return
        if binding.BIND_COMPLETED in binding.annotations_of(claim):
            await self._bound_claim(claim)
        else:
            await self._unbound_claim(claim)

    async def _bound_claim(self, claim: Object) -> None:
        volume = self.volumes.get(None, claim["spec"].get("volumeName") or "")
        if volume is None or (volume["spec"].get("claimRef") and not binding.refers_to(volume, claim)):
            if (claim.get("status") or {}).get("phase") != "Lost":
                await self._claim_status(claim, {**(claim.get("status") or {}), "phase": "Lost"})
                self.recorder.event(claim, "Warning", "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
            return
        await self._bind(claim, volume)

    async def _unbound_claim(self, claim: Object) -> None:
        wanted = claim["spec"].get("volumeName")
        storage_class = self.classes.get(None, binding.class_of(claim))
        if wanted:
            volume = self.volumes.get(None, wanted)
            if volume is None or (volume["spec"].get("claimRef") and not binding.refers_to(volume, claim)):
                await self._pending(claim)
            elif not binding.satisfies(volume, claim):
                self.recorder.event(
                    claim, "Warning", "VolumeMismatch", f'Cannot bind to requested volume "{wanted}": its size, class, mode or access modes do not fit'
                )
                await self._pending(claim)
            else:
                await self._bind(claim, volume)
            return
        selected = binding.annotations_of(claim).get(binding.SELECTED_NODE)
        delayed = binding.waits_for_consumer(storage_class)
        found = binding.find(claim, self.volumes.list(), delayed and not selected)
        if found is not None and not (delayed and not binding.refers_to(found, claim)):
            await self._bind(claim, found)
        elif delayed and not selected:
            self.recorder.event(claim, "Normal", "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
            await self._pending(claim)
        elif storage_class is not None and storage_class.get("provisioner") not in (None, binding.NO_PROVISIONER):
            await self._provision(claim, storage_class, selected)
        else:
            name = binding.class_of(claim)
            text = (
                f'storageclass.storage.k8s.io "{name}" not found'
                if name and storage_class is None
                else "no persistent volumes available for this claim and no storage class is set"
            )
            self.recorder.event(
                claim,
                "Warning" if name and storage_class is None else "Normal",
                "ProvisioningFailed" if name and storage_class is None else "FailedBinding",
                text,
            )
            await self._pending(claim)

    async def _bind(self, claim: Object, volume: Object) -> None:
        if self.behind(volume):
            return
        bound = binding.bound_volume(volume, claim)
        if bound["spec"] != volume["spec"]:
            volume = await self._put(VOLUMES, bound)
        if (volume.get("status") or {}).get("phase") != "Bound":
            volume = await self._put(VOLUMES, {**volume, "status": {**(volume.get("status") or {}), "phase": "Bound"}}, "status")
        if claim["spec"].get("volumeName") != volume["metadata"]["name"] or binding.BIND_COMPLETED not in binding.annotations_of(claim):
            claim = await self._put(CLAIMS, binding.bound_claim(claim, volume))
        status = binding.bound_status(claim, volume)
        if status != (claim.get("status") or {}):
            await self._claim_status(claim, status)

    async def _pending(self, claim: Object) -> None:
        if (claim.get("status") or {}).get("phase") != "Pending":
            await self._claim_status(claim, {**(claim.get("status") or {}), "phase": "Pending"})

    async def _claim_status(self, claim: Object, status: Object) -> None:
        await self._put(CLAIMS, {**claim, "status": status}, "status")

    async def _put(self, resource: str, obj: Object, subresource: str | None = None) -> Object:
        answer = await self.client.update(resource, obj, subresource=subresource)
        self.wrote(answer)
        return answer

    # --- provisioning ---

    async def _provision(self, claim: Object, storage_class: Object, selected: str | None) -> None:
        provisioner = storage_class["provisioner"]
        if binding.annotations_of(claim).get(binding.STORAGE_PROVISIONER) != provisioner:
            marks = {binding.STORAGE_PROVISIONER: provisioner, binding.BETA_STORAGE_PROVISIONER: provisioner}
            claim = await self._put(CLAIMS, {**claim, "metadata": {**claim["metadata"], "annotations": {**binding.annotations_of(claim), **marks}}})
        if provisioner != LOCAL_PATH:
            text = f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator."
            self.recorder.event(
                claim,
                "Normal",
                "ExternalProvisioning",
                f"{text} If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
            )
            await self._pending(claim)
            return
        node = self.nodes.get(None, selected) if selected else next(iter(self.nodes.list()), None)
        if node is None:
            await self._pending(claim)
            return
        volume = local_volume(claim, storage_class, node, self.options.local_path)
        try:
            made = await self.client.create(VOLUMES, volume)
            self.wrote(made)
        except ApiError as e:
            if e.reason != "AlreadyExists":
                self.recorder.event(
                    claim, "Warning", "ProvisioningFailed", f'Failed to provision volume with StorageClass "{storage_class["metadata"]["name"]}": {e.message}'
                )
                raise
            return  # its event binds it
        self.recorder.event(claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {made['metadata']['name']} using {provisioner}")
        await self._bind(claim, made)

    # --- volumes ---

    async def _volume(self, name: str) -> None:
        volume = self.volumes.get(None, name)
        if volume is None or self.behind(volume):
            return
        ref = volume["spec"].get("claimRef")
        if not ref:
            await self._phase(volume, "Available")
            return
        if not ref.get("uid"):
            await self._phase(volume, "Available")  # reserved for a claim that has not come
            return
        claim = self.claims.get(ref["namespace"], ref["name"])
        if claim is None or uid(claim) != ref["uid"]:
            if not await self._claim_is_gone(ref):
                return
            if (volume.get("status") or {}).get("phase") != "Released":
                volume = await self._phase(volume, "Released")
            await self._reclaim(volume)
        elif not claim["spec"].get("volumeName"):
            self._claim_changed(claim)
        elif claim["spec"]["volumeName"] != name and binding.PROVISIONED_BY in binding.annotations_of(volume):
            await self._reclaim(volume)  # made for a claim that another volume got

    async def _claim_is_gone(self, ref: Object) -> bool:
        """The cache may lag behind a volume that was bound in the same moment: ask."""
        try:
            found = await self.client.get(CLAIMS, ref["name"], ref["namespace"])
        except ApiError as e:
            if e.code != 404:
                raise
            return True
        return uid(found) != ref["uid"]

    async def _phase(self, volume: Object, phase: str) -> Object:
        if (volume.get("status") or {}).get("phase") == phase:
            return volume
        return await self._put(VOLUMES, {**volume, "status": {**(volume.get("status") or {}), "phase": phase}}, "status")

    async def _reclaim(self, volume: Object) -> None:
        policy = volume["spec"].get("persistentVolumeReclaimPolicy", "Retain")
        if policy != "Delete" or binding.annotations_of(volume).get(binding.PROVISIONED_BY) != LOCAL_PATH or deleting(volume):
            return
        path = Path(volume["spec"]["hostPath"]["path"])
        if Path(self.options.local_path) in path.parents and path.exists():
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        log.info("volume reclaimed", volume=volume["metadata"]["name"])
        try:
            await self.client.delete(VOLUMES, volume["metadata"]["name"], uid=uid(volume))
        except ApiError as e:
            if e.code != 404:
                raise


def local_volume(claim: Object, storage_class: Object, node: Object, directory: str) -> Object:
    """The volume for a claim on one node: a directory of its own below `directory`, made by the node when it is first used. Pure."""
    meta = claim["metadata"]
    hostname = (node["metadata"].get("labels") or {}).get(HOSTNAME_LABEL, node["metadata"]["name"])
    term = {"matchExpressions": [{"key": HOSTNAME_LABEL, "operator": "In", "values": [hostname]}]}
    name = f"pvc-{uid(claim)}"
    ref = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": meta["namespace"], "name": meta["name"], "uid": uid(claim)}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {binding.PROVISIONED_BY: LOCAL_PATH}},
        "spec": {
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "volumeMode": claim["spec"].get("volumeMode", "Filesystem"),
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "storageClassName": storage_class["metadata"]["name"],
            "mountOptions": storage_class.get("mountOptions") or [],
            "claimRef": ref,
            "hostPath": {"path": f"{directory}/{name}_{meta['namespace']}_{meta['name']}", "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }


class _Protection(Controller):
    """Base: the object keeps its finalizer until it is being deleted and nobody uses it any more."""

    resource: ClassVar[str] = ""
    finalizer: ClassVar[str] = ""

    def setup(self) -> None:
        self.objects = self.informer(self.resource)
        self.objects.add_handler(self.enqueue, lambda old, new: self.enqueue(new))

    def in_use(self, obj: Object) -> bool:
        raise NotImplementedError

    async def reconcile(self, key: str) -> float | None:
        obj = self.objects.by_key(key)
        if obj is None or self.behind(obj):
            return None
        finalizers = obj["metadata"].get("finalizers") or []
        if deleting(obj) and self.finalizer in finalizers and not await self.really_unused(obj):
            return None
        if deleting(obj) == (self.finalizer in finalizers):
            wanted = [f for f in finalizers if f != self.finalizer] if deleting(obj) else [*finalizers, self.finalizer]
            self.wrote(await self.client.update(self.resource, {**obj, "metadata": {**obj["metadata"], "finalizers": wanted}}))
        return None

    async def really_unused(self, obj: Object) -> bool:
        return not self.in_use(obj)


class ClaimProtection(_Protection):
    name = "persistentvolumeclaim-protection-controller"
    account = "pvc-protection-controller"
    resource = CLAIMS
    finalizer = PVC_PROTECTION

    def setup(self) -> None:
        super().setup()
        self.pods = self.informer("v1/pods")
        self.pods.add_index("claim", lambda pod: [f"{pod['metadata']['namespace']}/{name}" for name in binding.claims_of(pod)])
        self.pods.add_handler(on_update=lambda old, new: self._pod_changed(new), on_delete=self._pod_changed)

    def _pod_changed(self, pod: Object) -> None:
        for name in binding.claims_of(pod):
            claim = self.objects.get(pod["metadata"]["namespace"], name)
            if claim is not None and deleting(claim):
                self.enqueue(claim)

    def in_use(self, obj: Object) -> bool:
        return binding.claim_in_use(obj, self.pods.by_index("claim", key_of(obj)))

    async def really_unused(self, obj: Object) -> bool:
        """The cache may not show a pod that was bound just now: ask before letting go."""
        if self.in_use(obj):
            return False
        live = await self.client.list("v1/pods", obj["metadata"]["namespace"])
        return not binding.claim_in_use(obj, live["items"])


class VolumeProtection(_Protection):
    name = "persistentvolume-protection-controller"
    account = "pv-protection-controller"
    resource = VOLUMES
    finalizer = PV_PROTECTION

    def in_use(self, obj: Object) -> bool:
        return (obj.get("status") or {}).get("phase") == "Bound"


class EphemeralVolumes(Controller):
    name = "ephemeral-volume-controller"

    def setup(self) -> None:
        self.pods = self.informer("v1/pods")
        self.pods.add_handler(self._pod_added)
        self.claims = self.informer(CLAIMS)
        self.claims.add_handler(on_delete=self._claim_deleted)

    def _pod_added(self, pod: Object) -> None:
        if any("ephemeral" in v for v in pod["spec"].get("volumes") or ()):
            self.enqueue(pod)

    def _claim_deleted(self, claim: Object) -> None:
        for ref in claim["metadata"].get("ownerReferences") or ():
            if ref["kind"] == "Pod":
                self.queue.add(f"{claim['metadata']['namespace']}/{ref['name']}")

    async def reconcile(self, key: str) -> float | None:
        pod = self.pods.by_key(key)
        if pod is None or deleting(pod):
            return None
        for volume in pod["spec"].get("volumes") or ():
            if "ephemeral" in volume:
                await self._claim(pod, volume)
        return None

    async def _claim(self, pod: Object, volume: Object) -> None:
        namespace, name = pod["metadata"]["namespace"], f"{pod['metadata']['name']}-{volume['name']}"
        found = self.claims.get(namespace, name)
        if found is not None:
            if not any(ref["uid"] == uid(pod) for ref in found["metadata"].get("ownerReferences") or ()):
                raise ApiError(409, "Conflict", f'PVC "{name}" was not created for pod "{key_of(pod)}"')
            return
        template = volume["ephemeral"]["volumeClaimTemplate"]
        meta = {k: v for k, v in (template.get("metadata") or {}).items() if k in ("labels", "annotations") and v}
        meta |= {"name": name, "namespace": namespace, "ownerReferences": [owner_reference(pod, "v1", "Pod")]}
        try:
            await self.client.create(CLAIMS, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": template["spec"]}, namespace)
        except ApiError as e:
            if e.reason != "AlreadyExists":
                self.recorder.event(pod, "Warning", "FailedCreate", f"ephemeral volume controller: create PVC {name}: {e.message}")
                raise
