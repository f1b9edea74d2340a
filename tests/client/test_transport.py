"""HttpTransport and kubeconfig against a real TLS server on loopback; Client's errors and retries."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fastkube.api.errors import ApiError
from fastkube.client import kubeconfig, rest, transport
from fastkube.client.rest import Client, split_lines
from fastkube.client.transport import ConnectionFailed, HttpTransport


def certificate(name: str, issuer: tuple[Any, Any] | None = None) -> tuple[bytes, bytes, tuple[Any, Any]]:
    """(certificate PEM, key PEM, (certificate, key)), self-signed CA without `issuer`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pem = made.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, key_pem, (made, key)


@contextlib.asynccontextmanager
async def serving(handler: Any, context: ssl.SSLContext | None = None):
    """A server on a free port of loopback; gives its URL."""
    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        yield f"http{'s' if context else ''}://localhost:{port}"
    finally:
        await runner.cleanup()


class Pki:
    def __init__(self, directory: Path) -> None:
        self.ca, _, issuer = certificate("ca")
        server, server_key, _ = certificate("localhost", issuer)
        self.issuer = issuer
        self.cert, self.key, _ = certificate("alice", issuer)
        for name, data in (("ca.crt", self.ca), ("server.crt", server), ("server.key", server_key), ("client.crt", self.cert), ("client.key", self.key)):
            (directory / name).write_bytes(data)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.crt"))
        self.context.load_cert_chain(directory / "server.crt", directory / "server.key")
        self.context.verify_mode = ssl.CERT_OPTIONAL


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


async def who(request: web.Request) -> web.Response:
    peer = request.transport.get_extra_info("peercert") if request.transport else None
    common_name = next((value for rdn in peer["subject"] for key, value in rdn if key == "commonName"), "") if peer else ""
    return web.json_response({"cn": common_name, "token": request.headers.get("Authorization", ""), "agent": request.headers["User-Agent"]})


@pytest.mark.parametrize("embedded", [False, True])
async def test_client_certificates(pki: Pki, tmp_path: Path, embedded: bool) -> None:
    credentials: dict[str, Any] = {"ca": pki.ca, "cert": pki.cert, "key": pki.key}
    if not embedded:
        credentials = {"ca": tmp_path / "ca.crt", "cert": tmp_path / "client.crt", "key": tmp_path / "client.key"}
    async with serving(who, pki.context) as url, Client(HttpTransport(url, **credentials, user_agent="test/1")) as client:
        assert await client.get("v1/nodes", "x") == {"cn": "alice", "token": "", "agent": "test/1"}


async def test_a_server_of_another_ca_is_refused(pki: Pki) -> None:
    other, _, _ = certificate("other")
    async with serving(who, pki.context) as url:
        for ca in (other, None):
            async with Client(HttpTransport(url, ca=ca)) as client:
                with pytest.raises(ConnectionFailed) as failure:
                    await client.get("v1/nodes", "x")
                assert failure.value.code == 503


async def test_a_token_file_is_read_again(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CREDENTIALS_MAX_AGE_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("one\n")
    async with serving(who, pki.context) as url, Client(HttpTransport(url, ca=pki.ca, token_file=token)) as client:
        assert (await client.get("v1/nodes", "x"))["token"] == "Bearer one"
        token.write_text("two\n")
        assert (await client.get("v1/nodes", "x"))["token"] == "Bearer two"
        token.unlink()  # while a new one is being written
        assert (await client.get("v1/nodes", "x"))["token"] == "Bearer two"


async def test_renewed_certificate_files_are_taken_up(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CREDENTIALS_MAX_AGE_SECONDS", 0.0)
    files = {"cert": tmp_path / "client.crt", "key": tmp_path / "client.key"}
    async with serving(who, pki.context) as url, Client(HttpTransport(url, ca=pki.ca, **files)) as client:
        assert (await client.get("v1/nodes", "x"))["cn"] == "alice"
        cert, key, _ = certificate("bob", pki.issuer)
        files["key"].write_bytes(key)
        files["cert"].write_bytes(cert)
        assert (await client.get("v1/nodes", "x"))["cn"] == "bob"


async def test_kubeconfig_round_trip(pki: Pki, tmp_path: Path) -> None:
    async with serving(who, pki.context) as url:
        kubeconfig.write(tmp_path / "a.kubeconfig", kubeconfig.make(url, ca=pki.ca, cert=pki.cert, key=pki.key))
        assert (tmp_path / "a.kubeconfig").stat().st_mode & 0o777 == 0o600
        async with kubeconfig.load(tmp_path / "a.kubeconfig") as client:
            assert (await client.get("v1/nodes", "x"))["cn"] == "alice"
        config = kubeconfig.make(url, ca=pki.ca, token="t")
        del config["clusters"][0]["cluster"]["certificate-authority-data"]
        config["clusters"][0]["cluster"]["certificate-authority"] = "ca.crt"  # relative to the file
        config["contexts"][0]["context"]["namespace"] = "blue"
        kubeconfig.write(tmp_path / "b.kubeconfig", config)
        assert kubeconfig.namespace(tmp_path / "b.kubeconfig") == "blue"
        async with kubeconfig.load(tmp_path / "b.kubeconfig", "admin@fastkube") as client:
            assert (await client.get("v1/nodes", "x"))["token"] == "Bearer t"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "is not YAML"),
        ("just text", "is not a kubeconfig"),
        ("current-context: x", "no context 'x'"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", "no cluster 'c'"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c, cluster: {}}]", "has no server"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: 'https://h', certificate-authority: none.crt}}]",
            "cannot load the cluster's CA",
        ),
    ],
)
def test_broken_kubeconfigs_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(kubeconfig.KubeconfigError, match=message):
        kubeconfig.load(path)
    with pytest.raises(kubeconfig.KubeconfigError, match="cannot read"):
        kubeconfig.load(tmp_path / "absent")


async def test_requests_on_the_wire() -> None:
    seen: list[tuple[str, str, Any, str]] = []

    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append((request.method, request.raw_path, orjson.loads(body) if body else None, request.headers.get("Content-Type", "")))
        return web.json_response({"items": None, "metadata": {}})

    async with serving(echo) as url, Client(HttpTransport(url)) as client:
        pod = {"metadata": {"name": "p", "namespace": "n"}}
        await client.list("v1/pods", labels="a in (b,c)", fields="spec.nodeName=x", limit=5, continue_="t+/=")
        await client.create("v1/pods", pod, dry_run=True)
        await client.create("v1/pods", {"kind": "Binding"}, "n", name="p", subresource="binding")
        await client.update("apps/v1/deployments", pod, subresource="status")
        await client.patch("v1/nodes", "x", {"spec": None}, kind="strategic")
        await client.patch("v1/nodes", "x", {}, kind="apply", field_manager="me", force=True)
        await client.delete("v1/pods", "p", "n", grace_seconds=0, propagation="Foreground", uid="u", resource_version="7")
        await client.delete("rbac.authorization.k8s.io/v1/clusterroles", "system:node")
        await client.delete("example.com/v1/widgets", "a/b", "n")
        await client.delete_collection("v1/pods", "n", labels="x")
    assert seen == [
        ("GET", "/api/v1/pods?labelSelector=a+in+%28b%2Cc%29&fieldSelector=spec.nodeName%3Dx&limit=5&continue=t%2B%2F%3D", None, ""),
        ("POST", "/api/v1/namespaces/n/pods?dryRun=All", pod, "application/json"),
        ("POST", "/api/v1/namespaces/n/pods/p/binding", {"kind": "Binding"}, "application/json"),
        ("PUT", "/apis/apps/v1/namespaces/n/deployments/p/status", pod, "application/json"),
        ("PATCH", "/api/v1/nodes/x", {"spec": None}, "application/strategic-merge-patch+json"),
        ("PATCH", "/api/v1/nodes/x?fieldManager=me&force=true", {}, "application/apply-patch+yaml"),
        (
            "DELETE",
            "/api/v1/namespaces/n/pods/p",
            {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "gracePeriodSeconds": 0,
                "propagationPolicy": "Foreground",
                "preconditions": {"uid": "u", "resourceVersion": "7"},
            },
            "application/json",
        ),
        ("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", None, ""),
        ("DELETE", "/apis/example.com/v1/namespaces/n/widgets/a%2Fb", None, ""),
        ("DELETE", "/api/v1/namespaces/n/pods?labelSelector=x", None, ""),
    ]


async def test_errors_and_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "RETRY_AFTER_SECONDS_MAX", 0)
    answers = [
        web.json_response({}, status=429, headers={"Retry-After": "1"}),
        web.json_response({}, status=503, headers={"Retry-After": "x"}),
        web.json_response({"ok": 1}),
    ]

    async def handler(request: web.Request) -> web.Response:
        if request.path.endswith("busy"):
            return answers.pop(0)
        if request.path.endswith("text"):
            return web.Response(status=502, text="bad gateway")
        status = {"kind": "Status", "status": "Failure", "reason": "NotFound", "message": 'pods "x" not found', "details": {"name": "x"}, "code": 404}
        return web.json_response(status, status=404)

    async with serving(handler) as url, Client(HttpTransport(url)) as client:
        assert await client.get("v1/nodes", "busy") == {"ok": 1}
        with pytest.raises(ApiError) as error:
            await client.get("v1/pods", "x", "n")
        assert (error.value.code, error.value.reason, error.value.details) == (404, "NotFound", {"name": "x"})
        with pytest.raises(ApiError, match="bad gateway"):
            await client.get("v1/nodes", "text")
        assert (await client.raw("GET", "/text"))[0] == 502
    with pytest.raises(ConnectionFailed):
        async with Client(HttpTransport(url)) as client:
            await client.get("v1/nodes", "x")


async def test_watch_over_a_socket_and_its_end() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for i in range(3):
            await response.write(orjson.dumps({"type": "ADDED", "object": {"metadata": {"name": str(i)}}}) + b"\n")
        if request.query.get("fieldSelector"):
            await response.write(orjson.dumps({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "old"}}) + b"\n")
        return response

    async with serving(handler) as url, Client(HttpTransport(url)) as client:
        assert [o["metadata"]["name"] async for _, o in client.watch("v1/pods")] == ["0", "1", "2"]
        with pytest.raises(ApiError) as error:
            async for _ in client.watch("v1/pods", fields="x=y"):
                pass
        assert error.value.code == 410


async def test_split_lines_is_the_same_however_it_is_cut() -> None:
    data = b'{"a":1}\n\n{"b":2}\n{"c":3}\ncut'
    for size in range(1, len(data) + 1):

        async def chunks(size: int = size):
            for i in range(0, len(data), size):
                yield data[i : i + size]

        assert [line async for lines in split_lines(chunks()) for line in lines] == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


async def test_a_line_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "WATCH_LINE_BYTES_MAX", 100)

    async def chunks():
        while True:
            yield b"x" * 30

    with pytest.raises(ApiError, match="longer than"):
        async for _ in split_lines(chunks()):
            pass
