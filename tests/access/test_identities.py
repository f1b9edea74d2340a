"""Certificates, the front proxy, anonymous, impersonation."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fastkube.runtime.pki import Authority, Pki
from fastkube.server.request import User
from tests.access.conftest import ADMIN, Cluster

WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REF = "rbac.authorization.k8s.io"


def issue(authority: Authority, name: str, organizations: tuple[str, ...] = (), **more: Any) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return authority.issue(key.public_key(), name, organizations, **{"client": True, **more}).public_bytes(Encoding.DER)


async def whoami(cluster: Cluster, **request: Any) -> tuple[int, Any]:
    status, answer, _ = await cluster.raw("POST", WHOAMI, {}, **request)
    return status, answer["status"]["userInfo"] if status == 201 else answer


async def test_a_client_certificate_is_its_subject(cluster: Cluster) -> None:
    der = issue(cluster.pki.authority(), "joe", ("devs", "ops"))
    for _ in range(2):
        status, user = await whoami(cluster, certificate=der)
        assert status == 201 and user["username"] == "joe" and user["groups"] == ["devs", "ops", "system:authenticated"]
        assert user["extra"]["authentication.kubernetes.io/credential-id"][0].startswith("X509SHA256=")


async def test_certificates_that_make_nobody(cluster: Cluster, tmp_path: Any) -> None:
    ca = cluster.pki.authority()
    bad = {
        "another authority of the same name": issue(Pki(tmp_path / "other").authority(), "joe", ("system:masters",)),
        "a serving certificate": issue(ca, "joe", client=False, server=True),
        "expired": issue(ca, "joe", life_seconds=-10),
        "no certificate": b"nonsense",
    }
    for what, der in bad.items():
        assert (await whoami(cluster, certificate=der))[0] == 401, what


async def test_the_front_proxy_speaks_for_others(cluster: Cluster) -> None:
    proxy = x509.load_pem_x509_certificate(cluster.pki.front_proxy_client().cert.read_bytes()).public_bytes(Encoding.DER)
    headers = {"x-remote-user": "ann", "x-remote-group": "devs,ops", "x-remote-uid": "u1", "x-remote-extra-scopes%2fa": "x,y"}
    assert await whoami(cluster, certificate=proxy, headers=headers) == (
        201,
        {"username": "ann", "uid": "u1", "groups": ["devs", "ops", "system:authenticated"], "extra": {"scopes/a": ["x", "y"]}},
    )
    assert (await whoami(cluster, certificate=proxy))[0] == 401
    other_name = issue(cluster.pki.authority(cluster.pki.front_proxy_ca), "somebody")
    assert (await whoami(cluster, certificate=other_name, headers=headers))[0] == 401


async def test_nobody_else_speaks_for_others(cluster: Cluster) -> None:
    headers = {"x-remote-user": "admin", "x-remote-group": "system:masters"}
    assert (await whoami(cluster, certificate=issue(cluster.pki.authority(), "joe"), headers=headers))[1]["username"] == "joe"
    assert (await whoami(cluster, headers={**headers, "authorization": "Bearer plain-token"}))[1]["username"] == "joe"
    status, answer, _ = await cluster.raw("GET", "/api/v1/namespaces", headers=headers)
    assert status == 403 and 'User "system:anonymous"' in answer["message"]


async def test_anonymous_sees_health_and_version_only(cluster: Cluster) -> None:
    seen = {
        path: (await cluster.raw("GET", path))[0]
        for path in ("/healthz", "/livez", "/readyz", "/version", "/metrics", "/api", "/apis", "/openapi/v2", "/api/v1/pods", "/")
    }
    assert {path for path, status in seen.items() if status == 200} == {"/healthz", "/livez", "/readyz", "/version"}
    assert all(status == 403 for path, status in seen.items() if path not in ("/healthz", "/livez", "/readyz", "/version")), seen
    _, answer, _ = await cluster.raw("GET", "/metrics")
    assert answer["message"] == 'forbidden: User "system:anonymous" cannot get path "/metrics"'


async def allow_impersonation(cluster: Cluster, *rules: dict[str, Any]) -> None:
    await cluster.make(f"/apis/{REF}/v1/clusterroles", {"metadata": {"name": "act"}, "rules": list(rules)})
    subject = {"kind": "User", "apiGroup": REF, "name": "joe"}
    await cluster.make(
        f"/apis/{REF}/v1/clusterrolebindings",
        {"metadata": {"name": "act"}, "roleRef": {"apiGroup": REF, "kind": "ClusterRole", "name": "act"}, "subjects": [subject]},
    )


JOE = {"authorization": "Bearer plain-token"}
MASTER = {"authorization": "Bearer secret-token"}


async def test_impersonation_as_a_master(cluster: Cluster) -> None:
    headers = {**MASTER, "impersonate-user": "ann", "impersonate-group": "devs, ops", "impersonate-uid": "u1", "impersonate-extra-acme.com%2fscopes": "a"}
    assert await whoami(cluster, headers=headers) == (
        201,
        {"username": "ann", "uid": "u1", "groups": ["devs", "ops", "system:authenticated"], "extra": {"acme.com/scopes": ["a"]}},
    )
    account = {**MASTER, "impersonate-user": "system:serviceaccount:n:a"}
    assert (await whoami(cluster, headers=account))[1]["groups"] == ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"]
    anonymous = {**MASTER, "impersonate-user": "system:anonymous"}
    status, answer, _ = await cluster.raw("GET", "/api/v1/pods", headers=anonymous)
    assert status == 403 and 'User "system:anonymous" cannot list' in answer["message"]


async def test_impersonation_is_authorized_name_by_name(cluster: Cluster) -> None:
    status, answer = await whoami(cluster, headers={**JOE, "impersonate-user": "ann"})
    assert (status, answer["message"]) == (403, 'users "ann" is forbidden: User "joe" cannot impersonate resource "users" in API group "" at the cluster scope')
    await allow_impersonation(
        cluster,
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["ann"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["devs"]},
        {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "resourceNames": ["a"]},
    )
    assert (await whoami(cluster, headers={**JOE, "impersonate-user": "ann"}))[1]["username"] == "ann"
    assert (await whoami(cluster, headers={**JOE, "impersonate-user": "ann", "impersonate-group": "devs", "impersonate-extra-scopes": "a"}))[0] == 201
    for more in (
        {"impersonate-user": "bob"},
        {"impersonate-group": "devs,system:masters"},
        {"impersonate-extra-scopes": "a,b"},
        {"impersonate-extra-other": "a"},
        {"impersonate-uid": "u"},
        {"impersonate-user": "system:serviceaccount:kube-system:admin"},
    ):
        assert (await whoami(cluster, headers={**JOE, "impersonate-user": "ann", **more}))[0] == 403, more


async def test_impersonation_without_a_user(cluster: Cluster) -> None:
    assert (await whoami(cluster, headers={**MASTER, "impersonate-group": "devs"}))[0] == 400
    assert (await whoami(cluster, headers={**MASTER, "impersonate-user": " "}))[0] == 400


async def test_the_users_of_the_cluster_have_the_rights_their_parts_need(cluster: Cluster) -> None:
    """The client certificates of `fastkube up` and upstream's default roles meet."""

    async def may(user: User, verb: str, group: str, resource: str, namespace: str = "", name: str = "") -> bool:
        attributes = {
            "verb": verb,
            "group": group,
            "resource": resource.partition("/")[0],
            "subresource": resource.partition("/")[2],
            "namespace": namespace,
            "name": name,
        }
        body = {"spec": {"user": user.name, "groups": list(user.groups), "resourceAttributes": attributes}}
        answer = await cluster.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body, user=ADMIN)
        return answer[1]["status"]["allowed"]

    everybody = "system:authenticated"
    scheduler = User("system:kube-scheduler", (everybody,))
    manager = User("system:kube-controller-manager", (everybody,))
    proxy = User("system:kube-proxy", (everybody,))
    dns = User("system:serviceaccount:kube-system:coredns", ("system:serviceaccounts", "system:serviceaccounts:kube-system", everybody))
    server = User("kube-apiserver-kubelet-client", (everybody,))
    rollout = User("system:serviceaccount:kube-system:deployment-controller", ("system:serviceaccounts", "system:serviceaccounts:kube-system", everybody))
    assert await may(scheduler, "create", "", "pods/binding", "default") and not await may(scheduler, "get", "", "secrets", "default")
    assert await may(manager, "create", "", "serviceaccounts/token", "kube-system")
    assert await may(proxy, "watch", "discovery.k8s.io", "endpointslices") and not await may(proxy, "delete", "", "pods", "default")
    assert (
        await may(dns, "list", "", "namespaces") and await may(dns, "watch", "discovery.k8s.io", "endpointslices") and not await may(dns, "list", "", "secrets")
    )
    assert await may(server, "create", "", "nodes/proxy") and not await may(server, "list", "", "secrets")
    assert await may(rollout, "create", "apps", "replicasets", "default") and not await may(rollout, "delete", "", "nodes")
