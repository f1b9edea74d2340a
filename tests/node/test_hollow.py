"""Hollow nodes: what they write, and their life against a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.node.hollow import Config, Node, needs_start, node_object, pod_network, pod_status, slim
from tests.apiprocess import ApiProcess

PODS = "/api/v1/namespaces/default/pods"
NOW, LATER = "2026-11-20T10:00:00Z", "2026-11-20T10:00:05Z"


def pod(name: str = "p", node: str = "hollow-0", annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "annotations": annotations or {}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx"}], **spec},
    }


def test_a_running_pod_is_ready_and_keeps_its_start() -> None:
    status = pod_status(slim(pod()), "127.64.0.1", "10.244.0.2", NOW)
    assert (status["phase"], status["podIP"], status["startTime"]) == ("Running", "10.244.0.2", NOW)
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"), "True"
    )
    again = pod() | {"status": status}
    assert not needs_start(slim(again))
    later = pod_status(slim(again), "127.64.0.1", "10.244.0.2", LATER)
    assert later["startTime"] == NOW and {c["lastTransitionTime"] for c in later["conditions"]} == {NOW}


@pytest.mark.parametrize(
    ("policy", "code", "phase", "restarts"),
    [("Never", 0, "Succeeded", 0), ("Never", 3, "Failed", 0), ("OnFailure", 0, "Succeeded", 0), ("OnFailure", 1, "Running", 1), ("Always", 0, "Running", 1)],
)
def test_exits(policy: str, code: int, phase: str, restarts: int) -> None:
    status = pod_status(slim(pod(restartPolicy=policy)), "127.64.0.1", "10.244.0.2", NOW, code)
    [container] = status["containerStatuses"]
    assert (status["phase"], container["restartCount"], container["ready"]) == (phase, restarts, phase == "Running")
    ended = container["lastState"] if restarts else container["state"]
    assert ended["terminated"]["exitCode"] == code


def test_init_containers_are_done_and_sidecars_run() -> None:
    spec = {"initContainers": [{"name": "i", "image": "x"}, {"name": "s", "image": "x", "restartPolicy": "Always"}]}
    init, sidecar = pod_status(slim(pod(**spec)), "127.64.0.1", "10.244.0.2", NOW)["initContainerStatuses"]
    assert init["state"]["terminated"]["exitCode"] == 0 and "running" in sidecar["state"]


def test_readiness_gates_hold_back() -> None:
    gated = pod(readinessGates=[{"conditionType": "example.com/ok"}])
    status = pod_status(slim(gated), "127.64.0.1", "10.244.0.2", NOW)
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "False"
    status["conditions"].append({"type": "example.com/ok", "status": "True"})
    opened = slim(gated | {"status": status})
    assert needs_start(opened)
    after = {c["type"]: c["status"] for c in pod_status(opened, "127.64.0.1", "10.244.0.2", LATER)["conditions"]}
    assert after["Ready"] == "True" and after["example.com/ok"] == "True"


def test_nodes_differ() -> None:
    nodes = [node_object(Config("k"), i, NOW) for i in (0, 1, 255, 256, 9999)]
    assert len({n["spec"]["podCIDR"] for n in nodes}) == len({n["status"]["addresses"][0]["address"] for n in nodes}) == 5
    assert pod_network(0) == "10.244.0.0/24"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_addresses_are_unique_and_come_back(steps: list[tuple[bool, int]]) -> None:
    node = Node("n", "127.64.0.1", "10.244.0.0/29")
    total = len(node.free)
    for take, n in steps:
        if take:
            address = node.take(str(n))
            assert address == "" or node.take(str(n)) == address
        else:
            node.release(str(n))
        assert len(set(node.addresses.values())) == len(node.addresses) and len(node.free) + len(node.addresses) == total


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    api = ApiProcess(tmp_path)
    yield api
    api.close()


def ready(api: ApiProcess) -> list[str]:
    nodes = api.request("GET", "/api/v1/nodes")["items"]
    return sorted(n["metadata"]["name"] for n in nodes if any(c["type"] == "Ready" and c["status"] == "True" for c in n["status"]["conditions"]))


def phases(api: ApiProcess) -> dict[str, str]:
    return {p["metadata"]["name"]: p["status"]["phase"] for p in api.request("GET", PODS)["items"]}


def test_life_of_nodes_and_pods(api: ApiProcess) -> None:
    api.start("hollow", f"--kubeconfig={api.kubeconfig}", "--nodes=3")
    api.wait(lambda: ready(api) == ["hollow-0", "hollow-1", "hollow-2"])
    leases = api.request("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")["items"]
    assert len(leases) == 3 and leases[0]["spec"]["leaseDurationSeconds"] == 40
    for i in range(6):
        api.create(PODS, pod(f"p{i}", f"hollow-{i % 3}"))
    api.create(PODS, pod("job", restartPolicy="Never", annotations={"fastkube.dev/hollow-exit-after": "0.5", "fastkube.dev/hollow-exit-code": "2"}))
    api.create(PODS, pod("elsewhere", node="real"))
    api.wait(lambda: set(phases(api).values()) == {"Running", "Failed", "Pending"})
    assert phases(api)["elsewhere"] == "Pending"
    pods = {p["metadata"]["name"]: p for p in api.request("GET", PODS)["items"]}
    addresses = {name: p["status"]["podIP"] for name, p in pods.items() if name != "elsewhere"}
    assert len(set(addresses.values())) == 7

    api.stop("hollow")  # the next ones take over what runs
    api.start("hollow", f"--kubeconfig={api.kubeconfig}", "--nodes=3")
    api.create(PODS, pod("late", "hollow-0"))
    api.wait(lambda: phases(api)["late"] == "Running")
    after = {p["metadata"]["name"]: p["status"].get("podIP") for p in api.request("GET", PODS)["items"]}
    assert after["late"] not in addresses.values() and all(after[name] == address for name, address in addresses.items())
    for name in [*addresses, "late"]:
        api.request("DELETE", f"{PODS}/{name}")
    api.wait(lambda: list(phases(api)) == ["elsewhere"])


def test_no_nodes_are_allowed(api: ApiProcess) -> None:
    api.start("hollow", f"--kubeconfig={api.kubeconfig}", "--nodes=0")
    asyncio.run(asyncio.sleep(0.5))
    assert api.stop("hollow") == 0 and ready(api) == []
