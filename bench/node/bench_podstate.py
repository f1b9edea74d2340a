"""What one look at a pod costs the agent: plan and status of a pod with three containers that runs as it should, and the status patch."""

from __future__ import annotations

from fastkube.node import podstate, podstatus
from fastkube.node.model import Container, Memory, RuntimePod, Sandbox
from fastkube.node.statuses import merge_patch, same

NOW = 1_795_218_535.0


def _world():
    containers = [
        {"name": f"c{i}", "image": "nginx:1.25", "readinessProbe": {"tcpSocket": {"port": 80}}, "resources": {"requests": {"cpu": "100m"}}} for i in range(3)
    ]
    pod = {"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1}, "spec": {"containers": containers}, "status": {}}
    memory = Memory(start_time=NOW)
    runtime = RuntimePod("u", "p", "ns", [Sandbox("s", ips=("10.0.0.1",))])
    for i in range(3):
        runtime.containers.append(Container(f"id{i}", f"c{i}", "s", started_at=NOW))
        memory.ready[f"id{i}"] = True
    return pod, runtime, memory


def test_plan_of_a_steady_pod(benchmark):
    pod, runtime, memory = _world()
    assert benchmark(podstate.plan, pod, runtime, memory, NOW) == podstate.Plan()


def test_status_of_a_steady_pod(benchmark):
    pod, runtime, memory = _world()
    assert benchmark(podstatus.status, pod, runtime, memory, NOW, ["10.1.1.1"])["phase"] == "Running"


def test_patch_of_a_status(benchmark):
    pod, runtime, memory = _world()
    old = podstatus.status(pod, runtime, memory, NOW, ["10.1.1.1"])
    memory.ready["id0"] = False
    new = podstatus.status(pod, runtime, memory, NOW, ["10.1.1.1"])
    assert benchmark(lambda: (same(old, new), merge_patch(old, new)))[1]["containerStatuses"]
