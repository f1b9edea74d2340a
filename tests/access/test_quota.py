"""Quota: exact whatever happens at once. The ledger against counting anew, then the real pipeline under a crowd."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.api import resources
from fastkube.api.errors import ApiError
from fastkube.api.quantity import NANO, nanos
from fastkube.server.admission.quota import ResourceQuota
from fastkube.server.admission.usage import governed, of_pod, of_service, pod_amounts
from fastkube.server.request import AdmissionAttributes
from tests.access.conftest import ADMIN, Cluster, pod
from tests.access.memory import MemoryReader

PODS = resources.parse("v1/pods")
PATH = "/api/v1/namespaces/default"


class NoWriter:
    """The ledger's tests have no status to write."""


def sized(name: str, cpu: str, **spec: Any) -> dict[str, Any]:
    obj = pod(name, **spec)
    obj["metadata"]["namespace"] = "d"
    obj["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
    return obj


def counted(objs: list[dict[str, Any]], names: Any) -> dict[str, int]:
    return {name: sum(of_pod(obj).get(name, 0) for obj in objs) for name in names}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from("abcdef"), st.sampled_from(("100m", "1", "1500m"))),
        st.tuples(st.just("commit"), st.integers(0, 5), st.none()),
        st.tuples(st.just("fail"), st.integers(0, 5), st.none()),
        st.tuples(st.just("delete"), st.sampled_from("abcdef"), st.none()),
        st.tuples(st.just("finish"), st.sampled_from("abcdef"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_admitted_and_stored_never_exceed_the_quota(changes: list[Any]) -> None:
    reader = MemoryReader()
    reader.put("v1/resourcequotas", {"metadata": {"namespace": "d", "name": "q"}, "spec": {"hard": {"requests.cpu": "3", "pods": "4", "count/pods": "5"}}})
    plugin = ResourceQuota(reader, NoWriter())  # type: ignore[arg-type]
    flying: list[tuple[AdmissionAttributes, dict[str, Any]]] = []
    number = 0
    for what, which, size in changes:
        if what == "create" and not any(f[1]["metadata"]["name"] == which for f in flying) and reader.get(PODS, "d", which) is None:
            number += 1
            obj = sized(which, size)
            obj["metadata"]["uid"] = f"u{number}"
            attributes = AdmissionAttributes("CREATE", PODS, "", "d", which, obj, None, ADMIN)
            try:
                plugin.validate(attributes)
            except ApiError as e:
                assert e.code == 403 and "exceeded quota: q" in e.message
                continue
            flying.append((attributes, obj))
        elif what == "commit" and flying:
            reader.put(PODS, flying.pop(which % len(flying))[1])
        elif what == "fail" and flying:
            flying.pop(which % len(flying))[0].undo()
        elif what == "delete":
            reader.delete(PODS, "d", which)
        elif what == "finish" and (stored := reader.get(PODS, "d", which)):
            reader.put(PODS, {**stored, "status": {"phase": "Succeeded"}})
        stored_pods = list(reader.list(PODS, "d"))
        ledger = plugin._ledgers["d"]["q"]
        assert ledger.used == counted(stored_pods, ledger.hard)
        assert ledger.held == counted([o for _, o in flying], ledger.hard)
        assert all(ledger.used[n] + ledger.held[n] <= ledger.hard[n] for n in ledger.hard)
    # a ledger opened now counts the same
    fresh = ResourceQuota(reader, NoWriter())  # type: ignore[arg-type]
    assert fresh._ledgers["d"]["q"].used == plugin._ledgers["d"]["q"].used


def test_what_a_pod_takes() -> None:
    def container(cpu: str, **more: Any) -> dict[str, Any]:
        return {"name": "x", "resources": {"requests": {"cpu": cpu}}, **more}

    spec = {
        "containers": [container("1"), container("500m")],
        "initContainers": [container("2"), container("250m", restartPolicy="Always"), container("1600m")],
    }
    assert pod_amounts(spec, "requests") == {"cpu": nanos("2")}
    spec["initContainers"].append(container("1900m"))
    assert pod_amounts(spec, "requests") == {"cpu": nanos("2150m")}
    assert pod_amounts({**spec, "overhead": {"cpu": "100m"}}, "requests") == {"cpu": nanos("2250m")}
    assert pod_amounts({**spec, "resources": {"requests": {"cpu": "4"}}}, "requests") == {"cpu": nanos("4")}
    gpu = {"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "2", "hugepages-2Mi": "4Mi"}}}]}}
    assert of_pod(gpu) == {
        "count/pods": NANO,
        "pods": NANO,
        "requests.example.com/gpu": 2 * NANO,
        "hugepages-2Mi": nanos("4Mi"),
        "requests.hugepages-2Mi": nanos("4Mi"),
    }
    assert of_service({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}})["services.nodeports"] == 2 * NANO
    assert [governed(n) for n in ("count/deployments.apps", "limits.cpu", "requests.storage", "requests.example.com/gpu", "configmaps", "nonsense")] == [
        ("apps", "deployments"), ("", "pods"), ("", "persistentvolumeclaims"), ("", "pods"), ("", "configmaps"), None,
    ]  # fmt: skip


async def used(cluster: Cluster, name: str = "q") -> dict[str, str]:
    await asyncio.sleep(0.25)
    return (await cluster.call("GET", f"{PATH}/resourcequotas/{name}"))[1].get("status", {}).get("used", {})


async def quota(cluster: Cluster, **spec: Any) -> None:
    await cluster.make(f"{PATH}/resourcequotas", {"metadata": {"name": "q"}, "spec": spec})


async def test_a_crowd_gets_exactly_what_there_is(cluster: Cluster) -> None:
    await cluster.account()
    await quota(cluster, hard={"pods": "7", "count/configmaps": "3"})
    pods = [cluster.call("POST", f"{PATH}/pods", pod(f"p{i}")) for i in range(30)]
    maps = [cluster.call("POST", f"{PATH}/configmaps", {"metadata": {"name": f"c{i}"}}) for i in range(10)]
    answers = await asyncio.gather(*pods, *maps)
    assert [sum(s == 201 for s, _ in part) for part in (answers[:30], answers[30:])] == [7, 3]
    refusal = next(a["message"] for s, a in answers[:30] if s == 403)
    assert refusal.endswith("exceeded quota: q, requested: pods=1, used: pods=7, limited: pods=7")
    assert await used(cluster) == {"pods": "7", "count/configmaps": "3"}
    first = next(i for i, (s, _) in enumerate(answers[:30]) if s == 201)
    assert (await cluster.call("DELETE", f"{PATH}/pods/p{first}?gracePeriodSeconds=0"))[0] == 200
    assert await used(cluster) == {"pods": "6", "count/configmaps": "3"}
    assert (await cluster.call("POST", f"{PATH}/pods", pod("more")))[0] == 201


async def test_failed_writes_and_dry_runs_take_nothing(cluster: Cluster) -> None:
    await cluster.account()
    await quota(cluster, hard={"pods": "1"})
    for _ in range(3):
        assert (await cluster.call("POST", f"{PATH}/pods?dryRun=All", pod("dry")))[0] == 201
    assert (await cluster.call("POST", f"{PATH}/pods", pod("real")))[0] == 201
    assert (await cluster.call("POST", f"{PATH}/pods", pod("real")))[0] in (403, 409)
    await cluster.call("DELETE", f"{PATH}/pods/real?gracePeriodSeconds=0")
    assert (await cluster.call("POST", f"{PATH}/pods", pod("again")))[0] == 201


async def test_a_quota_on_compute_demands_that_containers_say(cluster: Cluster) -> None:
    await cluster.account()
    await quota(cluster, hard={"requests.cpu": "1", "limits.memory": "1Gi"})
    status, answer = await cluster.call("POST", f"{PATH}/pods", pod("p"))
    assert (status, answer["message"]) == (403, 'pods "p" is forbidden: failed quota: q: must specify limits.memory for: c; requests.cpu for: c')
    body = pod("p")
    body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "600m"}, "limits": {"memory": "256Mi"}}
    assert (await cluster.call("POST", f"{PATH}/pods", body))[0] == 201
    status, answer = await cluster.call("POST", f"{PATH}/pods", {**body, "metadata": {"name": "p2"}})
    assert (status, answer["message"]) == (
        403,
        'pods "p2" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1',
    )
    assert await used(cluster) == {"requests.cpu": "600m", "limits.memory": "256Mi"}


async def test_scopes_choose_pods(cluster: Cluster) -> None:
    await cluster.account()
    await quota(cluster, hard={"pods": "1"}, scopes=["BestEffort"])
    selector = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["system-node-critical"]}]}
    await cluster.make(f"{PATH}/resourcequotas", {"metadata": {"name": "critical"}, "spec": {"hard": {"pods": "0"}, "scopeSelector": selector}})
    assert (await cluster.call("POST", f"{PATH}/pods", pod("a")))[0] == 201
    assert (await cluster.call("POST", f"{PATH}/pods", pod("b")))[0] == 403
    burstable = pod("c")
    burstable["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1m"}}
    assert (await cluster.call("POST", f"{PATH}/pods", burstable))[0] == 201
    critical = pod("d", priorityClassName="system-node-critical")
    critical["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1m"}}
    assert "exceeded quota: critical" in (await cluster.call("POST", f"{PATH}/pods", critical))[1]["message"]


async def test_updates_count_the_difference(cluster: Cluster) -> None:
    await quota(cluster, hard={"services.nodeports": "2"})
    service = {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80}]}}
    assert (await cluster.call("POST", f"{PATH}/services", service))[0] == 201
    two = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    assert (await cluster.call("PATCH", f"{PATH}/services/s", {"spec": {"ports": two}}))[0] == 200
    three = [*two, {"name": "c", "port": 82}]
    status, answer = await cluster.call("PATCH", f"{PATH}/services/s", {"spec": {"ports": three}})
    assert status == 403 and "requested: services.nodeports=1, used: services.nodeports=2" in answer["message"]
    assert (await cluster.call("PATCH", f"{PATH}/services/s", {"spec": {"type": "ClusterIP"}}))[0] == 200
    assert await used(cluster) == {"services.nodeports": "0"}


async def test_a_new_bound_is_counted_at_once(cluster: Cluster) -> None:
    for i in range(3):
        await cluster.make(f"{PATH}/secrets", {"metadata": {"name": f"s{i}"}})
    await quota(cluster, hard={"secrets": "3"})
    assert (await cluster.call("POST", f"{PATH}/secrets", {"metadata": {"name": "s3"}}))[0] == 403
    assert await used(cluster) == {"secrets": "3"}
    await cluster.call("PATCH", f"{PATH}/resourcequotas/q", {"spec": {"hard": {"secrets": "4"}}})
    assert (await cluster.call("POST", f"{PATH}/secrets", {"metadata": {"name": "s3"}}))[0] == 201
    await cluster.call("DELETE", f"{PATH}/resourcequotas/q")
    assert (await cluster.call("POST", f"{PATH}/secrets", {"metadata": {"name": "s4"}}))[0] == 201
