"""Runs inside the virtual machine (test_ipvs.py starts it there): `fastkube up` with containerd, and an application that answers through IPVS."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster, wait_for

DATA = Path("/run/fastkube/data")  # in memory: containerd's files must lie neither on 9p nor on an overlay
SECONDS = 120.0  # for what takes one or two on a machine that is not emulated


class Here:
    """This machine in place of a network namespace."""

    enter: list[str] = []

    def run(self, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, check=more.pop("check", True), capture_output=True, text=True, timeout=more.pop("timeout", SECONDS), **more)


def say(*what: object) -> None:
    print(*what, flush=True)


def main() -> None:
    here = Here()
    DATA.parent.mkdir(parents=True)
    clusters.READY_SECONDS_MAX = 400
    cluster = Cluster(DATA, here)  # type: ignore[arg-type]
    try:
        say(cluster.start())
        cluster.import_images("nginx:1", "busybox:1")
        show(cluster, here)
    except BaseException:
        say(cluster.log_tail(60))
        raise
    cluster.down()
    assert "kube-ipvs0" not in here.run("ip", "link").stdout
    assert "->" not in here.run("ipvsadm", "-Ln").stdout.split("Conn\n")[-1]
    say("ALL SHOWN")


def show(cluster: Cluster, here: Here) -> None:
    kubectl = cluster.kubectl
    kubectl("create", "deployment", "web", "--image=nginx:1", "--replicas=2")
    kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    kubectl("run", "client", "--image=busybox:1", "--labels=app=own", "--port=80", "--", "httpd", "-f", "-p", "80", "-h", "/etc")
    kubectl("expose", "pod", "client", "--name=own", "--port=80")
    wait_for("the deployment", lambda: "2/2" in kubectl("get", "deployment", "web"), SECONDS)
    wait_for("the client", lambda: "Running" in kubectl("get", "pod", "client"), SECONDS)
    say(kubectl("get", "pods,services", "-o", "wide"))
    web = cluster.get("service", "web")["spec"]
    vip, node_port = web["clusterIP"], web["ports"][0]["nodePort"]
    pods = sorted(p["status"]["podIP"] for p in cluster.get("pods", "-l", "app=web")["items"])

    def virtual_server() -> str:
        listed = here.run("ipvsadm", "-Ln").stdout
        wanted = rf"TCP  {re.escape(vip)}:80 rr" + "".join(rf"\n  -> {re.escape(ip)}:80 +Masq +1 .*" for ip in pods)
        return listed if re.search(wanted, listed) else ""

    say(wait_for("the virtual server", virtual_server, SECONDS))
    assert "Welcome to nginx" in cluster.curl(f"http://{vip}/")
    assert "Welcome to nginx" in cluster.curl(f"http://10.245.0.1:{node_port}/")
    say(here.run("busybox", "ping", "-c", "2", vip).stdout)
    in_pod = ("exec", "client", "--")
    assert "Welcome to nginx" in kubectl(*in_pod, "wget", "-qO-", f"http://{vip}/")
    assert "2 packets received" in kubectl(*in_pod, "ping", "-c", "2", vip)
    found = kubectl(*in_pod, "nslookup", "web.default.svc.cluster.local")
    say(found)
    assert vip in found
    own = cluster.get("service", "own")["spec"]["clusterIP"]
    wait_for("the hairpin", lambda: "root:" in kubectl(*in_pod, "wget", "-qO-", f"http://{own}/passwd"), SECONDS)
    kubectl("scale", "deployment", "web", "--replicas=0")
    wait_for("the refusal", lambda: here.run("curl", "-sS", "-m", "5", f"http://{vip}/", check=False).returncode == 7, SECONDS)


if __name__ == "__main__":
    sys.exit(main())
