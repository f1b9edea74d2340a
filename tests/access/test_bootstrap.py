"""What a new cluster holds, and that a second start leaves it alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fastkube.runtime.pki import Pki
from fastkube.server import bootstrap
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.store.embedded import EmbeddedStore
from tests.access.conftest import ADMIN, Cluster


def config(directory: Path) -> Config:
    pki = Pki(directory / "pki")
    return Config(
        data_dir=directory / "store", secure_port=0, client_ca_file=pki.ca.cert, requestheader_client_ca_file=pki.front_proxy_ca.cert,
        service_account_key_files=[pki.sa_pub], service_account_signing_key_file=pki.sa_key,
    )  # fmt: skip


async def names(cluster: Cluster, path: str) -> set[str]:
    return {i["metadata"]["name"] for i in (await cluster.call("GET", path))[1]["items"]}


async def test_everything_is_there(cluster: Cluster) -> None:
    assert await names(cluster, "/api/v1/namespaces") == {"default", "kube-system", "kube-public", "kube-node-lease"}
    roles = await names(cluster, "/apis/rbac.authorization.k8s.io/v1/clusterroles")
    assert {"cluster-admin", "admin", "edit", "view", "system:node", "system:controller:deployment-controller", "system:coredns"} <= roles and len(roles) > 65
    assert {"system-node-critical", "system-cluster-critical"} == await names(cluster, "/apis/scheduling.k8s.io/v1/priorityclasses")
    levels = await names(cluster, "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations")
    assert levels == {"exempt", "catch-all", "system", "node-high", "leader-election", "workload-high", "workload-low", "global-default"}
    assert len(await names(cluster, "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas")) == 13
    service = (await cluster.call("GET", "/api/v1/namespaces/default/services/kubernetes"))[1]
    assert service["spec"]["clusterIP"] == "10.96.0.1" and service["metadata"]["labels"] == {"component": "apiserver", "provider": "kubernetes"}
    cidr = (await cluster.call("GET", "/apis/networking.k8s.io/v1/servicecidrs/kubernetes"))[1]
    assert cidr["spec"]["cidrs"] == ["10.96.0.0/12"] and cidr["status"]["conditions"][0]["type"] == "Ready"
    data = (await cluster.call("GET", "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"))[1]["data"]
    assert data["client-ca-file"].startswith("-----BEGIN CERTIFICATE") and data["requestheader-allowed-names"] == '["front-proxy-client"]'


async def test_the_service_leads_to_the_advertised_address(cluster: Cluster) -> None:
    where = bootstrap.Config(advertise_address="10.245.0.1", secure_port=6443)
    await bootstrap.run(where, cluster.server.reader, cluster.server.writer)
    subsets = (await cluster.call("GET", "/api/v1/namespaces/default/endpoints/kubernetes"))[1]["subsets"]
    assert subsets == [{"addresses": [{"ip": "10.245.0.1"}], "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}]
    moved = bootstrap.Config(advertise_address="10.245.0.2", secure_port=6444)
    await bootstrap.run(moved, cluster.server.reader, cluster.server.writer)
    part = (await cluster.call("GET", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"))[1]
    assert part["endpoints"][0]["addresses"] == ["10.245.0.2"] and part["ports"][0]["port"] == 6444


async def test_a_second_start_writes_nothing(tmp_path: Path) -> None:
    revisions = []
    for _ in range(2):
        server = ApiServer(config(tmp_path), EmbeddedStore(tmp_path / "store"))
        await server.start()
        try:
            for _ in range(50):  # IPAddress objects follow shortly
                if (await Cluster(server, Pki(tmp_path / "pki")).call("GET", "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.1", user=ADMIN))[0] == 200:
                    break
            revisions.append(server.store.revision)
        finally:
            await server.close()
    assert revisions[0] == revisions[1]


async def test_default_roles_are_brought_back_and_keep_what_was_added(cluster: Cluster) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:kube-dns"
    before = (await cluster.call("GET", path))[1]
    extra: dict[str, Any] = {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]}
    await cluster.call("PATCH", path, {"rules": [extra]})
    again = bootstrap.Config(client_ca=cluster.pki.ca.cert, front_proxy_ca=cluster.pki.front_proxy_ca.cert)
    await bootstrap.run(again, cluster.server.reader, cluster.server.writer)
    rules = (await cluster.call("GET", path))[1]["rules"]
    assert extra in rules and {v for r in rules for v in r["verbs"] if "endpoints" in r["resources"]} >= {"list", "watch"}
    off = copy.deepcopy(before["metadata"]["annotations"]) | {"rbac.authorization.kubernetes.io/autoupdate": "false"}
    await cluster.call("PATCH", path, {"metadata": {"annotations": off}, "rules": [extra]})
    await bootstrap.run(again, cluster.server.reader, cluster.server.writer)
    assert (await cluster.call("GET", path))[1]["rules"] == [extra]
    await cluster.call("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/cluster-admin")
    await bootstrap.run(again, cluster.server.reader, cluster.server.writer)
    assert (await cluster.call("GET", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/cluster-admin"))[0] == 200
