"""The live store of an API server through etcdctl: for the administrator's certificate only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastkube.runtime.pki import Pki
from tests.etcd.conftest import ROOT, free_port

SECONDS_MAX = 30.0


def ctl(url: str, pki: Pki, name: str, *args: str) -> subprocess.CompletedProcess:
    pair = pki.client(name)
    return subprocess.run(
        ["etcdctl", f"--endpoints={url}", f"--cacert={pki.ca.cert}", f"--cert={pair.cert}", f"--key={pair.key}", "--command-timeout=3s", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "ETCDCTL_API": "3"},
        timeout=20,
    )


@pytest.fixture
def cluster(tmp_path: Path):
    port, url = free_port(), f"https://127.0.0.1:{free_port()}"
    flags = [f"--data-dir={tmp_path}", "--nodes=0", "--runtime=hollow", f"--secure-port={port}", f"--etcd-listen-client-urls={url}"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "fastkube", "up", *flags], cwd=ROOT, stdout=log, stderr=log)
    deadline = time.monotonic() + SECONDS_MAX
    while "fastkube is ready" not in (tmp_path / "log").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.05)
    yield url, Pki(tmp_path / "pki")
    process.terminate()
    process.wait(30)


def test_the_registry_is_there_for_the_administrator_only(cluster) -> None:
    url, pki = cluster
    keys = ctl(url, pki, "admin", "get", "/registry", "--prefix", "--keys-only").stdout.split()
    assert "/registry/namespaces/default" in keys and "/registry/clusterrolebindings/cluster-admin" in keys
    value = ctl(url, pki, "admin", "get", "/registry/namespaces/default", "--print-value-only").stdout
    assert json.loads(value)["kind"] == "Namespace"
    for name in ("scheduler", "controller-manager"):
        refused = ctl(url, pki, name, "get", "/registry/secrets", "--prefix")
        assert refused.returncode and "permission denied" in refused.stderr
    snapshot = ctl(url, pki, "admin", "snapshot", "save", str(pki.ca.cert.parent / "backup.db"))
    assert snapshot.returncode == 0, snapshot.stderr
