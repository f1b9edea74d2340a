"""The controller manager as a process has it: HTTPS, its own certificate, a service account with RBAC for each controller, election, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from fastkube.api.errors import ApiError
from fastkube.client import kubeconfig
from fastkube.client.http1 import Pool
from fastkube.controllers import manager
from fastkube.controllers.manager import Config, ManagerError
from fastkube.runtime.pki import Pki
from fastkube.server.app import ApiServer
from fastkube.server.config import Config as ServerConfig
from fastkube.store.embedded import EmbeddedStore
from tests.controllers.world import deployment


class Cluster:
    """An API server on loopback over TLS with RBAC, and kubeconfigs for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = Pki(directory / "pki")
        serving = self.pki.apiserver(["127.0.0.1", "localhost"])
        config = ServerConfig(
            secure_port=0, tls_cert_file=serving.cert, tls_private_key_file=serving.key, client_ca_file=self.pki.ca.cert,
            service_account_key_files=[self.pki.sa_pub], service_account_signing_key_file=self.pki.sa_key,
        )  # fmt: skip
        self.server = ApiServer(config, EmbeddedStore(None))

    def kubeconfig(self, name: str) -> str:
        port = self.server.addresses[0][1]
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(self.pki.kubeconfig(f"https://127.0.0.1:{port}", self.pki.client(name), name))
        return str(path)


@pytest.fixture
async def cluster(tmp_path: Path):
    made = Cluster(tmp_path)
    await made.server.start()
    yield made
    await made.server.close()


@contextlib.asynccontextmanager
async def managing(cluster: Cluster, **settings: Any):
    stop = asyncio.Event()
    config = Config(kubeconfig=cluster.kubeconfig("controller-manager"), root_ca_file=cluster.pki.ca.cert, **settings)
    running = asyncio.ensure_future(manager.run(config, stop))
    try:
        yield config
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await running


async def until(condition: Any, seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(ApiError):
                value = await condition()
                if value:
                    return value
            await asyncio.sleep(0.02)


async def test_controllers_work_as_their_own_accounts(cluster: Cluster) -> None:
    async with kubeconfig.load(cluster.kubeconfig("admin")) as admin, managing(cluster, leader_elect=False):
        await admin.create("apps/v1/deployments", deployment(replicas=2))

        async def pods() -> Any:
            found = (await admin.list("v1/pods", "default"))["items"]
            return found if len(found) == 2 else None

        (pod, _) = await until(pods)
        assert any(f["manager"] for f in pod["metadata"].get("managedFields") or [{"manager": "x"}])
        accounts = {a["metadata"]["name"] for a in (await admin.list("v1/serviceaccounts", "kube-system"))["items"]}
        assert {"deployment-controller", "replicaset-controller", "service-account-controller", "root-ca-cert-publisher"} <= accounts
        await until(lambda: admin.get("v1/configmaps", "kube-root-ca.crt", "default"))
        await admin.delete("apps/v1/deployments", "web", "default", propagation="Background")

        async def gone() -> bool:
            return not (await admin.list("apps/v1/replicasets", "default"))["items"]

        await until(gone)
        events = [e["reason"] for e in (await admin.list("v1/events", "default"))["items"]]
        assert "ScalingReplicaSet" in events


async def test_one_of_two_managers_leads_and_the_other_takes_over(cluster: Cluster) -> None:
    times = {"lease_seconds": 2.0, "renew_deadline_seconds": 1.0, "retry_seconds": 0.1}
    names = ["serviceaccount-controller"]
    async with kubeconfig.load(cluster.kubeconfig("admin")) as admin:

        async def holder() -> Any:
            return (await admin.get("coordination.k8s.io/v1/leases", "kube-controller-manager", "kube-system"))["spec"].get("holderIdentity")

        async with managing(cluster, controllers=names, **times):
            first = await until(holder)
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(managing(cluster, controllers=names, **times))
                await asyncio.sleep(0.5)
                assert await holder() == first
        assert not await holder(), "an orderly end gives the lease back"


async def test_health_and_metrics(cluster: Cluster) -> None:
    port = _free_port()
    async with (
        kubeconfig.load(cluster.kubeconfig("admin")) as admin,
        managing(cluster, leader_elect=False, secure_port=port, controllers=["serviceaccount-controller"]),
    ):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        pool = Pool(f"https://127.0.0.1:{port}", context)

        async def healthy() -> bool:
            try:
                return (await pool.request("GET", "/healthz", {})).body == b"ok"
            except Exception:
                return False

        await until(healthy)
        assert (await pool.request("GET", "/metrics", {})).status == 401
        assert (await pool.request("GET", "/metrics", {"Authorization": "Bearer nonsense"})).status == 403
        assert (await pool.request("GET", "/nothing", {})).status == 404
        await until(lambda: admin.get("v1/serviceaccounts", "default", "kube-system"))
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = (await admin.create("v1/serviceaccounts", request, "kube-system", name="default", subresource="token"))["status"]["token"]
        assert (await pool.request("GET", "/metrics", {"Authorization": f"Bearer {token}"})).status == 403
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "m"},
            "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}],
        }
        await admin.create("rbac.authorization.k8s.io/v1/clusterroles", role)
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "m"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "m"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "kube-system"}],
        }  # fmt: skip
        await admin.create("rbac.authorization.k8s.io/v1/clusterrolebindings", binding)

        async def metrics() -> Any:
            answer = await pool.request("GET", "/metrics", {"Authorization": f"Bearer {token}"})
            return answer.body.decode() if answer.status == 200 else None

        text = await until(metrics)
        assert 'workqueue_adds_total{name="serviceaccount-controller"}' in text and "leader_election_master_status" in text
        assert 'fastkube_informer_objects{resource="v1/namespaces"} 4' in text
        pool.close()


async def test_what_cannot_be_read_or_bound_is_said(cluster: Cluster) -> None:
    with pytest.raises(ManagerError, match="cannot read"):
        await manager.run(Config(kubeconfig=cluster.kubeconfig("controller-manager"), root_ca_file=Path("/nonexistent")), asyncio.Event())
    with pytest.raises(ManagerError, match="unknown controllers"):
        await manager.run(Config(kubeconfig=cluster.kubeconfig("controller-manager"), controllers=["nobody"]), asyncio.Event())
    taken = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(ManagerError, match="cannot serve"):
        await manager.run(Config(kubeconfig=cluster.kubeconfig("controller-manager"), secure_port=port), asyncio.Event())
    taken.close()


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
