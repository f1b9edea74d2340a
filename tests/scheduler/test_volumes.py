"""Volumes: which nodes a pod's claims allow, in upstream's words."""

from fastkube.scheduler.podinfo import Templates
from fastkube.scheduler.snapshot import Failure, Snapshot

templates = Templates()
ZONE = "topology.kubernetes.io/zone"


def cluster():
    snapshot = Snapshot()
    for name, zone in (("n0", "a"), ("n1", "b")):
        labels = {"kubernetes.io/hostname": name, ZONE: zone}
        snapshot.set_node({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}})
    return snapshot


def make_pod(name, *claims, **volume):
    volumes = [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims] + ([{"name": "v", **volume}] if volume else [])
    return templates.pod({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": {"containers": [{"name": "c"}], "volumes": volumes}})


def claim(name, volume="", storage_class="", modes=("ReadWriteOnce",), **annotations):
    if volume:
        annotations["pv.kubernetes.io/bind-completed"] = "yes"
    spec = {"volumeName": volume, "storageClassName": storage_class, "accessModes": list(modes), "resources": {"requests": {"storage": "1Gi"}}}
    return {"metadata": {"name": name, "namespace": "d", "uid": name, "annotations": annotations}, "spec": spec}


def volume(name, zone="", labels=None, size="1Gi", **spec):
    if zone:
        terms = [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": [zone]}]}]
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], **spec}}


def says(snapshot, pod):
    decision = snapshot.decide(pod, 1)
    snapshot.check()
    return decision.message().partition(". ")[0] if isinstance(decision, Failure) else decision


def test_missing_and_unbound_claims():
    snapshot = cluster()
    assert says(snapshot, make_pod("p", "c")) == '0/2 nodes are available: persistentvolumeclaim "c" not found'
    snapshot.volumes.set_claim(claim("c"))
    assert says(snapshot, make_pod("p", "c")) == "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims"


def test_bound_volumes_tie_pods_to_their_nodes():
    snapshot = cluster()
    snapshot.volumes.set_claim(claim("c", "pv"))
    assert "bound to non-existent pv(s)" in says(snapshot, make_pod("p", "c"))
    snapshot.volumes.set_volume(volume("pv", "b"))
    assert says(snapshot, make_pod("p", "c")) == "n1"
    snapshot.volumes.set_volume(volume("pv", "z"))
    assert says(snapshot, make_pod("p", "c")) == "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity"
    snapshot.volumes.set_volume(volume("pv", labels={ZONE: "a__c"}))
    assert says(snapshot, make_pod("p", "c")) == "n0"


def test_wait_for_first_consumer_takes_the_smallest_that_fits_or_provisions():
    snapshot = cluster()
    late = {"metadata": {"name": "late"}, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}
    snapshot.volumes.set_class(late)
    snapshot.volumes.set_claim(claim("c", storage_class="late"))
    pod = make_pod("p", "c")
    assert says(snapshot, pod) == "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind"
    for name, size in (("big", "9Gi"), ("right", "2Gi"), ("small", "1Mi")):
        snapshot.volumes.set_volume(volume(name, "b", size=size, storageClassName="late"))
    assert says(snapshot, pod) == "n1"
    node = snapshot.nodes[snapshot.rows["n1"]]
    assert [name for _, name in snapshot.volumes.to_bind(pod, node)] == ["right"]
    snapshot.volumes.set_claim(claim("d", storage_class="late"))
    assert [name for _, name in snapshot.volumes.to_bind(make_pod("q", "d"), node)] == ["big"]  # the other is taken
    snapshot.volumes.set_class({**late, "provisioner": "csi"})
    snapshot.volumes.set_claim(claim("e", storage_class="late"))
    assert [name for _, name in snapshot.volumes.to_bind(make_pod("r", "e"), snapshot.nodes[snapshot.rows["n0"]])] == [""]


def test_a_read_write_once_pod_claim_has_one_pod():
    snapshot = cluster()
    snapshot.volumes.set_claim(claim("c", "pv", modes=("ReadWriteOncePod",)))
    snapshot.volumes.set_volume(volume("pv", "a"))
    snapshot.add_pod(make_pod("first", "c"), "n0")
    assert "ReadWriteOncePod access mode" in says(snapshot, make_pod("second", "c"))


def test_disks_conflict_unless_both_only_read():
    snapshot = cluster()
    for name in ("n0", "n1"):
        snapshot.add_pod(make_pod(f"on-{name}", gcePersistentDisk={"pdName": "d", "readOnly": True}), name)
    assert says(snapshot, make_pod("p", gcePersistentDisk={"pdName": "d"})) == "0/2 nodes are available: 2 node(s) had no available disk"
    assert says(snapshot, make_pod("p", gcePersistentDisk={"pdName": "d", "readOnly": True})) in ("n0", "n1")


def test_csi_limits():
    snapshot = cluster()
    for name in ("n0", "n1"):
        snapshot.volumes.set_csi_node({"metadata": {"name": name}, "spec": {"drivers": [{"name": "csi", "allocatable": {"count": 1}}]}})
    for i in range(3):
        snapshot.volumes.set_claim(claim(f"c{i}", f"pv{i}"))
        snapshot.volumes.set_volume(volume(f"pv{i}", csi={"driver": "csi", "volumeHandle": f"h{i}"}))
    snapshot.add_pod(make_pod("p0", "c0"), "n0")
    assert says(snapshot, make_pod("p1", "c1")) == "n1"
    snapshot.add_pod(make_pod("p1", "c1"), "n1")
    assert says(snapshot, make_pod("p2", "c2")) == "0/2 nodes are available: 2 node(s) exceed max volume count"
    assert says(snapshot, make_pod("p3", "c0")) == "n0"  # the same volume counts once
