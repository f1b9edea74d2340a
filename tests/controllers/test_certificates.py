"""Certificate requests: approved by what RBAC says, signed by what the signer's rules say, on the real API server."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastkube.client.rest import Client
from fastkube.client.transport import InProcessTransport
from fastkube.controllers import certificates
from fastkube.controllers.certificates import KUBE_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, REQUESTS
from fastkube.controllers.meta import condition
from fastkube.runtime import clock
from fastkube.server.request import User
from tests.client.test_transport import certificate
from tests.controllers.world import World, world

CLIENT_USAGES = ["digital signature", "client auth"]


def request(common: str, organizations: tuple[str, ...] = (), san: list[x509.GeneralName] | None = None) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common), *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return base64.b64encode(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)).decode()


def csr(name: str, pem: str, signer: str, usages: list[str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": pem, "signerName": signer, "usages": usages, **spec},
    }  # fmt: skip


@pytest.fixture
async def w():
    async with world() as running:
        cert, key, _ = certificate("cluster-ca")
        running.options.cluster_signing_cert, running.options.cluster_signing_key = cert, key
        await running.start("certificatesigningrequest-approving-controller", "certificatesigningrequest-signing-controller")
        yield running


def as_user(w: World, name: str, *groups: str) -> Client:
    return Client(InProcessTransport(w.server.handle, User(name, (*groups, "system:authenticated"))))


async def signed(w: World, name: str) -> x509.Certificate:
    async def done() -> Any:
        return ((await w.client.get(REQUESTS, name)).get("status") or {}).get("certificate")

    return x509.load_pem_x509_certificate(base64.b64decode(await w.until(done)))


async def test_a_node_gets_its_client_certificate_renewed(w: World) -> None:
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "renewal"}}  # kubeadm makes it
    binding["roleRef"] = {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
    }
    binding["subjects"] = [{"kind": "Group", "name": "system:nodes", "apiGroup": "rbac.authorization.k8s.io"}]
    await w.client.create("rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    node = as_user(w, "system:node:n1", "system:nodes")
    await node.create(REQUESTS, csr("n1", request("system:node:n1", ("system:nodes",)), KUBELET_CLIENT, CLIENT_USAGES, expirationSeconds=3600))
    made = await signed(w, "n1")
    approved = condition(await w.client.get(REQUESTS, "n1"), "Approved")
    assert approved["reason"] == "AutoApproved" and "self kubelet" in approved["message"]
    ca = x509.load_pem_x509_certificate(w.options.cluster_signing_cert)
    made.verify_directly_issued_by(ca)
    assert made.subject.rfc4514_string() == "O=system:nodes,CN=system:node:n1"
    assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert 3500 < made.not_valid_after_utc.timestamp() - clock.now() <= 3600
    assert not await w.rest()


async def test_a_user_without_the_right_waits_for_an_administrator(w: World) -> None:
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "asks"}}
    role["rules"] = [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create"]}]
    await w.client.create("rbac.authorization.k8s.io/v1/clusterroles", role)
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "asks"}}
    binding["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "asks"}
    binding["subjects"] = [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]
    await w.client.create("rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    eve = as_user(w, "eve")
    await eve.create(REQUESTS, csr("evil", request("system:node:n1", ("system:nodes",)), KUBELET_CLIENT, CLIENT_USAGES))
    assert not await w.rest()
    assert not (await w.client.get(REQUESTS, "evil")).get("status", {}).get("conditions")


async def approve(w: World, name: str) -> None:
    found = await w.client.get(REQUESTS, name)
    found["status"] = {"conditions": [{"type": "Approved", "status": "True", "reason": "KubectlApprove", "message": "by hand"}]}
    await w.client.update(REQUESTS, found, subresource="approval")


async def test_approved_by_hand_and_signed_or_refused(w: World) -> None:
    await w.client.create(REQUESTS, csr("bob", request("bob", ("dev",)), KUBE_CLIENT, CLIENT_USAGES))
    await approve(w, "bob")
    assert (await signed(w, "bob")).subject.rfc4514_string() == "O=dev,CN=bob"
    await w.client.create(REQUESTS, csr("odd", request("odd", ("system:nodes",)), KUBELET_CLIENT, CLIENT_USAGES))
    await approve(w, "odd")

    async def failed() -> Any:
        return condition(await w.client.get(REQUESTS, "odd"), "Failed")

    problem = await w.until(failed)
    assert (problem["reason"], problem["message"]) == ("SignerValidationFailure", "subject common name does not begin with system:node:")


@pytest.mark.parametrize(
    ("common", "organizations", "san", "signer", "usages", "username", "ok"),
    [
        ("system:node:a", ("system:nodes",), [], KUBELET_CLIENT, CLIENT_USAGES, "system:node:a", True),
        ("system:node:a", ("system:nodes",), [], KUBELET_CLIENT, [*CLIENT_USAGES, "key encipherment"], "system:node:a", True),
        ("system:node:a", ("system:nodes",), [], KUBELET_CLIENT, ["server auth", "digital signature"], "system:node:a", False),
        ("a", ("system:nodes",), [], KUBELET_CLIENT, CLIENT_USAGES, "a", False),
        ("system:node:a", ("system:nodes", "x"), [], KUBELET_CLIENT, CLIENT_USAGES, "system:node:a", False),
        ("system:node:a", ("system:nodes",), [x509.DNSName("a")], KUBELET_CLIENT, CLIENT_USAGES, "system:node:a", False),
        ("system:node:a", ("system:nodes",), [x509.DNSName("a")], KUBELET_SERVING, ["server auth", "digital signature"], "system:node:a", True),
        ("system:node:a", ("system:nodes",), [], KUBELET_SERVING, ["server auth", "digital signature"], "system:node:a", False),
        ("system:node:a", ("system:nodes",), [x509.DNSName("a")], KUBELET_SERVING, ["server auth", "digital signature"], "system:node:b", False),
        ("system:node:a", ("system:nodes",), [x509.RFC822Name("a@b")], KUBELET_SERVING, ["server auth", "digital signature"], "system:node:a", False),
        ("bob", (), [], KUBE_CLIENT, ["client auth", "cert sign"], "bob", False),
    ],
)
def test_rules_of_the_signers(common: str, organizations: Any, san: Any, signer: str, usages: list[str], username: str, ok: bool) -> None:
    obj = csr("x", request(common, organizations, san), signer, usages, username=username)
    assert (certificates.broken_rule(obj, certificates.parse(obj)) is None) == ok


def test_garbage_is_no_request() -> None:
    for text in ("", "%%%", base64.b64encode(b"nothing").decode()):
        with pytest.raises(ValueError):
            certificates.parse(csr("x", text, KUBE_CLIENT, []))


def test_old_requests() -> None:
    now = clock.now()

    def aged(type: str | None, age: float) -> dict[str, Any]:
        stamp = clock.rfc3339(now - age)
        conditions = [{"type": type, "status": "True", "lastUpdateTime": stamp}] if type else []
        return {"metadata": {"name": "x", "creationTimestamp": stamp}, "spec": {}, "status": {"conditions": conditions}}

    assert not certificates.is_old(aged("Approved", 3000), now) and certificates.is_old(aged("Approved", 4000), now)
    assert certificates.is_old(aged("Denied", 4000), now)
    assert not certificates.is_old(aged(None, 4000), now) and certificates.is_old(aged(None, 90000), now)
