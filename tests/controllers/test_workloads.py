"""Deployments and ReplicaSets on the real API server: what users see, and what it costs in writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from fastkube.api.errors import ApiError
from fastkube.controllers import rollout
from fastkube.controllers.meta import condition
from tests.controllers.world import World, deployment, world

DEPLOYMENTS, SETS, PODS = "apps/v1/deployments", "apps/v1/replicasets", "v1/pods"
WORKLOADS = ("serviceaccount-controller", "deployment-controller", "replicaset-controller")


@pytest.fixture
async def w():
    async with world() as running:
        await running.start(*WORKLOADS)
        yield running


async def status(w: World, name: str = "web") -> dict[str, Any]:
    return (await w.client.get(DEPLOYMENTS, name, "default")).get("status") or {}


async def available(w: World, count: int, name: str = "web") -> None:
    async def rolled_out() -> bool:
        d = await w.client.get(DEPLOYMENTS, name, "default")
        s = d.get("status") or {}
        counts = [s.get(k, 0) for k in ("replicas", "updatedReplicas", "availableReplicas")]
        return counts == [count] * 3 and s.get("observedGeneration") == d["metadata"]["generation"]

    await w.until(rolled_out)


async def set_image(w: World, image: str, name: str = "web") -> None:
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}
    await w.client.patch(DEPLOYMENTS, name, patch, "default", kind="strategic")


async def test_a_deployment_becomes_pods_and_says_so(w: World) -> None:
    await w.run_pods()
    await w.client.create(DEPLOYMENTS, deployment(replicas=3))
    await available(w, 3)
    (rs,) = await w.items(SETS)
    hashed = rs["metadata"]["labels"]["pod-template-hash"]
    assert rs["metadata"]["name"] == f"web-{hashed}" and rs["spec"]["selector"]["matchLabels"]["pod-template-hash"] == hashed
    assert rs["metadata"]["annotations"] == {
        "deployment.kubernetes.io/revision": "1",
        "deployment.kubernetes.io/desired-replicas": "3",
        "deployment.kubernetes.io/max-replicas": "4",
    }
    pods = await w.items(PODS, labels="app=web")
    assert len(pods) == 3 and all(p["metadata"]["name"].startswith(f"web-{hashed}-") for p in pods)
    ref = pods[0]["metadata"]["ownerReferences"][0]
    assert ref == {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": rs["metadata"]["name"],
        "uid": rs["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    d = await w.client.get(DEPLOYMENTS, "web", "default")
    assert d["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    progress = await w.until(lambda: _condition_with(w, "Progressing", "NewReplicaSetAvailable"))
    assert progress["message"] == f'ReplicaSet "web-{hashed}" has successfully progressed.'
    enough = condition(await w.client.get(DEPLOYMENTS, "web", "default"), "Available")
    assert (enough["status"], enough["reason"], enough["message"]) == ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    assert await w.until(lambda: w.events("web")) == [f"ScalingReplicaSet: Scaled up replica set web-{hashed} from 0 to 3"]
    created = sorted(await w.until(lambda: w.events(rs["metadata"]["name"])))
    assert created == sorted(f"SuccessfulCreate: Created pod: {p['metadata']['name']}" for p in pods)
    assert not await w.rest(), "a Deployment at rest costs no writes"


async def _condition_with(w: World, type: str, reason: str, name: str = "web") -> Any:
    found = condition(await w.client.get(DEPLOYMENTS, name, "default"), type)
    return found if found is not None and found["reason"] == reason else None


async def test_rolling_update_rollback_and_history(w: World) -> None:
    await w.run_pods()
    await w.client.create(DEPLOYMENTS, deployment(replicas=4, revisionHistoryLimit=2))
    await available(w, 4)
    low, high = 4, 0

    async def watch() -> None:
        nonlocal low, high
        while True:
            pods = await w.items(PODS)
            live = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
            low = min(low, sum((condition(p, "Ready") or {}).get("status") == "True" for p in live))
            high = max(high, len(live))
            await asyncio.sleep(0.002)

    watching = asyncio.ensure_future(watch())
    await set_image(w, "web:2")
    await available(w, 4)
    watching.cancel()
    assert low >= 3 and high <= 5
    revisions = {rs["spec"]["template"]["spec"]["containers"][0]["image"]: rs for rs in await w.items(SETS)}
    assert {i: rs["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for i, rs in revisions.items()} == {"web:1": "1", "web:2": "2"}
    assert {i: rs["spec"]["replicas"] for i, rs in revisions.items()} == {"web:1": 0, "web:2": 4}
    await set_image(w, "web:1")  # what `kubectl rollout undo` does: the old template again
    await available(w, 4)
    back = await w.client.get(SETS, revisions["web:1"]["metadata"]["name"], "default")
    assert back["spec"]["replicas"] == 4
    assert back["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    assert back["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"] == "1"
    for image in ("web:3", "web:4", "web:5"):
        await set_image(w, image)
        await available(w, 4)

    async def only_three() -> bool:
        return len(await w.items(SETS)) == 3

    await w.until(only_three)  # the newest and two old ones
    assert not await w.rest()


async def test_a_broken_image_stops_the_rollout_and_a_deadline_says_so(w: World) -> None:
    await w.run_pods(ready=lambda pod: pod["spec"]["containers"][0]["image"] != "bad")
    await w.client.create(DEPLOYMENTS, deployment(replicas=4, progressDeadlineSeconds=1))
    await available(w, 4)
    await set_image(w, "bad")
    stuck = await w.until(lambda: _condition_with(w, "Progressing", "ProgressDeadlineExceeded"))
    assert stuck["status"] == "False" and stuck["message"].endswith('" has timed out progressing.')
    s = await status(w)
    assert s["availableReplicas"] >= 3 and s["updatedReplicas"] <= 2 and s["unavailableReplicas"] >= 1
    await set_image(w, "web:9")
    await available(w, 4)
    assert await w.until(lambda: _condition_with(w, "Progressing", "NewReplicaSetAvailable"))


async def test_recreate_starts_nothing_before_all_is_gone(w: World) -> None:
    await w.run_pods()
    await w.client.create(DEPLOYMENTS, deployment(replicas=3, strategy={"type": "Recreate"}))
    await available(w, 3)
    images: list[set[str]] = []

    async def watch() -> None:
        while True:
            images.append({p["spec"]["containers"][0]["image"] for p in await w.items(PODS)})
            await asyncio.sleep(0.001)

    watching = asyncio.ensure_future(watch())
    await set_image(w, "web:2")
    await available(w, 3)
    watching.cancel()
    assert {"web:1", "web:2"} not in images


async def test_pause_scale_resume(w: World) -> None:
    await w.run_pods()
    await w.client.create(DEPLOYMENTS, deployment(replicas=2))
    await available(w, 2)
    await w.client.patch(DEPLOYMENTS, "web", {"spec": {"paused": True}}, "default")
    await w.until(lambda: _condition_with(w, "Progressing", "DeploymentPaused"))
    await set_image(w, "web:2")
    await w.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 5}}, "default")

    async def five() -> bool:
        return (await status(w)).get("availableReplicas") == 5

    await w.until(five)
    assert len(await w.items(SETS)) == 1, "a paused Deployment scales but does not roll out"
    await w.client.patch(DEPLOYMENTS, "web", {"spec": {"paused": False}}, "default")
    await available(w, 5)
    assert len(await w.items(SETS)) == 2


async def test_scaling_in_the_middle_of_a_rollout_is_proportional(w: World) -> None:
    await w.run_pods(ready=lambda pod: pod["spec"]["containers"][0]["image"] != "slow")
    await w.client.create(DEPLOYMENTS, deployment(replicas=10, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}))
    await available(w, 10)
    await set_image(w, "slow")

    async def sizes() -> dict[str, int]:
        return {rs["spec"]["template"]["spec"]["containers"][0]["image"]: rs["spec"]["replicas"] for rs in await w.items(SETS)}

    async def is_now(wanted: dict[str, int]) -> bool:
        return await sizes() == wanted

    await w.until(lambda: is_now({"web:1": 8, "slow": 5}))
    await w.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 15}}, "default")
    await w.until(lambda: is_now({"web:1": 11, "slow": 7}))


async def test_a_replica_set_heals_adopts_and_releases(w: World) -> None:
    await w.run_pods()
    template = deployment("rs", 3)["spec"]["template"]
    await w.client.create(
        PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stray", "namespace": "default", "labels": {"app": "rs"}}, "spec": template["spec"]}
    )
    rs = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "rs", "namespace": "default"}}
    await w.client.create(SETS, {**rs, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "rs"}}, "template": template}})

    async def ready(count: int) -> Any:
        s = (await w.client.get(SETS, "rs", "default")).get("status") or {}
        return s.get("readyReplicas") == s.get("replicas") == count

    await w.until(lambda: ready(3))
    pods = {p["metadata"]["name"]: p for p in await w.items(PODS)}
    assert len(pods) == 3 and pods["stray"]["metadata"]["ownerReferences"][0]["name"] == "rs"
    await w.client.patch(PODS, "stray", {"metadata": {"labels": {"app": "other"}}}, "default")

    async def replaced() -> bool:
        return len(await w.items(PODS, labels="app=rs")) == 3

    await w.until(replaced)
    assert not (await w.client.get(PODS, "stray", "default"))["metadata"].get("ownerReferences")
    victim = next(p for p in pods if p != "stray")
    await w.client.delete(PODS, victim, "default")

    async def healed() -> bool:
        names = {p["metadata"]["name"] for p in await w.items(PODS, labels="app=rs")}
        return victim not in names and len(names) == 3

    await w.until(healed)
    assert w.kubelet
    failed = (await w.items(PODS, labels="app=rs"))[0]
    await w.kubelet.report(failed, False, "Failed")

    async def four() -> bool:
        return len(await w.items(PODS, labels="app=rs")) == 4

    await w.until(four)  # the failed one stays to be looked at, another takes its place
    await w.client.patch(SETS, "rs", {"spec": {"replicas": 1}}, "default")
    await w.until(lambda: ready(1))
    assert not await w.rest()


async def test_pods_that_may_not_be_made_are_not_asked_for_again_and_again(w: World) -> None:
    bad = deployment(replicas=300)
    bad["spec"]["template"]["spec"]["serviceAccountName"] = "absent"
    await w.client.create(DEPLOYMENTS, bad)
    failure = await w.until(lambda: _condition_with(w, "ReplicaFailure", "FailedCreate"))
    assert failure["status"] == "True" and "absent" in failure["message"]
    assert w.writes["POST pods"] < 60, "slow start asks once, and backs off"
    await w.client.create("v1/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "absent", "namespace": "default"}})

    async def made() -> bool:
        return len(await w.items(PODS)) == 300

    await w.until(made)

    async def healed() -> bool:
        return condition(await w.client.get(DEPLOYMENTS, "web", "default"), "ReplicaFailure") is None

    await w.until(healed)


async def test_many_pods_cost_few_writes(w: World) -> None:
    await w.run_pods()
    await w.client.create(DEPLOYMENTS, deployment(replicas=300))
    await available(w, 300)
    spent = Counter({k: v for k, v in w.writes.items() if k.split()[1] in ("deployments", "replicasets", "events")})
    assert w.writes["POST pods"] == 300 * 2  # created and bound
    assert sum(spent.values()) < 150, spent


async def test_a_hash_collision_is_counted_on(w: World) -> None:
    await w.run_pods()
    await w.client.create(DEPLOYMENTS, deployment(replicas=0))

    async def one() -> Any:
        return await w.items(SETS)

    (rs,) = await w.until(one)
    # Somebody else's set sits on the name of the next template's hash: made by hand under the very name.
    d = await w.client.get(DEPLOYMENTS, "web", "default")
    d["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2"
    name = f"web-{rollout.template_hash(rollout.template_of(d), 0)}"
    squatter = {**rs, "metadata": {"name": name, "namespace": "default", "labels": {"app": "squat"}}}
    squatter["spec"] = {
        **rs["spec"],
        "selector": {"matchLabels": {"app": "squat"}},
        "template": {**rs["spec"]["template"], "metadata": {"labels": {"app": "squat"}}},
    }
    await w.client.create(SETS, squatter)
    await set_image(w, "web:2")

    async def collided() -> bool:
        return (await status(w)).get("collisionCount") == 1 and len(await w.items(SETS)) == 3

    await w.until(collided)


async def test_selecting_everything_is_refused_with_an_event(w: World) -> None:
    with pytest.raises(ApiError):
        await w.client.create(DEPLOYMENTS, {**deployment(), "spec": {**deployment()["spec"], "selector": {}}})


async def test_replication_controllers() -> None:
    async with world() as w:
        await w.start("serviceaccount-controller", "replicationcontroller-controller")
        await w.run_pods()
        template = deployment("rc", 2)["spec"]["template"]
        rc = {"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "rc", "namespace": "default"}}
        await w.client.create("v1/replicationcontrollers", {**rc, "spec": {"replicas": 2, "selector": {"app": "rc"}, "template": template}})

        async def ready() -> bool:
            return ((await w.client.get("v1/replicationcontrollers", "rc", "default")).get("status") or {}).get("readyReplicas") == 2

        await w.until(ready)
        assert not await w.rest()
