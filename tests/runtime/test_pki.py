"""The certificates: layout, modes, renewal, and real TLS handshakes with them."""

from __future__ import annotations

import asyncio
import multiprocessing
import ssl
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from fastkube.runtime import clock, pki


class At:
    """A clock that stands still at a given wall time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def everything(directory: Path) -> pki.Pki:
    made = pki.Pki(directory)
    made.apiserver(["10.245.0.1", "node.example"])
    for name in pki.CLIENTS:
        made.client(name)
    made.front_proxy_client()
    made.node_client("n1")
    made.node_serving("n1", ["10.245.0.1"])
    return made


def test_layout_is_kubeadms_and_keys_are_private(tmp_path: Path) -> None:
    everything(tmp_path / "pki")
    names = {str(p.relative_to(tmp_path / "pki")) for p in (tmp_path / "pki").rglob("*") if p.is_file()}
    assert {"ca.crt", "ca.key", "apiserver.crt", "apiserver.key", "apiserver-kubelet-client.crt", "front-proxy-ca.crt", "front-proxy-client.crt"} <= names
    assert {"sa.key", "sa.pub", "admin.crt", "nodes/n1.crt", "nodes/n1-serving.key"} <= names
    for name in names:
        if name.endswith(".key"):
            assert stat.S_IMODE((tmp_path / "pki" / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700


def test_a_second_start_uses_what_is_there(tmp_path: Path) -> None:
    everything(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    everything(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_missing_name_issues_the_serving_certificate_anew_with_its_key(tmp_path: Path) -> None:
    made = pki.Pki(tmp_path)
    pair = made.apiserver(["10.245.0.1"])
    cert, key = pair.cert.read_bytes(), pair.key.read_bytes()
    assert made.apiserver([]).cert.read_bytes() == cert  # fewer names: still fits
    made.apiserver(["10.245.0.1", "192.168.7.7"])
    assert pair.cert.read_bytes() != cert and pair.key.read_bytes() == key
    names = {str(n.value) for n in pki.subject_alternative_names(load(pair.cert))}
    assert {"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"} <= names
    assert {"127.0.0.1", "::1", "10.96.0.1", "10.245.0.1", "192.168.7.7"} <= names


def test_certificates_are_renewed_before_they_expire_and_the_authority_stays(tmp_path: Path) -> None:
    made = everything(tmp_path)
    ca, admin = made.ca.cert.read_bytes(), made.client("admin").cert.read_bytes()
    end = load(made.client("admin").cert).not_valid_after_utc.timestamp()
    real = clock.use(At(end - pki.RENEW_BEFORE_SECONDS + 1))
    try:
        renewed = everything(tmp_path)
    finally:
        clock.use(real)
    assert renewed.client("admin").cert.read_bytes() != admin
    assert renewed.ca.cert.read_bytes() == ca


def test_a_new_authority_reissues_everything(tmp_path: Path) -> None:
    made = everything(tmp_path)
    old = load(made.client("admin").cert)
    made.ca.cert.unlink()
    made.ca.key.unlink()
    again = everything(tmp_path)
    assert not again.authority().issued(old)
    assert again.authority().issued(load(again.client("admin").cert))


def test_subjects(tmp_path: Path) -> None:
    made = everything(tmp_path)
    assert load(made.client("admin").cert).subject.rfc4514_string() == "CN=kubernetes-admin,O=system:masters"
    assert load(made.node_client("n1").cert).subject.rfc4514_string() == "CN=system:node:n1,O=system:nodes"
    assert load(made.client("controller-manager").cert).subject.rfc4514_string() == "CN=system:kube-controller-manager"
    with pytest.raises(pki.PkiError, match="too long"):
        made.node_client("n" * 63)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    made = everything(tmp_path)
    made.ca.key.write_text("nonsense")
    with pytest.raises(pki.PkiError, match=r"ca\.key"):
        pki.Pki(tmp_path).node_client("n2")


def _make(directory: str) -> bytes:
    made = everything(Path(directory))
    assert made.authority().issued(load(made.client("admin").cert))
    return made.ca.cert.read_bytes()


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_make, [str(tmp_path / "pki")] * 6))) == 1
    made = everything(tmp_path / "pki")
    for name in (*pki.CLIENTS, "apiserver"):
        pki.server_context(pki.Pair(tmp_path / "pki" / f"{name}.crt", tmp_path / "pki" / f"{name}.key"))  # raises when they do not match
    assert made.authority().issued(load(made.ca.cert.parent / "apiserver.crt"))


async def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> dict | None:
    """What the server learns of the client's certificate."""
    seen: asyncio.Future = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("peercert"))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
    async with listening:
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.sockets[0].getsockname()[1], ssl=client, server_hostname=name)
        assert await reader.read() == b""
        writer.close()
        return await asyncio.wait_for(seen, 10)


async def test_handshakes(tmp_path: Path) -> None:
    made = everything(tmp_path / "one")
    server = pki.server_context(made.apiserver(), [made.ca.cert, made.front_proxy_ca.cert])
    anonymous = await _handshake(server, pki.client_context(made.ca.cert), "kubernetes.default.svc")
    assert not anonymous
    for pair, name in ((made.client("admin"), "kubernetes-admin"), (made.front_proxy_client(), "front-proxy-client")):
        shown = await _handshake(server, pki.client_context(made.ca.cert, pair), "127.0.0.1")
        assert shown and (("commonName", name),) in shown["subject"]
    with pytest.raises(ssl.SSLCertVerificationError):
        await _handshake(server, pki.client_context(made.ca.cert), "elsewhere.example")


async def test_a_certificate_of_another_authority_ends_the_handshake(tmp_path: Path) -> None:
    made, other = everything(tmp_path / "one"), everything(tmp_path / "two")
    server = pki.server_context(made.apiserver(), [made.ca.cert])
    served: list[object] = []
    listening = await asyncio.start_server(lambda r, w: served.append(r), "127.0.0.1", 0, ssl=server)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):  # TLS 1.3: the client learns it at its first read
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=pki.client_context(made.ca.cert, other.client("admin")), server_hostname="localhost"
            )
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.readexactly(1)
    assert not served


def test_kubeconfig(tmp_path: Path) -> None:
    made = pki.Pki(tmp_path)
    config = yaml.safe_load(made.kubeconfig("https://127.0.0.1:6443", made.client("admin"), "kubernetes-admin"))
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
    assert config["current-context"] == config["contexts"][0]["name"]
    assert config["users"][0]["user"].keys() == {"client-certificate-data", "client-key-data"}
