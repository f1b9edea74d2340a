"""`fastkube proxy` as users run it: a process in the node's namespace beside a real API server, programmed by Services and EndpointSlices."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastkube.proxy.layout import TABLE
from tests.apiprocess import ApiProcess
from tests.proxy.netns import World

NS = "/api/v1/namespaces/default"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
NODE = "192.0.2.2"


@pytest.fixture(scope="module")
def api(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    api = ApiProcess(tmp_path_factory.mktemp("api"), ("ip", "netns", "exec", world.node))
    api.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
    start(api)
    yield api
    api.close()


def start(api: ApiProcess, *arguments: str) -> None:
    api.start("proxy", f"--kubeconfig={api.kubeconfig}", "--hostname-override=n1", "--cluster-cidr=10.244.0.0/16", "--proxy-mode=nftables", *arguments)
    api.wait(lambda: '"programmed"' in api.log("proxy"))


def slice_(name: str, *addresses: str, ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [a], "nodeName": "n1", "conditions": {"ready": ready}} for a in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}], **spec}}


def answers(world: World, host: str, port: int) -> set[str]:
    return {a.split()[0] for a in world.ask(world.outside, host, port, count=8)}


def test_services_come_change_and_go(api: ApiProcess, world: World) -> None:
    made = api.create(f"{NS}/services", service("web", type="NodePort"))
    vip, node_port = made["spec"]["clusterIP"], made["spec"]["ports"][0]["nodePort"]
    api.wait(lambda: answers(world, vip, 80) == {"ConnectionRefusedError"})
    api.create(SLICES, slice_("web", "10.244.0.2"))
    api.wait(lambda: answers(world, vip, 80) == {"a"})
    assert answers(world, NODE, node_port) == {"a"}
    api.request("PUT", f"{SLICES}/web-1", slice_("web", "10.244.0.2", "10.244.0.3"))
    api.wait(lambda: answers(world, vip, 80) == {"a", "b"})
    api.request("PUT", f"{SLICES}/web-1", slice_("web", "10.244.0.3"))
    api.wait(lambda: answers(world, vip, 80) == {"b"})
    api.request("DELETE", f"{NS}/services/web")
    api.request("DELETE", f"{SLICES}/web-1")
    api.wait(lambda: answers(world, NODE, node_port) == {"ConnectionRefusedError"})
    assert vip not in world.exec(world.node, "nft", "list", "table", "ip", TABLE)


def test_the_node_reaches_services(api: ApiProcess, world: World) -> None:
    """Over the routes that win against the node's unreachable ones."""
    vip = api.create(f"{NS}/services", service("own"))["spec"]["clusterIP"]
    api.create(SLICES, slice_("own", "10.244.0.2"))
    api.wait(lambda: {a.split()[0] for a in world.ask(world.node, vip, 80)} == {"a"})
    assert world.ask(world.node, "10.96.77.77", 80) == ["ConnectionRefusedError"]


def test_rules_stay_while_the_proxy_is_away_and_are_mended_when_it_comes(api: ApiProcess, world: World) -> None:
    vip = api.create(f"{NS}/services", service("stay"))["spec"]["clusterIP"]
    gone = api.create(f"{NS}/services", service("gone"))["spec"]["clusterIP"]
    api.create(SLICES, slice_("stay", "10.244.0.2"))
    api.wait(lambda: answers(world, vip, 80) == {"a"})
    assert api.stop("proxy") == 0
    assert answers(world, vip, 80) == {"a"}
    api.request("DELETE", f"{NS}/services/gone")
    api.request("PUT", f"{SLICES}/stay-1", slice_("stay", "10.244.0.3"))
    start(api)
    api.wait(lambda: answers(world, vip, 80) == {"b"})
    assert gone not in world.exec(world.node, "nft", "list", "table", "ip", TABLE)


def test_somebody_deletes_the_table(api: ApiProcess, world: World) -> None:
    vip = api.create(f"{NS}/services", service("flushed"))["spec"]["clusterIP"]
    api.create(SLICES, slice_("flushed", "10.244.0.2"))
    api.wait(lambda: answers(world, vip, 80) == {"a"})
    for _ in range(3):
        world.exec(world.node, "nft", "flush", "ruleset")
        api.wait(lambda: answers(world, vip, 80) == {"a"})
    api.request("PUT", f"{SLICES}/flushed-1", slice_("flushed", "10.244.0.3"))
    api.wait(lambda: answers(world, vip, 80) == {"b"})


def test_health_check_node_port_and_own_health(api: ApiProcess, world: World) -> None:
    made = api.create(f"{NS}/services", service("lb", type="LoadBalancer", externalTrafficPolicy="Local"))
    port = made["spec"]["healthCheckNodePort"]

    def get(url: str) -> tuple[int, str]:
        out = world.exec(world.node, "curl", "-s", "-o", "-", "-w", "\n%{http_code}", url)
        body, _, code = out.rpartition("\n")
        return int(code), body

    api.wait(lambda: _refused(lambda: get(f"http://{NODE}:{port}/")) is not None)
    assert get(f"http://{NODE}:{port}/")[0] == 503
    api.create(SLICES, slice_("lb", "10.244.0.2"))
    api.wait(lambda: get(f"http://{NODE}:{port}/")[0] == 200)
    assert json.loads(get(f"http://{NODE}:{port}/")[1])["localEndpoints"] == 1
    assert get("http://127.0.0.1:10256/healthz")[0] == 200
    assert get("http://127.0.0.1:10249/proxyMode")[1] == "nftables"
    assert "fastkube_proxy_updates_total" in get("http://127.0.0.1:10249/metrics")[1]


def _refused(call: Any) -> Any:
    try:
        return call()
    except RuntimeError:
        return None


def test_cleanup_removes_everything(api: ApiProcess, world: World) -> None:
    api.stop("proxy")
    world.exec(world.node, sys.executable, "-m", "fastkube", "proxy", "--cleanup")
    assert TABLE not in world.exec(world.node, "nft", "list", "tables")
    assert "dev lo" not in world.ip(world.node, "route show")
    world.exec(world.node, sys.executable, "-m", "fastkube", "proxy", "--cleanup")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--proxy-mode=iptables", "--kubeconfig=x"], "iptables is not supported"),
        (["--proxy-mode=userspace", "--kubeconfig=x"], "none of"),
        (["--cluster-cidr=10.244.0.0/99", "--kubeconfig=x"], "--cluster-cidr"),
        (["--ipvs-scheduler=best", "--kubeconfig=x"], "--ipvs-scheduler"),
        (["--healthz-bind-address=x", "--kubeconfig=x"], "--healthz-bind-address"),
        ([], "--kubeconfig is needed"),
        (["--kubeconfig=/nowhere"], "/nowhere"),
    ],
)
def test_bad_settings_are_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(["unshare", "-n", sys.executable, "-m", "fastkube", "proxy", *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr, done.stderr


def test_configuration_file(tmp_path: Path) -> None:
    from fastkube.proxy.config import Config, ConfigError, load

    path = tmp_path / "config.yaml"
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    path.write_text(head + "mode: nftables\nclusterCIDR: 10.1.0.0/16,fd00::/64\nclientConnection: {kubeconfig: /k}\nipvs: {scheduler: lc}\n")
    found = load(path, Config())
    assert (found.mode, found.cluster_cidrs, found.kubeconfig, found.ipvs_scheduler) == ("nftables", ["10.1.0.0/16", "fd00::/64"], "/k", "lc")
    for text in (head + "winkernel: {}", "kind: Pod", head + "clientConnection: {burst: 1}", "["):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load(path, Config())
