"""Claims and volumes: what fits what, and binding, provisioning, reclaiming and protection on the real API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastkube.controllers import persistentvolume
from fastkube.controllers import volumebinding as binding
from tests.controllers.world import World, world

Object = dict[str, Any]
VOLUMES, CLAIMS, PODS = "v1/persistentvolumes", "v1/persistentvolumeclaims", "v1/pods"
NAMES = (
    "serviceaccount-controller", "persistentvolume-binder-controller", "persistentvolumeclaim-protection-controller", "persistentvolume-protection-controller",
    "ephemeral-volume-controller", "garbage-collector-controller",
)  # fmt: skip


def volume(name: str, storage: str = "1Gi", storage_class: str = "", **spec: Any) -> Object:
    base = {"capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": f"/tmp/{name}"}, "storageClassName": storage_class}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": {"name": name}}, "spec": {**base, **spec}}


def claim(name: str = "data", storage: str = "1Gi", storage_class: str = "", **spec: Any) -> Object:
    base = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}, "storageClassName": storage_class}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"}, "spec": {**base, **spec}}


def test_the_smallest_that_fits() -> None:
    def available(v: Object) -> Object:
        return {**v, "status": {"phase": "Available"}}

    volumes = [
        available(volume("big", "10Gi")),
        available(volume("fits", "2Gi")),
        available(volume("small", "500Mi")),
        available(volume("other", "2Gi", "gold")),
    ]
    volumes.append(available(volume("block", "2Gi", volumeMode="Block")))
    volumes.append({**volume("taken", "2Gi", claimRef={"namespace": "x", "name": "y", "uid": "z"}), "status": {"phase": "Bound"}})
    name = lambda found: found and found["metadata"]["name"]  # noqa: E731
    assert name(binding.find(claim(storage="1Gi"), volumes, False)) == "fits"
    assert name(binding.find(claim(storage="3Gi"), volumes, False)) == "big"
    assert name(binding.find(claim(storage="30Gi"), volumes, False)) is None
    assert name(binding.find(claim(storage="1Gi", storage_class="gold"), volumes, False)) == "other"
    assert name(binding.find(claim(accessModes=["ReadWriteMany"]), volumes, False)) is None
    assert name(binding.find(claim(selector={"matchLabels": {"name": "big"}}), volumes, False)) == "big"
    assert name(binding.find(claim(volumeMode="Block"), volumes, False)) == "block"
    assert binding.find(claim(), volumes, True) is None
    reserved = available(volume("reserved", "50Gi", claimRef={"namespace": "default", "name": "data"}))
    mine = claim()
    mine["metadata"]["uid"] = "u"
    assert name(binding.find(mine, [*volumes, reserved], True)) == "reserved"


@pytest.fixture
async def w(tmp_path: Path):
    async with world() as running:
        running.options.local_path = str(tmp_path / "local-path")
        await running.start(*NAMES)
        await running.until(lambda: running.exists("v1/serviceaccounts", "default", "default"))
        yield running


async def phase(w: World, resource: str, name: str, wanted: str | None, namespace: str | None = None) -> Any:
    async def yes() -> Any:
        found = await w.exists(resource, name, namespace)
        if wanted is None:
            return found is None
        return found if found and (found.get("status") or {}).get("phase") == wanted else None

    return await w.until(yes)


async def test_a_claim_is_bound_and_a_volume_released(w: World) -> None:
    await w.client.create(VOLUMES, volume("one", "5Gi"))
    await w.client.create(VOLUMES, volume("two", "2Gi"))
    await phase(w, VOLUMES, "two", "Available")
    await w.client.create(CLAIMS, claim())
    bound = await phase(w, CLAIMS, "data", "Bound", "default")
    assert bound["spec"]["volumeName"] == "two" and bound["status"]["capacity"] == {"storage": "2Gi"}
    assert bound["metadata"]["annotations"] == {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
    assert "kubernetes.io/pvc-protection" in bound["metadata"]["finalizers"]
    two = await phase(w, VOLUMES, "two", "Bound")
    assert two["spec"]["claimRef"]["uid"] == bound["metadata"]["uid"]
    assert not await w.rest()
    await w.client.delete(VOLUMES, "two")
    assert "deletionTimestamp" in (await w.client.get(VOLUMES, "two"))["metadata"], "it is in use"
    await w.client.delete(CLAIMS, "data", "default")
    await phase(w, VOLUMES, "two", None)
    assert not await w.rest()


async def test_a_released_volume_stays_when_it_is_to_be_retained(w: World) -> None:
    await w.client.create(VOLUMES, volume("one"))
    await w.client.create(CLAIMS, claim())
    await phase(w, CLAIMS, "data", "Bound", "default")
    await w.client.delete(CLAIMS, "data", "default")
    await phase(w, VOLUMES, "one", "Released")
    await w.client.create(CLAIMS, claim())
    await phase(w, CLAIMS, "data", "Pending", "default")
    assert not await w.rest()
    assert any(e.startswith("FailedBinding: no persistent volumes available for this claim and no storage class is set") for e in await w.events("data"))


async def test_provisioned_where_the_pod_goes_and_deleted_with_the_claim(w: World) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}}
    await w.client.create("v1/nodes", node)
    storage_class = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local-path"}, "provisioner": persistentvolume.LOCAL_PATH}
    await w.client.create("storage.k8s.io/v1/storageclasses", {**storage_class, "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"})
    await w.client.create(CLAIMS, claim(storage_class="local-path"))
    await phase(w, CLAIMS, "data", "Pending", "default")
    assert not await w.rest()
    assert await w.events("data") == ["WaitForFirstConsumer: waiting for first consumer to be created before binding"]
    await w.client.patch(CLAIMS, "data", {"metadata": {"annotations": {binding.SELECTED_NODE: "n1"}}}, "default")  # the scheduler's choice
    bound = await phase(w, CLAIMS, "data", "Bound", "default")
    name = bound["spec"]["volumeName"]
    assert name == f"pvc-{bound['metadata']['uid']}"
    made = await w.client.get(VOLUMES, name)
    path = Path(made["spec"]["hostPath"]["path"])
    assert path.parent == Path(w.options.local_path) and made["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == ["n1"]
    path.mkdir(parents=True)  # as the node does at the first mount
    (path / "file").write_text("data")
    assert not await w.rest()
    await w.client.delete(CLAIMS, "data", "default")
    await phase(w, VOLUMES, name, None)
    assert not path.exists()


async def test_a_claim_in_use_outlives_its_deletion(w: World) -> None:
    kubelet = await w.run_pods()
    await w.client.create(VOLUMES, volume("one"))
    await w.client.create(CLAIMS, claim())
    spec = {"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}
    await w.client.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user", "namespace": "default"}, "spec": spec})

    async def running() -> Any:
        found = await w.client.get(PODS, "user", "default")
        return found if (found.get("status") or {}).get("phase") == "Running" else None

    pod = await w.until(running)
    await w.client.delete(CLAIMS, "data", "default")
    assert not await w.rest()
    assert await w.exists(CLAIMS, "data", "default")
    await kubelet.report(pod, False, "Succeeded")
    await phase(w, CLAIMS, "data", None, "default")


async def test_ephemeral_volumes_live_with_their_pod(w: World) -> None:
    await w.run_pods()
    template = {"metadata": {"labels": {"a": "b"}}, "spec": claim()["spec"]}
    spec = {"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]}
    await w.client.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec})
    made = await w.until(lambda: w.exists(CLAIMS, "p-scratch", "default"))
    assert made["metadata"]["labels"] == {"a": "b"} and made["metadata"]["ownerReferences"][0]["name"] == "p"
    await w.client.delete(PODS, "p", "default")
    await phase(w, CLAIMS, "p-scratch", None, "default")
