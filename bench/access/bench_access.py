"""The hot paths of access: one GET's authentication and authorization, one pod's admission.

pytest bench/access --benchmark-only
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from fastkube.api import resources
from fastkube.http.message import Request
from fastkube.runtime.pki import Pki
from fastkube.server import admission, authn, authz, bootstrap
from fastkube.server.allocators import Services
from fastkube.server.request import AdmissionAttributes, RequestInfo, User
from tests.access.conftest import Peer, pod
from tests.access.memory import MemoryReader

PODS = resources.parse("v1/pods")


@pytest.fixture(scope="module")
def reader() -> MemoryReader:
    reader = MemoryReader()
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        reader.put("v1/namespaces", {"metadata": {"name": name}})
    for resource, obj in bootstrap.rbac_objects():
        reader.put(resource, copy.deepcopy(obj))
    reader.put("v1/serviceaccounts", {"metadata": {"name": "default", "namespace": "default"}})
    return reader


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def config(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> authn.Config:
    tokens: Path = tmp_path_factory.mktemp("tokens") / "tokens.csv"
    tokens.write_text("token-of-some-length,joe,1,devs\n")
    return authn.Config(client_ca=pki.ca.cert, front_proxy_ca=pki.front_proxy_ca.cert, token_file=tokens, sa_keys=[pki.sa_pub], sa_signing_key=pki.sa_key)


def test_authenticate_a_known_token(benchmark: Any, reader: Any, config: authn.Config) -> None:
    authenticator = authn.build(config, reader)
    account = reader.get(resources.parse("v1/serviceaccounts"), "default", "default")
    token, _ = authn.issuer(config).sign(account, config.api_audiences, 3600)
    request = Request("GET", "/api/v1/pods", {"authorization": f"Bearer {token}"})
    assert benchmark(authenticator.authenticate, request).name == "system:serviceaccount:default:default"


def test_authenticate_a_known_certificate(benchmark: Any, reader: Any, config: authn.Config, pki: Pki) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    authenticator = authn.build(config, reader)
    der = x509.load_pem_x509_certificate(pki.client("scheduler").cert.read_bytes()).public_bytes(Encoding.DER)
    request = Request("GET", "/api/v1/pods", {}, peer=Peer(der))
    assert benchmark(authenticator.authenticate, request).name == "system:kube-scheduler"


def test_verify_a_new_token(benchmark: Any, reader: Any, config: authn.Config) -> None:
    authenticator = authn.build(config, reader)
    account = reader.get(resources.parse("v1/serviceaccounts"), "default", "default")
    token, _ = authn.issuer(config).sign(account, config.api_audiences, 3600)
    assert benchmark(authenticator.review, token)


def test_sign_a_token(benchmark: Any, reader: Any, config: authn.Config) -> None:
    issuer = authn.issuer(config)
    account = reader.get(resources.parse("v1/serviceaccounts"), "default", "default")
    benchmark(issuer.sign, account, config.api_audiences, 3600)


USERS = {
    "master": User("admin", ("system:masters", "system:authenticated")),
    "scheduler": User("system:kube-scheduler", ("system:authenticated",)),
    "controller": User(
        "system:serviceaccount:kube-system:replicaset-controller", ("system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated")
    ),
    "nobody": User("nobody", ("system:authenticated",)),
}


@pytest.mark.parametrize("who", USERS)
def test_authorize_what_was_seen_before(benchmark: Any, reader: Any, who: str) -> None:
    authorizer = authz.build(authz.Config(), reader)
    names = itertools.cycle(f"pod-{i}" for i in range(1000))
    info = RequestInfo("get", "", True, "", "v1", "pods", "", "default", "p")

    def ask() -> Any:
        info.name = next(names)
        return authorizer.authorize(USERS[who], info)

    assert benchmark(ask).allowed == (who in ("master", "scheduler"))


def test_authorize_a_node(benchmark: Any, reader: Any) -> None:
    authorizer = authz.build(authz.Config(), reader)
    reader.put(
        PODS,
        {
            "metadata": {"namespace": "default", "name": "p"},
            "spec": {"nodeName": "n1", "containers": [], "volumes": [{"name": "s", "secret": {"secretName": "s"}}]},
        },
    )
    user = User("system:node:n1", ("system:nodes", "system:authenticated"))
    info = RequestInfo("get", "", True, "", "v1", "secrets", "", "default", "s")
    assert benchmark(authorizer.authorize, user, info).allowed


def test_authorize_for_the_first_time(benchmark: Any, reader: Any) -> None:
    authorizer = authz.build(authz.Config(), reader)
    info = RequestInfo("get", "", True, "", "v1", "pods", "", "default", "p")
    benchmark(lambda: authorizer.rbac.authorize(User("x", USERS["controller"].groups), info))


def test_admit_a_pod(benchmark: Any, reader: Any) -> None:
    chain = admission.build(admission.Config(), reader, None, authz.build(authz.Config(), reader))  # type: ignore[arg-type]
    made = pod()
    made["metadata"] |= {"namespace": "default", "uid": "u"}
    loop = asyncio.new_event_loop()

    async def admit() -> None:
        obj = {**made, "metadata": dict(made["metadata"]), "spec": {**made["spec"], "containers": [dict(made["spec"]["containers"][0])]}}
        attributes = AdmissionAttributes("CREATE", PODS, "", "default", "p", obj, None, USERS["controller"])
        await chain.admit(attributes)
        await chain.validate(attributes)

    async def hundred() -> None:
        for _ in range(100):
            await admit()

    benchmark(lambda: loop.run_until_complete(hundred()))  # per round: 100 pods
    loop.close()


def test_admit_what_nobody_looks_at(benchmark: Any, reader: Any) -> None:
    chain = admission.build(admission.Config(), reader, None, authz.build(authz.Config(), reader))  # type: ignore[arg-type]
    leases = resources.parse("coordination.k8s.io/v1/leases")
    attributes = AdmissionAttributes("UPDATE", leases, "", "default", "p", {"metadata": {}}, {"metadata": {}}, USERS["controller"])
    loop = asyncio.new_event_loop()

    async def hundred() -> None:
        for _ in range(100):
            await chain.admit(attributes)
            await chain.validate(attributes)

    benchmark(lambda: loop.run_until_complete(hundred()))  # per round: 100 writes
    loop.close()


def test_allocate_an_address(benchmark: Any) -> None:
    services = Services(MemoryReader())  # type: ignore[arg-type]

    def allocate() -> None:
        rollbacks: list[Any] = []
        services.create({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}, rollbacks)
        for rollback in rollbacks:
            rollback()

    benchmark(allocate)
