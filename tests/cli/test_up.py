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
