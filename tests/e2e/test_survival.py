"""What is killed without warning comes back, and containers never notice (behaviours.md S9, N8)."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, Namespace, wait_for


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A cluster of this module's own, in a namespace of its own, as it gets killed."""
    namespace = Namespace(f"fkkill-{os.getpid()}")
    cluster = Cluster(tmp_path_factory.mktemp("kill") / "data", namespace)
    cluster.start()
    cluster.import_images("busybox:1")
    yield cluster
    cluster.down()
    namespace.delete()


def processes() -> list[int]:
    return [int(p) for p in os.listdir("/proc") if p.isdigit()]


def command(pid: int) -> bytes:
    """Its command line; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "steady"},
    "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", "echo started; trap exit TERM; while :; do sleep 1; done"]}]},
}  # fmt: skip


def identity(cluster):
    """What would differ if a container had been started again."""
    status = cluster.get("pod", "steady")["status"]["containerStatuses"][0]
    return status["containerID"], status["restartCount"], status["state"]["running"]["startedAt"]


def test_kill_9_of_everything(own):
    own.kubectl("apply", "-f", "-", stdin=json.dumps(POD))
    own.kubectl("wait", "--for=condition=Ready", "pod/steady", "--timeout=60s")
    before = identity(own)
    for i in range(10):
        own.kubectl("create", "configmap", f"kept-{i}", f"--from-literal=n={i}")
    own.stop(signal.SIGKILL)
    time.sleep(1)
    own.start()
    assert own.kubectl("get", "configmaps", "-o", "name").count("kept-") == 10
    wait_for("the pod is as it was", lambda: identity(own) == before)
    assert "started" in own.kubectl("logs", "steady")
    assert own.kubectl("exec", "steady", "--", "echo", "alive").strip() == "alive"


def test_kill_9_of_containerd(own):
    before = identity(own)
    pid = int((own.node_directory() / "containerd/containerd.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for("containerd is back", lambda: own.kubectl("exec", "steady", "--", "echo", "alive").strip() == "alive")
    assert identity(own) == before
    own.kubectl("run", "next", "--image=busybox:1", "--restart=Never", "--", "true")
    wait_for("new pods run", lambda: own.get("pod", "next")["status"]["phase"] == "Succeeded")


def test_each_part_comes_back(own):
    """Every child process is killed once; the cluster goes on."""
    before = identity(own)
    children = Path(f"/proc/{own.process.pid}/task/{own.process.pid}/children").read_text().split()
    parts = [pid for pid in map(int, children) if b"fastkube" in command(pid)]
    assert len(parts) >= 5
    for pid in parts:
        os.kill(pid, signal.SIGKILL)
    own.kubectl("create", "deployment", "again", "--image=busybox:1", "--replicas=2", "--", "sleep", "1000")
    own.kubectl("rollout", "status", "deployment/again", "--timeout=55s")
    assert identity(own) == before


def test_a_pod_deleted_while_all_was_down_goes(own):
    own.kubectl("delete", "pod", "steady", "--wait=false")
    own.stop(signal.SIGKILL)
    own.start()
    wait_for("gone", lambda: "NotFound" in own.kubectl("get", "pod", "steady", check=False))


def test_clean_stop_leaves_containers_running_and_down_removes_all(own):
    own.kubectl("wait", "--for=condition=Available", "deployment/again", "--timeout=30s")
    assert own.stop() == 0
    shims = [p for p in processes() if str(own.data_dir).encode() in command(p)]
    assert shims
    own.start()
    own.kubectl("wait", "--for=condition=Available", "deployment/again", "--timeout=30s")
    own.down()
    left = own.namespace.run("ip", "-o", "link").stdout
    assert [line.split(":")[1].strip() for line in left.splitlines()] == ["lo"]
    assert "fastkube" not in own.namespace.run("nft", "list", "ruleset").stdout
    assert not own.data_dir.exists()
    assert str(own.data_dir) not in Path("/proc/self/mountinfo").read_text()
    assert not [p for p in processes() if str(own.data_dir).encode() in command(p)]
