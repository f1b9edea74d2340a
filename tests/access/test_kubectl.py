"""kubectl's own questions about access, over HTTPS with real certificates and tokens."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fastkube.runtime.config import write_file
from fastkube.runtime.pki import Pki
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.store.embedded import EmbeddedStore

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
Kubectl = Callable[..., Awaitable[str]]


@pytest.fixture
async def kubectl(tmp_path: Path) -> AsyncIterator[Kubectl]:
    pki = Pki(tmp_path / "pki")
    pair = pki.apiserver()
    config = Config(
        secure_port=0, tls_cert_file=pair.cert, tls_private_key_file=pair.key, client_ca_file=pki.ca.cert, requestheader_client_ca_file=pki.front_proxy_ca.cert,
        service_account_key_files=[pki.sa_pub], service_account_signing_key_file=pki.sa_key,
    )  # fmt: skip
    server = ApiServer(config, EmbeddedStore(None))
    await server.start()
    url = f"https://127.0.0.1:{server.addresses[0][1]}"
    for name in ("admin", "scheduler"):
        write_file(tmp_path / f"{name}.kubeconfig", pki.kubeconfig(url, pki.client(name), name), 0o600)

    async def run(*arguments: str, identity: str = "admin", token: str = "", fails: bool = False, stdin: str = "") -> str:
        where = ["--kubeconfig", str(tmp_path / f"{identity}.kubeconfig"), "--cache-dir", str(tmp_path / "cache")]
        if token:
            where = [
                "--kubeconfig",
                "/dev/null",
                "--server",
                url,
                "--certificate-authority",
                str(pki.ca.cert),
                "--token",
                token,
                "--cache-dir",
                str(tmp_path / "cache"),
            ]
        process = await asyncio.create_subprocess_exec(
            "kubectl", *where, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        assert (process.returncode != 0) == fails, output.decode()
        return output.decode()

    try:
        yield run
    finally:
        await server.close()


async def test_who_am_i(kubectl: Kubectl) -> None:
    me = json.loads(await kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]
    assert (me["username"], me["groups"]) == ("kubernetes-admin", ["system:masters", "system:authenticated"])
    assert "system:kube-scheduler" in await kubectl("auth", "whoami", identity="scheduler")
    assert "ann" in await kubectl("auth", "whoami", "--as", "ann", "--as-group", "system:masters")


async def test_what_can_i(kubectl: Kubectl) -> None:
    listed = await kubectl("auth", "can-i", "--list", "-n", "default", identity="scheduler")
    assert "pods/binding" in listed and "selfsubjectaccessreviews.authorization.k8s.io" in listed
    assert "yes" in await kubectl("auth", "can-i", "delete", "nodes")
    assert "no" in await kubectl("auth", "can-i", "get", "secrets", identity="scheduler", fails=True)
    assert "yes" in await kubectl("auth", "can-i", "create", "pods", "--subresource=binding", "-n", "default", identity="scheduler")
    refusal = await kubectl("get", "secrets", identity="scheduler", fails=True)
    assert 'secrets is forbidden: User "system:kube-scheduler" cannot list resource "secrets" in API group "" in the namespace "default"' in refusal


async def test_tokens_and_roles_as_a_user_types_them(kubectl: Kubectl) -> None:
    await kubectl("create", "serviceaccount", "bot")
    token = (await kubectl("create", "token", "bot", "--duration", "20m")).strip()
    assert "system:serviceaccount:default:bot" in await kubectl("auth", "whoami", token=token)
    assert "forbidden" in await kubectl("get", "configmaps", token=token, fails=True)
    await kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    await kubectl("create", "rolebinding", "bot-reads", "--role=reader", "--serviceaccount=default:bot")
    assert "No resources found" in await kubectl("get", "configmaps", token=token)
    assert "forbidden" in await kubectl("get", "configmaps", "-n", "kube-system", token=token, fails=True)
    await kubectl("delete", "rolebinding", "bot-reads")
    assert "forbidden" in await kubectl("get", "configmaps", token=token, fails=True)
    await kubectl("delete", "serviceaccount", "bot")
    assert "Unauthorized" in await kubectl("get", "configmaps", token=token, fails=True)


async def test_reconcile(kubectl: Kubectl) -> None:
    role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r, namespace: default}\nrules:\n- {apiGroups: [''], resources: [pods], verbs: [get]}\n"
    assert "reconciled" in await kubectl("auth", "reconcile", "-f", "-", stdin=role)
    assert "r" in await kubectl("get", "role", "r", "-o", "name")


async def test_quota_as_described(kubectl: Kubectl) -> None:
    await kubectl("create", "quota", "q", "--hard=configmaps=1")
    await kubectl("create", "configmap", "one")
    assert "exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1" in await kubectl("create", "configmap", "two", fails=True)
    for _ in range(20):
        if "configmaps  1     1" in (shown := await kubectl("describe", "quota", "q")):
            break
        await asyncio.sleep(0.1)
    assert "configmaps  1     1" in shown
