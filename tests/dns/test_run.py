"""`fastkube dns` against a real API server: it publishes itself, follows Services, and ends cleanly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastkube.runtime import entropy
from tests.apiprocess import ApiProcess
from tests.proxy.netns import require, run

SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


HOST, PORT = "10.245.0.1", 10053
ASK = """
import dnslib, json, sys
reply = dnslib.DNSRecord.parse(dnslib.DNSRecord.question(sys.argv[1], sys.argv[2]).send("10.245.0.1", 10053, timeout=5))
print(json.dumps([str(rr.rdata) for rr in reply.rr]))
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    """An API server in a namespace with the address that nodes have; DNS may not be published on loopback."""
    require()
    ns = f"fkx{entropy.suffix()}"
    run("ip", "netns", "add", ns)
    for command in ("link set lo up", "link add fastkube0 type bridge", f"addr add {HOST}/24 dev fastkube0", "link set fastkube0 up"):
        run("ip", "-n", ns, *command.split())
    try:
        api = ApiProcess(tmp_path, ("ip", "netns", "exec", ns))
        yield api
        api.close()
    finally:
        run("ip", "netns", "del", ns)


def test_dns_follows_the_api(api: ApiProcess) -> None:
    def ask(name: str, type_: str = "A") -> list[str]:
        out: list[str] = json.loads(subprocess.run([*api.enter, sys.executable, "-c", ASK, name, type_], capture_output=True, text=True, check=True).stdout)
        return out

    (api.directory / "resolv.conf").write_text("")
    api.start(
        "dns",
        f"--kubeconfig={api.kubeconfig}",
        f"--listen={HOST}:{PORT}",
        "--publish",
        f"--resolv-conf={api.directory / 'resolv.conf'}",
        "--http-bind-address=127.0.0.1:9153",
    )
    api.wait(lambda: '"answering"' in api.log("dns"))
    assert ask("kubernetes.default.svc.cluster.local") == ["10.96.0.1"]

    def published() -> list[str]:
        return ask("kube-dns.kube-system.svc.cluster.local")

    api.wait(lambda: published() == ["10.96.0.10"])
    [part] = api.wait(lambda: api.request("GET", "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices")["items"])
    assert part["endpoints"][0]["addresses"] == [HOST] and {p["port"] for p in part["ports"]} == {PORT}
    api.request("DELETE", "/api/v1/namespaces/kube-system/services/kube-dns")
    api.wait(lambda: published() == ["10.96.0.10"])  # whoever deletes it

    api.create(SERVICES, {"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}})
    part = {
        "metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": True}}],
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
    }
    api.create(SLICES, part)
    api.wait(lambda: ask("db-0.db.default.svc.cluster.local") == ["10.244.0.7"])
    assert ask("_sql._tcp.db.default.svc.cluster.local", "SRV") == ["0 100 5432 db-0.db.default.svc.cluster.local."]
    part["endpoints"][0]["conditions"]["ready"] = False  # type: ignore[index]
    api.request("PUT", f"{SLICES}/db-1", part)
    api.wait(lambda: ask("db.default.svc.cluster.local") == [])
    api.request("DELETE", f"{SERVICES}/db")
    for path, text in (("health", "OK"), ("ready", "OK"), ("metrics", "fastkube_dns_requests_total")):
        assert text in subprocess.run([*api.enter, "curl", "-sS", f"http://127.0.0.1:9153/{path}"], capture_output=True, text=True, check=True).stdout
    (api.directory / "resolv.conf").write_text("nameserver 10.245.0.1\nnameserver 10.245.0.9\n")  # the first are we ourselves
    api.wait(lambda: '"upstreams": ["10.245.0.9"]' in api.log("dns"))
    assert api.stop("dns") == 0


def test_an_address_in_use_is_told(api: ApiProcess) -> None:
    process = api.start("dns", f"--kubeconfig={api.kubeconfig}", f"--listen=127.0.0.1:{api.port}")
    assert process.wait(20) == 1
    assert "cannot listen" in api.log("dns")
    del api.processes["dns"]


def test_loopback_is_not_published(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "fastkube", "dns", "--kubeconfig=x", "--publish"], capture_output=True, text=True)
    assert done.returncode == 1 and "--publish" in done.stderr
