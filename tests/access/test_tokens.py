"""Bearer tokens: service accounts' of every kind of soundness, static ones, bootstrap ones; and what TokenReview and OIDC discovery say of them."""

from __future__ import annotations

import base64
import time
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from fastkube.runtime import clock
from fastkube.server.authn.authenticator import InvalidToken
from fastkube.server.authn.certificates import ConfigError
from fastkube.server.authn.serviceaccounts import Issuer, Verifier
from fastkube.server.authn.tokens import StaticTokens
from tests.access.conftest import Cluster, pod
from tests.access.memory import MemoryReader

ISSUER = "https://kubernetes.default.svc.cluster.local"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
TOKEN = "/api/v1/namespaces/default/serviceaccounts/default/token"


async def whoami(cluster: Cluster, token: str) -> tuple[int, dict[str, Any]]:
    status, answer, _ = await cluster.raw("POST", WHOAMI, {}, headers={"authorization": f"Bearer {token}"})
    return status, answer["status"]["userInfo"] if status == 201 else answer


async def request(cluster: Cluster, path: str = TOKEN, **spec: Any) -> str:
    return (await cluster.make(path, {"spec": spec}))["status"]["token"]


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def forge(cluster: Cluster, changes: dict[str, Any], token: str, **header: Any) -> str:
    """`token` with other claims, properly signed by the cluster's key."""
    key = serialization.load_pem_private_key(cluster.pki.sa_key.read_bytes(), None)
    return jwt.encode({**claims_of(token), **changes}, key, algorithm="ES256", headers=header)  # type: ignore[arg-type]


def encoded(data: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


class Ahead:
    """The system's clock, some seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return time.time() + self.seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.seconds


async def test_a_requested_token_is_its_account(cluster: Cluster) -> None:
    account = await cluster.account()
    answer = await cluster.make(TOKEN, {"spec": {"expirationSeconds": 600}})
    claims = claims_of(answer["status"]["token"])
    assert claims["aud"] == [ISSUER] and claims["iss"] == ISSUER and claims["sub"] == "system:serviceaccount:default:default"
    assert claims["exp"] - claims["iat"] == 600 and claims["kubernetes.io"]["serviceaccount"] == {"name": "default", "uid": account["metadata"]["uid"]}
    assert clock.parse(answer["status"]["expirationTimestamp"]) == claims["exp"]
    assert answer["spec"]["audiences"] == [ISSUER] and answer["kind"] == "TokenRequest"
    status, user = await whoami(cluster, answer["status"]["token"])
    assert status == 201
    assert user == {
        "username": "system:serviceaccount:default:default", "uid": account["metadata"]["uid"],
        "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]},
    }  # fmt: skip


async def test_a_token_goes_with_its_account_and_is_not_its_namesakes(cluster: Cluster) -> None:
    await cluster.account()
    token = await request(cluster)
    assert (await whoami(cluster, token))[0] == 201
    await cluster.call("DELETE", "/api/v1/namespaces/default/serviceaccounts/default")
    assert (await whoami(cluster, token))[0] == 401
    await cluster.account()
    assert (await whoami(cluster, token))[0] == 401


async def test_a_token_bound_to_a_pod_goes_with_it(cluster: Cluster) -> None:
    await cluster.account()
    await cluster.make("/api/v1/nodes", {"metadata": {"name": "n1"}})
    made = await cluster.make("/api/v1/namespaces/default/pods", pod(nodeName="n1"))
    token = await request(cluster, boundObjectRef={"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"]}, expirationSeconds=3607)
    claims = claims_of(token)
    assert claims["exp"] - claims["iat"] == 365 * 86400 and claims["kubernetes.io"]["warnafter"] - claims["iat"] == 3607
    assert claims["kubernetes.io"]["node"]["name"] == "n1"
    status, user = await whoami(cluster, token)
    assert (
        status == 201 and user["extra"]["authentication.kubernetes.io/pod-name"] == ["p"] and user["extra"]["authentication.kubernetes.io/node-name"] == ["n1"]
    )
    assert user["extra"]["authentication.kubernetes.io/pod-uid"] == [made["metadata"]["uid"]]
    await cluster.call("DELETE", "/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0")
    assert (await whoami(cluster, token))[0] == 401


async def test_what_token_requests_are_refused_for(cluster: Cluster) -> None:
    await cluster.account()
    made = await cluster.make("/api/v1/namespaces/default/pods", pod())

    async def refused(spec: dict[str, Any], path: str = TOKEN) -> tuple[int, str]:
        status, answer = await cluster.call("POST", path, {"spec": spec})
        return status, answer["message"]

    reference = {"apiVersion": "v1", "kind": "Pod", "name": "p"}
    too_short = 'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes'
    assert await refused({"expirationSeconds": 5}) == (422, too_short)
    assert await refused({}, TOKEN.replace("default/token", "none/token")) == (404, 'serviceaccounts "none" not found')
    assert await refused({"boundObjectRef": {**reference, "name": "nope"}}) == (404, 'pods "nope" not found')
    assert (await refused({"boundObjectRef": {**reference, "uid": "other"}}))[0] == 409
    assert (await refused({"boundObjectRef": {**reference, "kind": "Deployment", "apiVersion": "apps/v1"}}))[0] == 400
    await cluster.account(name="another")
    assert (await refused({"boundObjectRef": {**reference, "uid": made["metadata"]["uid"]}}, TOKEN.replace("default/token", "another/token")))[0] == 400


async def test_tokens_are_held_to_their_times(cluster: Cluster) -> None:
    await cluster.account()
    token = await request(cluster, expirationSeconds=600)
    assert (await whoami(cluster, token))[0] == 201  # and from now on from memory
    real = clock.use(Ahead(600 + 61))
    try:
        assert (await whoami(cluster, token))[0] == 401
    finally:
        clock.use(real)
    now = int(time.time())
    assert (await whoami(cluster, forge(cluster, {"nbf": now + 3600}, token)))[0] == 401
    assert (await whoami(cluster, forge(cluster, {"exp": now - 3600}, token)))[0] == 401
    assert (await whoami(cluster, forge(cluster, {"exp": "soon"}, token)))[0] == 401


async def test_tampered_tokens_are_refused(cluster: Cluster) -> None:
    await cluster.account()
    await cluster.account("kube-system", "powerful")
    token = await request(cluster)
    claims = claims_of(token)
    head, body, signature = token.split(".")
    encode = lambda data: base64.urlsafe_b64encode(orjson.dumps(data)).rstrip(b"=").decode()  # noqa: E731
    other_key = ec.generate_private_key(ec.SECP256R1())
    public = cluster.pki.sa_pub.read_bytes()
    bad = {
        "another body": f"{head}.{encode({**claims, 'sub': 'system:serviceaccount:kube-system:powerful'})}.{signature}",
        "no signature": f"{head}.{body}.",
        "alg none": f"{encode({'alg': 'none'})}.{body}.",
        "another key": jwt.encode(claims, other_key, algorithm="ES256", headers={"kid": jwt.get_unverified_header(token)["kid"]}),
        "another key without a kid": jwt.encode(claims, other_key, algorithm="ES256"),
        "the public key as a shared secret": _confused(public, claims),
        "another issuer": forge(cluster, {"iss": "https://elsewhere"}, token),
        "another audience": forge(cluster, {"aud": ["vault"]}, token),
        "no audience": forge(cluster, {"aud": None}, token),
        "another's name": forge(cluster, {"sub": "system:serviceaccount:kube-system:powerful"}, token),
        "a wrong uid": forge(cluster, {"kubernetes.io": {**claims["kubernetes.io"], "serviceaccount": {"name": "default", "uid": "x"}}}, token),
        "no private claims": forge(cluster, {"kubernetes.io": None}, token),
        "private claims of the wrong type": forge(cluster, {"kubernetes.io": {**claims["kubernetes.io"], "serviceaccount": "default"}}, token),
        "a pod that is not there": forge(cluster, {"kubernetes.io": {**claims["kubernetes.io"], "pod": {"name": "p", "uid": "x"}}}, token),
    }
    for what, forged in bad.items():
        assert (await whoami(cluster, forged))[0] == 401, what
    assert (await whoami(cluster, forge(cluster, {}, token)))[0] == 201  # the forger's tools do work


def _confused(public_pem: bytes, claims: dict[str, Any]) -> str:
    """HS256 with the public key as the secret: the classic confusion of algorithms. (PyJWT refuses to make one, so by hand.)"""
    import hashlib
    import hmac

    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")  # noqa: E731
    signed = part(orjson.dumps({"alg": "HS256", "typ": "JWT"})) + b"." + part(orjson.dumps(claims))
    return (signed + b"." + part(hmac.new(public_pem, signed, hashlib.sha256).digest())).decode()


async def test_audiences(cluster: Cluster) -> None:
    await cluster.account()
    token = await request(cluster, audiences=["vault", "other"])
    assert (await whoami(cluster, token))[0] == 401
    review = "/apis/authentication.k8s.io/v1/tokenreviews"
    good = await cluster.make(review, {"spec": {"token": token, "audiences": ["vault", "third"]}})
    assert good["status"]["authenticated"] is True and good["status"]["audiences"] == ["vault"]
    assert good["status"]["user"]["username"] == "system:serviceaccount:default:default"
    bad = await cluster.make(review, {"spec": {"token": token}})
    assert "authenticated" not in bad["status"] and "invalid for the target audiences" in bad["status"]["error"]
    unknown = await cluster.make(review, {"spec": {"token": "wrong"}})
    assert unknown["status"] == {"user": {}, "error": "invalid bearer token"}
    assert (await cluster.call("POST", review, {"spec": {"token": ""}}))[1]["message"] == "token is required for TokenReview in authentication"


async def test_static_tokens(cluster: Cluster) -> None:
    assert await whoami(cluster, "secret-token") == (201, {"username": "bench", "uid": "42", "groups": ["system:masters", "others", "system:authenticated"]})
    assert await whoami(cluster, "plain-token") == (201, {"username": "joe", "uid": "7", "groups": ["system:authenticated"]})
    assert (await whoami(cluster, "secret-toke"))[0] == 401


async def test_what_is_no_bearer_token(cluster: Cluster) -> None:
    for header, want in (
        ("Basic dXNlcjpwdw==", 403),
        ("Bearer", 403),
        ("Bearer  secret-token", 201),
        ("bearer secret-token", 201),
        ("Bearer secret-token x", 401),
    ):
        status, _, _ = await cluster.raw("POST", WHOAMI, {}, headers={"authorization": header})
        assert status == want, header  # 403: anonymous may not ask who it is


async def test_a_token_among_websocket_protocols(cluster: Cluster) -> None:
    offer = "base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(b"secret-token").rstrip(b"=").decode()
    for protocols, want in ((f"v5.channel.k8s.io, {offer}", 201), (offer, 401), (f"v5.channel.k8s.io, {offer[:-4]}!!!!", 401), ("v5.channel.k8s.io", 403)):
        status, _, _ = await cluster.raw("POST", WHOAMI, {}, headers={"sec-websocket-protocol": protocols})
        assert status == want, protocols


async def test_bootstrap_tokens(cluster: Cluster) -> None:
    def secret(**changes: str) -> dict[str, Any]:
        data = {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
            **changes,
        }  # fmt: skip
        return {"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "data": encoded(data)}

    path, token = "/api/v1/namespaces/kube-system/secrets", "abcdef.0123456789abcdef"
    assert (await whoami(cluster, token))[0] == 401
    await cluster.make(path, secret())
    status, user = await whoami(cluster, token)
    assert status == 201 and user["username"] == "system:bootstrap:abcdef"
    assert user["groups"] == ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]
    assert (await whoami(cluster, "abcdef.0123456789abcdee"))[0] == 401
    for changes in (
        {"expiration": "2020-01-01T00:00:00Z"},
        {"expiration": "whenever"},
        {"usage-bootstrap-authentication": "false"},
        {"auth-extra-groups": "system:masters"},
    ):
        await cluster.call("PUT", f"{path}/bootstrap-token-abcdef", secret(**changes))
        assert (await whoami(cluster, token))[0] == 401, changes
    await cluster.call("PUT", f"{path}/bootstrap-token-abcdef", secret())
    assert (await whoami(cluster, token))[0] == 201
    await cluster.call("DELETE", f"{path}/bootstrap-token-abcdef")
    assert (await whoami(cluster, token))[0] == 401


async def test_legacy_tokens_live_as_long_as_their_secret(cluster: Cluster) -> None:
    account = await cluster.account()
    prefix = "kubernetes.io/serviceaccount/"
    claims = {
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:default:default", f"{prefix}namespace": "default", f"{prefix}secret.name": "old",
        f"{prefix}service-account.name": "default", f"{prefix}service-account.uid": account["metadata"]["uid"],
    }  # fmt: skip
    key = serialization.load_pem_private_key(cluster.pki.sa_key.read_bytes(), None)
    token = jwt.encode(claims, key, algorithm="ES256")  # type: ignore[arg-type]
    assert (await whoami(cluster, token))[0] == 401
    annotations = {"kubernetes.io/service-account.name": "default"}
    secret = {"metadata": {"name": "old", "annotations": annotations}, "type": "kubernetes.io/service-account-token", "data": encoded({"token": token})}
    await cluster.make("/api/v1/namespaces/default/secrets", secret)
    assert (await whoami(cluster, token))[1]["username"] == "system:serviceaccount:default:default"
    await cluster.call("DELETE", "/api/v1/namespaces/default/secrets/old")
    assert (await whoami(cluster, token))[0] == 401


def test_keys_rotate(tmp_path: Any) -> None:
    """Two keys verify, the first signs; RSA keys do too."""
    old, new = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())
    paths = []
    for name, key in (("old", old), ("new", new)):
        path = tmp_path / name
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        paths.append(path)
    reader = MemoryReader()
    account = reader.put("v1/serviceaccounts", {"metadata": {"name": "a", "namespace": "n"}})
    verifier = Verifier(reader, [ISSUER], [ISSUER], paths)  # type: ignore[arg-type]
    for path, algorithm in zip(paths, ("RS256", "ES384"), strict=True):
        issuer = Issuer(ISSUER, [ISSUER], path, paths)
        token, _ = issuer.sign(account, [ISSUER], 600)
        assert jwt.get_unverified_header(token)["alg"] == algorithm
        verdict = verifier.authenticate(token, (ISSUER,))
        assert verdict is not None and verdict.user.name == "system:serviceaccount:n:a"
        document = issuer.jwks()
        key_set = jwt.PyJWKSet.from_dict(document)  # as a relying party reads it
        jwt.decode(token, key_set[jwt.get_unverified_header(token)["kid"]].key, algorithms=[algorithm], audience=ISSUER)
    assert {k["kid"] for k in document["keys"]} == {k.id for k in issuer.keys} and len(document["keys"]) == 2
    alone = Verifier(reader, [ISSUER], [ISSUER], paths[:1])  # type: ignore[arg-type]
    with pytest.raises(InvalidToken, match="signature"):
        alone.authenticate(token, (ISSUER,))


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: "eyJhbGciOiJFUzI1NiJ9." + base64.urlsafe_b64encode(b).decode() + ".AA"))
def test_garbage_is_no_token(garbage: str) -> None:
    from fastkube.server.authn.tokens import BootstrapTokens

    reader: Any = MemoryReader()
    assert BootstrapTokens(reader).authenticate(garbage, ()) is None
    assert Verifier(reader, [ISSUER], [ISSUER], []).authenticate(garbage, (ISSUER,)) is None


@pytest.mark.parametrize("text", ["token,user\n", ",user,uid\n", "a\n"])
def test_a_bad_token_file_is_named_with_its_line(tmp_path: Any, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text("good,user,uid\n" + text)
    with pytest.raises(ConfigError, match=r"tokens:2: "):
        StaticTokens.load(path)
    with pytest.raises(ConfigError, match="cannot load"):
        StaticTokens.load(tmp_path / "absent")


async def test_relying_parties_find_the_keys(cluster: Cluster) -> None:
    await cluster.account()
    token = await request(cluster)
    status, _, _ = await cluster.raw("GET", "/.well-known/openid-configuration")
    assert status == 403  # anonymous may not, as upstream; service accounts may (system:service-account-issuer-discovery)
    headers = {"authorization": f"Bearer {token}"}
    status, document, _ = await cluster.raw("GET", "/.well-known/openid-configuration", headers=headers)
    assert status == 200 and document["issuer"] == ISSUER and document["jwks_uri"].endswith("/openid/v1/jwks")
    assert document["id_token_signing_alg_values_supported"] == ["ES256"]
    status, keys, answer = await cluster.raw("GET", "/openid/v1/jwks", headers=headers)
    assert status == 200 and answer.content_type == "application/jwk-set+json"
    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(token)["kid"]].key
    assert jwt.decode(token, key, algorithms=["ES256"], audience=ISSUER)["sub"] == "system:serviceaccount:default:default"
