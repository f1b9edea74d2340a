"""`fastkube up` as a contract: the ready line, the files, clean stops, kill -9, and clear refusals."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import wait_for
from tests.hollow import HollowCluster, free_port


def fastkube(*argv, **more):
    return subprocess.run([sys.executable, "-m", "fastkube", *argv], capture_output=True, text=True, timeout=60, **more)


@pytest.fixture
def cluster(tmp_path):
    cluster = HollowCluster(tmp_path / "data", nodes=1)
    yield cluster
    if cluster.process:
        cluster.stop()


def test_ready_line_files_and_clean_stop(cluster):
    line = cluster.start()
    assert "ready" in line and str(cluster.port) in line and str(cluster.kubeconfig) in line
    assert stat.S_IMODE(cluster.kubeconfig.stat().st_mode) == 0o600
    keys = list(cluster.data_dir.glob("pki/**/*.key"))
    assert len(keys) >= 8 and all(stat.S_IMODE(k.stat().st_mode) == 0o600 for k in keys)
    assert any((cluster.data_dir / "store").iterdir())
    assert "hollow-0" in cluster.kubectl("get", "nodes")
    children = [int(p) for p in Path(f"/proc/{cluster.process.pid}/task/{cluster.process.pid}/children").read_text().split()]
    assert children
    assert cluster.stop() == 0
    for line in cluster.log.read_text().splitlines():
        json.loads(line)
    for pid in children:
        wait_for("children end", lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 10)


def test_kill_9_of_everything_loses_nothing(cluster):
    cluster.start()
    for i in range(20):
        cluster.kubectl("create", "configmap", f"kept-{i}", f"--from-literal=n={i}")
    cluster.kubectl("create", "deployment", "web", "--image=i", "--replicas=3")
    wait_for("up", lambda: "3/3" in cluster.kubectl("get", "deployment", "web"), 30)
    before = {p["metadata"]["uid"] for p in json.loads(cluster.kubectl("get", "pods", "-o", "json"))["items"]}
    cluster.stop(signal.SIGKILL)
    time.sleep(0.5)
    cluster.start()
    assert cluster.kubectl("get", "configmaps", "-o", "name").count("kept-") == 20
    assert {p["metadata"]["uid"] for p in json.loads(cluster.kubectl("get", "pods", "-o", "json"))["items"]} == before
    cluster.kubectl("scale", "deployment/web", "--replicas=5")
    wait_for("goes on", lambda: "5/5" in cluster.kubectl("get", "deployment", "web"), 30)


def test_a_busy_port_is_said(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        done = fastkube("up", "--runtime=hollow", "--nodes=0", f"--data-dir={tmp_path}", f"--secure-port={port}")
    assert done.returncode == 1
    assert f"{port}" in done.stderr and "in use" in done.stderr and "Traceback" not in done.stderr


def test_a_data_directory_in_use_is_said(cluster):
    cluster.start()
    done = fastkube("up", "--runtime=hollow", "--nodes=0", f"--data-dir={cluster.data_dir}", f"--secure-port={free_port()}")
    assert done.returncode == 1
    assert str(cluster.data_dir) in done.stderr and "Traceback" not in done.stderr


def test_missing_containerd_is_said(tmp_path):
    done = fastkube("up", f"--data-dir={tmp_path}", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "containerd" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("part", ["up", "apiserver", "controller-manager", "scheduler", "kubelet", "proxy", "dns", "version"])
def test_an_unknown_flag_is_an_error(part):
    done = fastkube(part, "--no-such-flag=1")
    assert done.returncode == 2 and "no-such-flag" in done.stderr


def test_nodes_and_tokens(tmp_path):
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('s3cret,alice,1001,"system:masters,dev"\n')
    cluster = HollowCluster(tmp_path / "data", 0, f"--token-auth-file={tokens}", "--controllers=*,-node-lifecycle-controller")
    cluster.start()
    try:
        assert "No resources found" in cluster.kubectl("get", "nodes", check=False)
        who = cluster.kubectl(
            "auth",
            "whoami",
            "--token=s3cret",
            "--kubeconfig=/dev/null",
            f"--server=https://127.0.0.1:{cluster.port}",
            "--insecure-skip-tls-verify",
            "-o",
            "json",
        )
        assert json.loads(who)["status"]["userInfo"]["username"] == "alice"
    finally:
        assert cluster.stop(signal.SIGINT) == 0


def test_an_unknown_controller_is_said(tmp_path):
    done = fastkube("up", "--runtime=hollow", "--nodes=0", f"--data-dir={tmp_path}", f"--secure-port={free_port()}", "--controllers=*,-no-such-controller")
    assert done.returncode == 1 and "no-such-controller" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["localhost", "", "not-a-host", "1.2.3", "::1::"])
def test_a_bind_address_that_is_none_is_said(tmp_path, address):
    done = fastkube("up", "--runtime=hollow", "--nodes=0", f"--data-dir={tmp_path}", f"--secure-port={free_port()}", f"--bind-address={address}")
    assert done.returncode == 2 and "bind-address" in done.stderr and "Traceback" not in done.stderr


def test_files_that_cannot_be_written_are_said(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/fastkube")):
        done = fastkube("up", "--runtime=hollow", "--nodes=0", f"--data-dir={data_dir}", f"--secure-port={free_port()}")
        assert done.returncode == 1 and str(data_dir) in done.stderr and "Traceback" not in done.stderr
    kubeconfig = tmp_path / "directory"
    done = fastkube("up", "--runtime=hollow", "--nodes=0", f"--data-dir={tmp_path / 'data'}", f"--secure-port={free_port()}", f"--kubeconfig={kubeconfig}")
    assert done.returncode == 1 and str(kubeconfig) in done.stderr and "Traceback" not in done.stderr


def test_paths_as_people_write_them(tmp_path):
    """A relative data directory with a space in it, a kubeconfig in a directory that is not there yet, an IPv6 address."""
    port = free_port()
    arguments = ["--runtime=hollow", "--nodes=0", "--data-dir=my data", f"--secure-port={port}", "--bind-address=::1", "--kubeconfig=new/place/config"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "fastkube", "up", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True,
                                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    try:
        assert f"https://[::1]:{port}" in process.stdout.readline(), (tmp_path / "log").read_text()
        kubeconfig = tmp_path / "new/place/config"
        assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600 and (tmp_path / "my data/store").is_dir()
        done = subprocess.run(
            ["kubectl", "get", "ns", "-o", "name"], env={**os.environ, "KUBECONFIG": str(kubeconfig)}, capture_output=True, text=True, timeout=30
        )
        assert "namespace/kube-system" in done.stdout, done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # impatience changes nothing
        assert process.wait(30) == 0
        process.stdout.close()


def test_another_port_and_address_after_a_restart(cluster):
    """The kubeconfigs and the serving certificate follow; nothing else has to be told."""
    cluster.start()
    cluster.kubectl("create", "configmap", "kept")
    assert cluster.stop() == 0
    old, cluster.port = cluster.port, free_port()
    cluster.arguments = [a.replace(f"--secure-port={old}", f"--secure-port={cluster.port}") for a in cluster.arguments] + ["--bind-address=127.0.0.2"]
    assert f"https://127.0.0.2:{cluster.port}" in cluster.start()
    assert "configmap/kept" in cluster.kubectl("get", "configmaps", "-o", "name")
    cluster.kubectl("create", "deployment", "web", "--image=i")
    wait_for("the parts have followed", lambda: "1/1" in cluster.kubectl("get", "deployment", "web"), 30)


def test_two_clusters_side_by_side(cluster, tmp_path):
    other = HollowCluster(tmp_path / "other", nodes=2)
    cluster.start()
    other.start()
    try:
        other.kubectl("create", "namespace", "elsewhere")
        assert "elsewhere" not in cluster.kubectl("get", "namespaces")
        assert other.kubectl("get", "nodes", "-o", "name").count("node/") == 2 and cluster.kubectl("get", "nodes", "-o", "name").count("node/") == 1
    finally:
        assert other.stop() == 0
    assert cluster.kubectl("get", "--raw=/readyz") == "ok"


@pytest.mark.parametrize("after_seconds", [0.4, 1.2])
def test_a_signal_while_it_starts_is_a_clean_stop(tmp_path, after_seconds):
    """Whenever it comes: no traceback, nothing left running, and the next start works."""
    cluster = HollowCluster(tmp_path / "data", nodes=1)
    with open(cluster.log, "ab") as log:
        cluster.process = subprocess.Popen([sys.executable, "-m", "fastkube", *cluster.arguments], stdout=subprocess.PIPE, stderr=log, text=True)
    time.sleep(after_seconds)
    assert cluster.stop() in (0, -signal.SIGTERM)  # before Python has installed handlers the kernel ends it
    assert "Traceback" not in cluster.log.read_text()
    cluster.start()
    assert cluster.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--advertise-address=somewhere"], "--advertise-address"),
        (["--service-cluster-ip-range=wide"], "wide"),
        (["--authorization-mode=Trust"], "Trust"),
        (["--data-dir=/proc/fastkube"], "/proc/fastkube"),
        (["--bind-address=0.0.0.0"], "--tls-cert-file"),
    ],
)
def test_an_api_server_that_cannot_start_says_why(arguments, word):
    done = fastkube("apiserver", "--bind-address=127.0.0.1", f"--secure-port={free_port()}", *arguments)
    assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr
